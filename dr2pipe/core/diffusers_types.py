"""diffusers' classes, with types.

diffusers loads its classes lazily, and a type checker sees dummies in their place. This is the
one module that imports them; it states what of them this package uses. At run time the names
below are diffusers' own classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from dataclasses import dataclass
    from typing import Protocol, Self

    _Function = TypeVar("_Function", bound=Callable[..., Any])

    def register_to_config(init: _Function) -> _Function: ...

    class ConfigMixin:
        config: Any
        config_name: str

        def register_to_config(self, **kwargs: Any) -> None: ...
        @classmethod
        def load_config(cls, path: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]: ...
        @classmethod
        def from_config(cls, config: Any, **kwargs: Any) -> Self: ...

    class ModelMixin(torch.nn.Module):
        # These two are ConfigMixin's: every network of this package has both mixins.
        config: Any

        def to_json_string(self) -> str: ...
        @property
        def device(self) -> torch.device: ...
        @property
        def dtype(self) -> torch.dtype: ...
        @classmethod
        def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self: ...
        def save_pretrained(self, path: str | os.PathLike[str], **kwargs: Any) -> None: ...
        def enable_xformers_memory_efficient_attention(self) -> None: ...

    @dataclass
    class BaseOutput: ...

    @dataclass
    class UNet2DOutput(BaseOutput):
        sample: torch.Tensor

    class UNet2DModel(ModelMixin, ConfigMixin):
        class_embedding: torch.nn.Module | None
        down_blocks: Any
        up_blocks: Any

        def __init__(self, **kwargs: Any) -> None: ...
        def __call__(
            self, sample: torch.Tensor, timestep: torch.Tensor | float | int, **kwargs: Any
        ) -> UNet2DOutput: ...

    class SchedulerOutput(Protocol):
        prev_sample: torch.Tensor

    class SchedulerMixin(ConfigMixin):
        alphas_cumprod: torch.Tensor
        timesteps: torch.Tensor

        def __init__(self, **kwargs: Any) -> None: ...
        def step(
            self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, **kwargs: Any
        ) -> SchedulerOutput: ...
        def add_noise(
            self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
        ) -> torch.Tensor: ...
        def set_timesteps(self, num_inference_steps: int | None = None, **kwargs: Any) -> None: ...
        def save_pretrained(self, path: str | os.PathLike[str], **kwargs: Any) -> None: ...

    class DDPMScheduler(SchedulerMixin): ...

    class DDIMScheduler(SchedulerMixin): ...

    class DPMSolverMultistepScheduler(SchedulerMixin): ...

    class DiffusionPipeline(ConfigMixin):
        _execution_device: torch.device

        def __init__(self) -> None: ...
        def register_modules(self, **modules: Any) -> None: ...
        def maybe_free_model_hooks(self) -> None: ...
        def progress_bar(self, *, total: int) -> Any: ...
        def to(self, *args: Any, **kwargs: Any) -> Self: ...
        @classmethod
        def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self: ...
        def save_pretrained(self, path: str | os.PathLike[str], **kwargs: Any) -> None: ...

    class EMAModel:
        def __init__(
            self,
            parameters: Iterable[torch.nn.Parameter],
            *,
            decay: float = 0.9999,
            foreach: bool = False,
        ) -> None: ...
        def step(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...
        def to(self, device: torch.device) -> None: ...
        def store(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...
        def restore(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...
        def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None: ...
        def state_dict(self) -> dict[str, Any]: ...
        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def randn_tensor(
        shape: torch.Size | tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor: ...

else:
    from diffusers import (
        ConfigMixin,
        DDIMScheduler,
        DDPMScheduler,
        DiffusionPipeline,
        DPMSolverMultistepScheduler,
        ModelMixin,
        SchedulerMixin,
        UNet2DModel,
    )
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from diffusers.training_utils import EMAModel
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor

__all__ = [
    "BaseOutput",
    "ConfigMixin",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DiffusionPipeline",
    "EMAModel",
    "ModelMixin",
    "SchedulerMixin",
    "UNet2DModel",
    "UNet2DOutput",
    "randn_tensor",
    "register_to_config",
]
