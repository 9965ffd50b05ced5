"""StyleGAN2: one generator and one discriminator for the whole GAN-prior family."""

from dr2pipe.stylegan2.discriminator import FacePartDiscriminator, StyleGAN2Discriminator
from dr2pipe.stylegan2.generator import StyleGAN2Generator

__all__ = ["FacePartDiscriminator", "StyleGAN2Discriminator", "StyleGAN2Generator"]
