"""DR2 as a diffusers pipeline: stage 1 alone, for pictures, arrays and tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.diffusers_types import BaseOutput, DiffusionPipeline, ModelMixin, SchedulerMixin
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import BicubicLowPass, LowPass
from dr2pipe.diffusion.networks import INDEX, check_folder
from dr2pipe.diffusion.noise import Generators
from dr2pipe.diffusion.timesteps import check_max_timestep, default_omega, start_chain

if TYPE_CHECKING:
    from typing import Self

Pixels = npt.NDArray[Any]
ImageInput = Image.Image | Pixels | torch.Tensor | list[Image.Image] | list[Pixels]
ImageOutput = list[Image.Image] | Pixels | torch.Tensor
OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class DR2PipelineOutput(BaseOutput):
    """Result of :class:`DR2Pipeline`.

    Attributes:
        images: coarse faces in the form that ``output_type`` asks for.
    """

    images: ImageOutput


class DR2Pipeline(DiffusionPipeline):
    """An unconditional face DDPM of diffusers, used as a degradation remover.

    ``DR2Pipeline.from_pretrained(folder or hub id)`` also loads DDPM and DDIM pipelines, for
    instance a 256-pixel CelebA-HQ DDPM.

    Args:
        unet: the network, see :func:`dr2pipe.diffusion.dr2.check_network`.
        scheduler: DDPM, DDIM or DPM-Solver++.
        max_timestep: the highest timestep that the network was trained on; None for all of
            them. It is saved in ``model_index.json``.
    """

    model_cpu_offload_seq = "unet"
    unet: ModelMixin
    scheduler: SchedulerMixin

    def __init__(
        self, unet: ModelMixin, scheduler: SchedulerMixin, max_timestep: int | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(max_timestep=max_timestep)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a folder or a model of the hub, see diffusers.

        Raises:
            CheckpointError: a folder with another network or scheduler than this package knows,
                or with configs that its weights do not fit.
        """
        if (Path(path) / INDEX).exists():
            check_folder(Path(path))
        if "device_map" not in kwargs:  # see load_network
            kwargs.setdefault("low_cpu_mem_usage", False)
        return super().from_pretrained(path, **kwargs)

    @property
    def max_timestep(self) -> int | None:
        """The highest timestep that the network was trained on; None for all of them."""
        max_timestep: int | None = self.config.max_timestep
        return max_timestep

    @property
    def size(self) -> int:
        """Side in pixels that the network was made for."""
        return network_size(self.unet)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput,
        *,
        tau: int = 22,
        omega: int | None = None,
        factor: int = 4,
        low_pass: LowPass | None = None,
        num_steps: int = 100,
        num_evaluations: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DR2Pipeline, int, int, dict[str, Any]], Any] | None = None,
    ) -> DR2PipelineOutput | tuple[ImageOutput]:
        """Remove the degradation of one or more aligned faces.

        Args:
            image: PIL pictures; arrays (H,W,3) or (B,H,W,3), uint8 or float in [0,1]; or a
                tensor (B,3,H,W) in [-1,1]. Pictures are resized to the network's size.
            tau: the paper's τ.
            omega: the paper's ω; None for the one that the official demo takes for N.
            factor: the paper's N.
            low_pass: another filter than the bicubic one of ``factor``.
            num_steps: length of the respaced chain.
            num_evaluations: number of network calls; None for all ω - τ + 1 of them.
            generator: one for the batch, or one per picture, or Philox.
            output_type: ``pil``, ``np`` (B,H,W,3) float in [0,1] or ``pt`` (B,3,H,W) in [-1,1].
            return_dict: False returns a tuple in place of :class:`DR2PipelineOutput`.
            callback_on_step_end: called as (pipeline, step, timestep, {"estimate": x0}); what it
                returns is not used.

        Raises:
            Dr2pipeError: a picture, setting or output type that cannot be used.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"unknown output_type '{output_type}'; choose {', '.join(OUTPUT_TYPES)}"
            )
        if isinstance(generator, tuple):
            generator = list(generator)
        degraded = self._prepare(image).to(self._execution_device)
        omega = default_omega(tau, factor, num_steps) if omega is None else omega
        _, timesteps = start_chain(
            self.scheduler,
            omega=omega,
            tau=tau,
            num_steps=num_steps,
            num_evaluations=num_evaluations,
        )
        check_max_timestep(timesteps[0], self.max_timestep)
        with self.progress_bar(total=len(timesteps)) as progress:

            def on_step(step: int, timestep: int, estimate: torch.Tensor) -> None:
                progress.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step - 1, timestep, {"estimate": estimate})

            coarse = remove_degradation(
                self.unet,
                self.scheduler,
                low_pass or BicubicLowPass(factor),
                degraded,
                omega=omega,
                tau=tau,
                num_steps=num_steps,
                num_evaluations=num_evaluations,
                generator=generator,
                callback=on_step,
            )
        self.maybe_free_model_hooks()
        result = _as_output(coarse, output_type)
        return DR2PipelineOutput(images=result) if return_dict else (result,)

    def _prepare(self, image: ImageInput) -> torch.Tensor:
        if isinstance(image, torch.Tensor):
            images.check_tensor(image)
            return images.resize_tensor(image.float(), self.size).clamp(-1, 1)
        many: list[Any] = image if isinstance(image, list) else [image]
        if isinstance(image, np.ndarray) and image.ndim == 4:
            many = list(image)
        if not many:
            raise PictureError("no image given")
        pixels = [images.resize_pixels(_as_pixels(one), (self.size, self.size)) for one in many]
        return images.to_tensor(np.stack(pixels))


def network_size(unet: ModelMixin) -> int:
    """Return the side in pixels that a network was made for."""
    size: int | list[int] = unet.config.sample_size
    return size if isinstance(size, int) else size[0]


def _as_pixels(image: object) -> npt.NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        return images.picture_of(image).pixels
    if (
        not isinstance(image, np.ndarray)
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        given = getattr(image, "shape", type(image).__name__)
        raise PictureError(
            f"an image must be PIL, a tensor (B,3,H,W) or an array (H,W,3), not {given}"
        )
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating) or not _is_in_unit_range(image):
        raise PictureError("an array must be uint8, or float in [0,1]")
    return np.round(image * 255).astype(np.uint8)


def _is_in_unit_range(image: npt.NDArray[Any]) -> bool:
    return bool(image.min() >= 0 and image.max() <= 1)  # not of NaN


def _as_output(coarse: torch.Tensor, output_type: str) -> ImageOutput:
    if output_type == "pt":
        return coarse
    if output_type == "np":
        array: Pixels = coarse.add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()
        return array
    return [Image.fromarray(pixels) for pixels in images.to_uint8(coarse)]
