"""Frozen networks whose features losses and metrics compare."""

from dr2pipe.features.arcface import ArcFaceResNet, load_arcface
from dr2pipe.features.dlib_identity import IdentityEmbedder, load_identity
from dr2pipe.features.lpips import LPIPS, load_lpips
from dr2pipe.features.psp import StyleEncoder, load_style_encoder
from dr2pipe.features.resnet101 import IdentityResNet, load_identity_resnet
from dr2pipe.features.vgg import VGGFeatures, load_vgg

__all__ = [
    "ArcFaceResNet",
    "IdentityEmbedder",
    "IdentityResNet",
    "LPIPS",
    "StyleEncoder",
    "VGGFeatures",
    "load_arcface",
    "load_identity",
    "load_identity_resnet",
    "load_lpips",
    "load_style_encoder",
    "load_vgg",
]
