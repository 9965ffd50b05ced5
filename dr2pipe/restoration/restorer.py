"""Both stages on batches of tensors: DR2 removes the degradation, an enhancer adds detail."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import (
    ConfigError,
    Dr2pipeError,
    NotFiniteError,
    PictureError,
    is_out_of_memory,
)
from dr2pipe.core.models import find_model
from dr2pipe.core.precision import PRECISIONS, parts_of_batch, warn_if_slow
from dr2pipe.diffusion.networks import use_attention
from dr2pipe.diffusion.noise import noise_of, resolve_noise
from dr2pipe.diffusion.stage1 import (
    AutoRemover,
    Choice,
    DR2Config,
    Remover,
    WrapUNet,
    load_remover,
    plain_config,
)
from dr2pipe.enhancers import (
    Enhancer,
    build_enhancer,
    enhancer_class,
    mix_with_sharp,
    option_names,
    sharp_folder,
)
from dr2pipe.restoration.precision import is_faster_channels_last
from dr2pipe.restoration.restored import Begun, Restored

_DEFAULT_SIZE = 512  # side in pixels when neither stage has one of its own


@dataclass
class EnhancerConfig:
    """Settings of stage 2."""

    name: str = "none"  # a key of ENHANCERS
    weights: str | None = None  # a model's name or folder; some enhancers take an official file
    options: dict[str, Any] = field(default_factory=dict)  # of an enhancer without weights
    # 0..1: from the faithful to the sharp variant of a model that has both; null: as it is.
    sharpness: float | None = None


class Restorer:
    """Two stages on batches.

    Args:
        remover: stage 1, or None for the enhancer alone.
        enhancer: stage 2.
        device: where the networks run.
        dtype: in what precision they run.
        channels_last: their memory format.
        compile: whether torch.compile compiles them.
        noise: reference or philox, see ``diffusion/noise.py``.
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
        noise: str = "reference",
    ):
        self.remover, self.enhancer = remover, enhancer
        self.device, self.dtype, self.noise = torch.device(device), dtype, noise
        self.compiled = compile
        self.padded_to = (
            0  # a compiled network is compiled for one shape: that of the largest batch
        )
        self._fetching: torch.cuda.Stream | None = None  # where results are fetched from a GPU
        self._single: Restorer | None = None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._prepare(self._networks())

    def _prepare(self, networks: Sequence[torch.nn.Module]) -> None:
        for network in networks:
            layout: dict[str, Any] = {"memory_format": self.memory_format}  # not in torch's types
            # A cast to the type that it has already makes diffusers warn.
            if any(weights.dtype != self.dtype for weights in network.parameters()):
                layout["dtype"] = self.dtype
            network.to(device=self.device, **layout)
            network.eval().requires_grad_(False)
            if self.compiled:
                network.compile(dynamic=False)

    def with_remover(self, remover: Remover | AutoRemover) -> Restorer:
        """The same networks with other settings of stage 1."""
        return self._with(remover, self.enhancer)

    def _with(self, remover: Remover | AutoRemover | None, enhancer: Enhancer) -> Restorer:
        changed = copy.copy(self)
        changed.remover, changed.enhancer, changed._single = remover, enhancer, None
        known = {id(network) for network in self._networks()}
        self._prepare([new for new in changed._networks() if id(new) not in known])
        return changed

    def with_single_noise(self) -> Restorer:
        """The same, but every coarse face is made once, from one noise.

        It is made once, so that it keeps the shape that its networks are compiled for.
        """
        if self.remover is None:
            return self
        if self._single is None:
            single = self.remover.with_single_noise()
            self._single = self if single is self.remover else self.with_remover(single)
        return self._single

    def with_enhancer(self, enhancer: Enhancer) -> Restorer:
        """The same stage 1 with another stage 2.

        The network itself is moved, cast and frozen: give a copy of one that is being trained.
        """
        return self._with(self.remover, enhancer)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that it takes."""
        if self.remover is not None:
            return self.remover.size
        return self.enhancer.input_size or self.enhancer.output_size or _DEFAULT_SIZE

    @property
    def output_size(self) -> int:
        """Side in pixels of its results."""
        return self.enhancer.output_size or self.input_size

    def __call__(self, degraded: torch.Tensor, seeds: Sequence[int]) -> Restored:
        """Restore (B,3,S,S) float32 RGB in [-1,1] with S = ``input_size``.

        ``seeds`` holds one integer per picture. Each result depends on its picture and seed
        alone. In low precision and on a GPU, its last bits may also depend on the size of the
        batch. A result that is not finite in low precision is computed again in float32.

        Raises:
            PictureError: a batch of another shape, without a picture, or (looked at on the CPU
                alone) with values outside of [-1,1].
            ConfigError: an enhancer that gives something else than it should.
            Dr2pipeError: another number of seeds.
            NotFiniteError: not finite in float32 either.
        """
        return self.finish(self.begin(degraded, seeds))

    @torch.no_grad()
    def begin(self, degraded: torch.Tensor, seeds: Sequence[int]) -> Begun:
        """Give the networks a batch, as to ``__call__``; does not wait for a GPU."""
        side = self.input_size
        images.check_tensor(degraded)
        if tuple(degraded.shape[2:]) != (side, side):
            raise PictureError(f"expected (B,3,{side},{side}), not {tuple(degraded.shape)}")
        degraded = degraded.float()
        if len(seeds) != len(degraded):
            raise Dr2pipeError(f"{len(degraded)} pictures need as many seeds, not {len(seeds)}")
        parts = self._parts(len(degraded))
        choices: list[Choice] = []
        if self.remover is not None:
            choices = [choice for part in parts for choice in self.remover.choose(degraded[part])]
        if self.compiled:
            self.padded_to = max(self.padded_to, len(degraded) // len(parts))
        try:
            coarse, restored = self._run(degraded, seeds, choices)
        except Exception as error:
            if is_out_of_memory(error):
                self.padded_to = 0  # smaller batches follow
            raise
        finite = restored.isfinite().flatten(1).all(dim=1)
        done = None
        if restored.is_cuda:
            done = torch.cuda.current_stream(restored.device).record_event()
        return Begun(degraded, seeds, choices, coarse, restored, finite, done)

    @torch.no_grad()
    def finish(self, begun: Begun) -> Restored:
        """Wait for a batch, and compute again in float32 what is not finite."""
        coarse, restored, seeds, choices = begun.coarse, begun.restored, begun.seeds, begun.choices
        broken = [i for i, is_finite in enumerate(begun.finite.tolist()) if not is_finite]
        if broken and self.dtype != torch.float32:
            coarse[broken], restored[broken] = self._run_in_fp32(
                begun.degraded[broken],
                [seeds[i] for i in broken],
                [choices[i] for i in broken] if choices else [],
            )
        if broken and not restored[broken].isfinite().all():
            raise NotFiniteError("the result is not finite, not even in float32")
        return Restored(coarse, restored, [i in broken for i in range(len(seeds))], choices)

    @contextmanager
    def beside_the_next(self, begun: Begun) -> Iterator[None]:
        """What a GPU does in the block waits for this batch, but not for one begun after it."""
        if begun.done is None:
            yield
            return
        if self._fetching is None:
            # The few small kernels go before those of the networks.
            self._fetching = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._fetching):
            begun.done.wait()
            yield

    def _parts(self, count: int) -> list[slice]:
        return parts_of_batch(count, self.device, self.dtype)

    def _run(
        self, degraded: torch.Tensor, seeds: Sequence[int], choices: list[Choice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The coarse faces and the results of (B,3,S,S)."""
        both = [
            self._run_together(degraded[part], seeds[part], choices[part])
            for part in self._parts(len(degraded))
        ]
        coarse, restored = zip(*both, strict=True)
        return torch.cat(coarse), torch.cat(restored)

    def _run_together(
        self, degraded: torch.Tensor, seeds: Sequence[int], choices: list[Choice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        degraded = self._on_device(degraded)  # (B,3,S,S)
        coarse = degraded.clone()
        for remover in {id(c.remover): c.remover for c in choices if c.remover}.values():
            at = [i for i, choice in enumerate(choices) if choice.remover is remover]
            # Either kind gives the same picture on every device.
            rows = self._padded(at)
            generators = noise_of(self.noise, [seeds[i] for i in rows])
            places = self._on_device(torch.tensor(rows))
            found = remover(degraded[places], generators)
            coarse[places[: len(at)]] = found[: len(at)].to(coarse.dtype)
        places = self._on_device(torch.tensor(self._padded(list(range(len(coarse))))))
        restored = self.enhance_together(coarse[places])[: len(coarse)]
        return coarse.float().clone(), restored.clone()

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # copied while the host goes on
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    def _padded(self, rows: list[int]) -> list[int]:
        """Rows of a batch, the last one repeated where the network was compiled for more."""
        return rows + rows[-1:] * (self.padded_to - len(rows))

    @torch.no_grad()
    def enhance(self, coarse: torch.Tensor) -> torch.Tensor:
        """Stage 2 alone: (B,3,H,W) brought to the enhancer's input size and enhanced."""
        parts = self._parts(len(coarse))
        return torch.cat([self.enhance_together(coarse[part]) for part in parts])

    def enhance_together(self, coarse: torch.Tensor) -> torch.Tensor:
        """As :meth:`enhance`, in one batch on every device."""
        given = self._for_enhancer(coarse)
        restored = self.enhancer(given)
        side = self.enhancer.output_size
        wanted = given.shape if side is None else torch.Size((len(given), 3, side, side))
        if getattr(restored, "shape", None) != wanted:
            got = tuple(getattr(restored, "shape", (type(restored).__name__,)))
            kind = type(self.enhancer).__name__
            raise ConfigError(f"{kind}.forward must give a tensor {tuple(wanted)}, not {got}")
        return restored.float()

    @torch.no_grad()
    def notes(self, coarse: torch.Tensor) -> list[dict[str, Any]]:
        """What the enhancer says about each of (B,3,H,W) coarse faces, for the manifest."""
        parts = self._parts(len(coarse))
        return [
            note for part in parts for note in self.enhancer.notes(self._for_enhancer(coarse[part]))
        ]

    def _for_enhancer(self, coarse: torch.Tensor) -> torch.Tensor:
        if self.enhancer.input_size is not None:
            coarse = images.resize_tensor(coarse, self.enhancer.input_size)
        # Enhancers without weights compute in float32.
        return coarse.to(self.dtype) if self.enhancer.has_weights else coarse

    def _run_in_fp32(
        self, degraded: torch.Tensor, seeds: Sequence[int], choices: list[Choice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.in_fp32():
            return self._run(degraded, seeds, choices)

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        """Let the networks compute in float32 for the length of a block."""
        usual, self.dtype = self.dtype, torch.float32
        padded_to, self.padded_to = self.padded_to, 0  # compiled anew for this type
        try:
            self._wait()  # another batch may need the weights as they are
            for network in self._networks():
                network.to(torch.float32)
            yield
        finally:
            self.dtype, self.padded_to = usual, padded_to
            for network in self._networks():
                network.to(usual)
            self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _networks(self) -> list[torch.nn.Module]:
        return [self.enhancer, *(self.remover.networks if self.remover is not None else [])]


def describe_enhancer(config: EnhancerConfig, enhancer: Enhancer) -> dict[str, Any]:
    """The settings of stage 2 that decide its results; its weights are hashed besides."""
    described = {"name": config.name, **plain_config(enhancer.config)}
    if config.sharpness is not None and enhancer.has_weights:
        described["sharpness"] = config.sharpness
    return described


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
    noise: str = "reference",
    wrap_unet: WrapUNet | None = None,
) -> tuple[Restorer, dict[str, str]]:
    """Load both stages; also returns the sha256 of every weight file by stage.

    ``channels_last`` None means what :func:`~dr2pipe.restoration.precision.is_faster_channels_last`
    says. ``wrap_unet`` may put another network in the place of stage 1's, see ``load_remover``.

    Raises:
        ConfigError: a setting or name that is not valid, or missing weights.
        CheckpointError: weights of another network.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': choose {', '.join(PRECISIONS)}")
    warn_if_slow(precision, device)
    kind = enhancer_class(enhancer.name)
    if not kind.has_weights:
        # A preset's settings may hold the weights and options of the network that was replaced.
        known = option_names(kind)
        options = {name: value for name, value in enhancer.options.items() if name in known}
        enhancer = EnhancerConfig(enhancer.name, options=options)
    elif enhancer.weights is None:
        raise ConfigError(
            f"enhancer '{enhancer.name}' needs enhancer.weights: a model's name or folder, "
            f"or for 'spandrel' an official file"
        )
    hashes: dict[str, str] = {}
    remover = None
    if dr2.enabled:
        remover, found = load_remover(dr2, wrap_unet=wrap_unet)
        hashes |= found
    weights = None if enhancer.weights is None else find_model(enhancer.weights)
    stage2 = build_enhancer(enhancer.name, weights, **enhancer.options)
    if stage2.conditions:
        needs = ", ".join(stage2.conditions)
        raise ConfigError(f"enhancer '{enhancer.name}' needs {needs}, which restore does not have")
    if weights is not None:
        hashes["enhancer"] = files.sha256(weights)
        if enhancer.sharpness is not None:
            mix_with_sharp(stage2, weights, enhancer.sharpness)
            hashes["enhancer_sharp"] = files.sha256(sharp_folder(weights))
    if remover is not None:
        for network in remover.networks:
            use_attention(network, attention, torch.device(device))
    if precision != "fp32" and torch.device(device).type == "cuda":
        stage2.align_channels()
    if channels_last is None:
        channels_last = is_faster_channels_last(precision, device, compiled=compile)
    restorer = Restorer(
        remover,
        stage2,
        device=device,
        dtype=PRECISIONS[precision],
        channels_last=channels_last,
        compile=compile,
        noise=resolve_noise(noise, device),
    )
    return restorer, hashes
