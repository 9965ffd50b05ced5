"""DR2 as a diffusers pipeline: stage 1 alone, for pictures, arrays and tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dr2pipe.core import images
from dr2pipe.core.diffusers_types import BaseOutput, DiffusionPipeline, SchedulerMixin, UNet2DModel
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import BicubicLowPass, LowPass
from dr2pipe.diffusion.timesteps import default_omega, start_chain

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray]
OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class DR2PipelineOutput(BaseOutput):
    """``images``: coarse faces, as the call's ``output_type`` asked."""

    images: list[Image.Image] | np.ndarray | torch.Tensor


class DR2Pipeline(DiffusionPipeline):
    """Any unconditional face DDPM of diffusers, used as a degradation remover.

    ``DR2Pipeline.from_pretrained(folder or hub id)`` takes DDPM and DDIM pipelines as they
    are, for instance a 256-pixel CelebA-HQ DDPM.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def size(self) -> int:
        """Side in pixels that the network was made for."""
        sample_size = self.unet.config.sample_size
        return sample_size if isinstance(sample_size, int) else sample_size[0]

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
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DR2Pipeline, int, int, dict], dict] | None = None,
    ) -> DR2PipelineOutput | tuple:
        """Remove the degradation of one or more aligned faces.

        Args:
            image: PIL pictures; arrays (H,W,3) or (B,H,W,3), uint8 or float in [0,1]; or a
                tensor (B,3,H,W) in [-1,1]. Resized to the network's size.
            tau, omega, factor: the paper's τ, ω and N; ω defaults to the demo's choice for N.
            low_pass: another filter than the bicubic one of ``factor``.
            num_evaluations: number of network calls; by default all ω - τ + 1 of them.
            output_type: ``pil``, ``np`` (B,H,W,3) float in [0,1] or ``pt`` (B,3,H,W) in [-1,1].
            callback_on_step_end: called as (pipeline, step, timestep, {"estimate": x̂0}).

        Raises:
            ValueError: an input, setting or output type that is not one of these.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"unknown output_type '{output_type}'; choose {', '.join(OUTPUT_TYPES)}"
            )
        degraded = self._prepare(image).to(self._execution_device)
        omega = default_omega(tau, factor, num_steps) if omega is None else omega
        low_pass = low_pass or BicubicLowPass(factor)
        chain = {
            "omega": omega,
            "tau": tau,
            "num_steps": num_steps,
            "num_evaluations": num_evaluations,
        }
        calls = len(start_chain(self.scheduler, **chain)[1])
        with self.progress_bar(total=calls) as progress:

            def on_step(step: int, timestep: int, estimate: torch.Tensor) -> None:
                progress.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step - 1, timestep, {"estimate": estimate})

            coarse = remove_degradation(
                self.unet,
                self.scheduler,
                low_pass,
                degraded,
                **chain,
                generator=generator,
                callback=on_step,
            )
        self.maybe_free_model_hooks()
        result = _as_output(coarse, output_type)
        return DR2PipelineOutput(images=result) if return_dict else (result,)

    def _prepare(self, image: ImageInput) -> torch.Tensor:
        if isinstance(image, torch.Tensor):
            if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
                raise ValueError(
                    f"a tensor must be float (B,3,H,W) in [-1,1], not {image.dtype} {tuple(image.shape)}"
                )
            return images.resize_tensor(image.float(), self.size).clamp(-1, 1)
        many = image if isinstance(image, list) or getattr(image, "ndim", 3) == 4 else [image]
        pixels = [images.resize_pixels(_as_pixels(one), (self.size, self.size)) for one in many]
        if not pixels:
            raise ValueError("no image given")
        return images.to_tensor(np.stack(pixels))


def _as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        given = getattr(image, "shape", type(image).__name__)
        raise ValueError(
            f"an image must be PIL, a tensor (B,3,H,W) or an array (H,W,3), not {given}"
        )
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating) or image.min() < 0 or image.max() > 1:
        raise ValueError("an array must be uint8, or float in [0,1]")
    return np.round(image * 255).astype(np.uint8)


def _as_output(coarse: torch.Tensor, output_type: str):
    if output_type == "pt":
        return coarse
    if output_type == "np":
        return coarse.add(1).div(2).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(pixels) for pixels in images.to_uint8(coarse)]
