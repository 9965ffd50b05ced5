"""Both stages on batches of tensors: DR2 removes the degradation, an enhancer finishes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import ConfigError, NotFiniteError
from dr2pipe.core.models import find_model
from dr2pipe.diffusion.networks import use_attention
from dr2pipe.diffusion.stage1 import (
    AutoRemover,
    Choice,
    DR2Config,
    Remover,
    WrapUNet,
    load_remover,
    plain_config,
)
from dr2pipe.enhancers import Enhancer, build_enhancer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BASELINE_OPTIONS = {"none": (), "bicubic": ("size",)}  # enhancers without weights
_SIZE_WITHOUT_ANY = 512  # side in pixels when neither stage has one of its own


@dataclass
class EnhancerConfig:
    """Stage 2."""

    name: str = "none"
    weights: str | None = None  # native folder; for spandrel an official file
    options: dict[str, Any] = field(default_factory=dict)  # instead of weights


@dataclass
class Restored:
    """What became of a batch.

    Attributes:
        coarse, restored: (B,3,H,W) float32 around [-1,1].
        in_fp32: whether a picture was computed again in float32.
        choices: what stage 1 did to each picture; empty where there is none.
    """

    coarse: torch.Tensor
    restored: torch.Tensor
    in_fp32: list[bool]
    choices: list[Choice]

    @property
    def calls(self) -> list[int]:
        """Network calls of stage 1 for each picture."""
        return [choice.calls for choice in self.choices] or [0] * len(self.in_fp32)


class Restorer:
    """Two stages on batches.

    Args:
        remover: stage 1, or None for the enhancer alone.
        enhancer: stage 2; the enhancer ``none`` leaves the coarse face as the result.
        device, dtype: where and in what precision the networks run.
        channels_last, compile: memory format and torch.compile of the networks.
    """

    def __init__(
        self,
        remover: Remover | AutoRemover | None,
        enhancer: Enhancer,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compile: bool = False,
    ):
        self.remover, self.enhancer = remover, enhancer
        self.device, self.dtype = torch.device(device), dtype
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for network in self._networks():
            network.to(device=self.device, dtype=dtype, memory_format=memory_format).eval()
            network.requires_grad_(False)
            if compile:
                network.compile()

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures it takes."""
        if self.remover is not None:
            return self.remover.size
        return self.enhancer.input_size or self.enhancer.output_size or _SIZE_WITHOUT_ANY

    @property
    def output_size(self) -> int:
        """Side in pixels of the pictures it returns."""
        return self.enhancer.output_size or self.input_size

    @torch.no_grad()
    def __call__(self, degraded: torch.Tensor, seeds: Sequence[int]) -> Restored:
        """Restore (B,3,S,S) float32 RGB in [-1,1] with S = ``input_size``.

        ``seeds`` holds one integer per picture: each result depends on its picture and seed
        alone. A result that is not finite is computed again in float32.

        Raises:
            ValueError: a batch of another shape, or another number of seeds.
            NotFiniteError: not finite in float32 either.
        """
        side = self.input_size
        if degraded.ndim != 4 or tuple(degraded.shape[1:]) != (3, side, side):
            raise ValueError(f"expected (B,3,{side},{side}), not {tuple(degraded.shape)}")
        if len(seeds) != len(degraded):
            raise ValueError(f"{len(degraded)} pictures need as many seeds, not {len(seeds)}")
        choices = self.remover.choose(degraded) if self.remover is not None else []
        coarse, restored = self._run(degraded, seeds, choices)
        broken = [i for i in range(len(seeds)) if not restored[i].isfinite().all()]
        if broken and self.dtype != torch.float32:
            parts = ([of[i] for i in broken if of] for of in (seeds, choices))
            again = self._run_in_fp32(degraded[broken], *parts)
            coarse[broken], restored[broken] = again
        still_broken = [i for i in broken if not restored[i].isfinite().all()]
        if still_broken:
            raise NotFiniteError("the result is not finite, not even in float32")
        return Restored(coarse, restored, [i in broken for i in range(len(seeds))], choices)

    def _run(
        self, degraded: torch.Tensor, seeds: Sequence[int], choices: list[Choice]
    ) -> tuple[torch.Tensor, ...]:
        degraded = degraded.to(self.device)
        coarse = degraded.clone()
        for remover in {id(c.remover): c.remover for c in choices if c.remover}.values():
            at = [i for i, choice in enumerate(choices) if choice.remover is remover]
            # Drawn on the CPU, so that every device gives the same picture.
            generators = [torch.Generator().manual_seed(seeds[i]) for i in at]
            coarse[at] = remover(degraded[at], generators).to(coarse.dtype)
        return coarse.float().clone(), self.enhance(coarse).clone()

    def enhance(self, coarse: torch.Tensor) -> torch.Tensor:
        """Stage 2 alone: (B,3,H,W) brought to the enhancer's input size and enhanced."""
        return self.enhancer(self._for_enhancer(coarse)).float()

    def prior_shares(self, coarse: torch.Tensor) -> torch.Tensor:
        """(B,levels) of an enhancer that mixes a prior with the picture, see ``PaniniNet``."""
        return self.enhancer.prior_shares(self._for_enhancer(coarse)).float()

    def _for_enhancer(self, coarse: torch.Tensor) -> torch.Tensor:
        if self.enhancer.input_size is not None:
            coarse = images.resize_tensor(coarse, self.enhancer.input_size)
        # Baselines compute in float32.
        has_weights = any(True for _ in self.enhancer.parameters())
        return coarse.to(self.dtype) if has_weights else coarse

    def _run_in_fp32(self, degraded: torch.Tensor, *parts: list) -> tuple[torch.Tensor, ...]:
        usual, self.dtype = self.dtype, torch.float32
        try:
            for network in self._networks():
                network.to(torch.float32)
            return self._run(degraded, *parts)
        finally:
            self.dtype = usual
            for network in self._networks():
                network.to(usual)

    def _networks(self) -> list[torch.nn.Module]:
        return [self.enhancer, *([self.remover.unet] if self.remover is not None else [])]


def describe_enhancer(config: EnhancerConfig, enhancer: Enhancer) -> dict[str, Any]:
    """All of stage 2 that decides its results; its weights have hashes."""
    return {"name": config.name, **plain_config(enhancer.config)}


# -- loading ---------------------------------------------------------------------------------


def build_restorer(
    dr2: DR2Config,
    enhancer: EnhancerConfig,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    attention: str = "auto",
    channels_last: bool | None = None,
    compile: bool = False,
    wrap_unet: WrapUNet | None = None,
) -> tuple[Restorer, dict[str, str]]:
    """Load both stages; also returns the sha256 of every weight file by stage.

    ``channels_last`` None means in low precision alone, where it is faster. ``wrap_unet`` may
    put another network in the place of stage 1's, see ``load_remover``.

    Raises:
        ConfigError, ValueError: a setting or name that is not valid, or missing weights.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': choose {', '.join(PRECISIONS)}")
    if enhancer.name in _BASELINE_OPTIONS:
        # Switching to a baseline leaves the weights and options of a preset's network behind.
        takes = _BASELINE_OPTIONS[enhancer.name]
        options = {name: enhancer.options[name] for name in takes if name in enhancer.options}
        enhancer = EnhancerConfig(enhancer.name, options=options)
    elif enhancer.weights is None:
        raise ConfigError(f"enhancer '{enhancer.name}' needs enhancer.weights, a native folder")
    hashes: dict[str, str] = {}
    remover = None
    if dr2.enabled:
        remover, found = load_remover(dr2, wrap_unet=wrap_unet)
        hashes |= found
    weights = None
    if enhancer.weights is not None:
        weights = find_model(enhancer.weights)
    stage2 = build_enhancer(enhancer.name, weights, **enhancer.options)
    if stage2.conditions:
        needs = ", ".join(stage2.conditions)
        raise ConfigError(f"enhancer '{enhancer.name}' needs {needs}, which restore does not have")
    if weights is not None:
        hashes["enhancer"] = files.sha256(weights)
    if remover is not None:
        use_attention(remover.unet, attention, torch.device(device))
    restorer = Restorer(
        remover,
        stage2,
        device=device,
        dtype=PRECISIONS[precision],
        channels_last=precision != "fp32" if channels_last is None else channels_last,
        compile=compile,
    )
    return restorer, hashes
