"""Both stages on batches of tensors: DR2 removes the degradation, an enhancer finishes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel

from dr2pipe import images
from dr2pipe.config import ConfigError, resource
from dr2pipe.diffusion.dr2 import check_network, remove_degradation
from dr2pipe.diffusion.low_pass import LowPass, build_low_pass
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import (
    build_scheduler,
    check_chain,
    default_omega,
    start_chain,
)
from dr2pipe.enhancers import Enhancer, build_enhancer

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTIONS = ("auto", "sdpa", "xformers")
_BASELINE_OPTIONS = {"none": (), "bicubic": ("size",)}  # enhancers without weights
_SIZE_WITHOUT_ANY = 512  # side in pixels when neither stage has one of its own


@dataclass
class DR2Config:
    """Stage 1."""

    enabled: bool = True
    model: str = "portrait64"  # name in checkpoints/, folder, or hub id of a face DDPM
    scheduler: str | None = None  # ddpm | ddim | dpmsolver++; null: the model's own
    variance: str | None = None  # of ddpm; null: learned_range for 6 channels, else fixed_small
    low_pass: str = "bicubic"  # bicubic | gaussian | fft | none
    factor: int = 4  # the paper's N; of bicubic
    sigma_px: float | None = None  # of gaussian
    cutoff: float | None = None  # of fft, share of the Nyquist frequency
    tau: int = 22
    omega: int | None = None  # null: by the table of N
    num_steps: int = 100
    num_evaluations: int | None = None  # null: every step from omega to tau


@dataclass
class EnhancerConfig:
    """Stage 2."""

    name: str = "none"
    weights: str | None = None  # native folder; for spandrel an official file
    options: dict[str, Any] = field(default_factory=dict)  # instead of weights


@dataclass
class Restored:
    """``coarse`` and ``restored``: (B,3,H,W) float32 around [-1,1]; ``in_fp32``: retried there."""

    coarse: torch.Tensor
    restored: torch.Tensor
    in_fp32: list[bool]


@dataclass
class Remover:
    """Stage 1 with its settings: what ``remove_degradation`` needs besides the pictures."""

    unet: UNet2DModel
    scheduler: SchedulerMixin
    low_pass: LowPass
    omega: int
    tau: int
    num_steps: int = 100
    num_evaluations: int | None = None

    @property
    def size(self) -> int:
        sample_size = self.unet.config.sample_size
        return sample_size if isinstance(sample_size, int) else sample_size[0]

    def __call__(self, degraded: torch.Tensor, generator: list[torch.Generator]) -> torch.Tensor:
        return remove_degradation(
            self.unet,
            self.scheduler,
            self.low_pass,
            degraded,
            omega=self.omega,
            tau=self.tau,
            num_steps=self.num_steps,
            num_evaluations=self.num_evaluations,
            generator=generator,
        )


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
        remover: Remover | None,
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
            FloatingPointError: not finite in float32 either.
        """
        side = self.input_size
        if degraded.ndim != 4 or tuple(degraded.shape[1:]) != (3, side, side):
            raise ValueError(f"expected (B,3,{side},{side}), not {tuple(degraded.shape)}")
        if len(seeds) != len(degraded):
            raise ValueError(f"{len(degraded)} pictures need as many seeds, not {len(seeds)}")
        coarse, restored = self._run(degraded, seeds)
        broken = [i for i in range(len(seeds)) if not restored[i].isfinite().all()]
        if broken and self.dtype != torch.float32:
            again = self._run_in_fp32(degraded[broken], [seeds[i] for i in broken])
            coarse[broken], restored[broken] = again
        still_broken = [i for i in broken if not restored[i].isfinite().all()]
        if still_broken:
            raise FloatingPointError("the result is not finite, not even in float32")
        return Restored(coarse, restored, [i in broken for i in range(len(seeds))])

    def _run(self, degraded: torch.Tensor, seeds: Sequence[int]) -> tuple[torch.Tensor, ...]:
        degraded = degraded.to(self.device)
        coarse = degraded
        if self.remover is not None:
            # Drawn on the CPU, so that every device gives the same picture.
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            coarse = self.remover(degraded, generators)
        return coarse.float().clone(), self.enhance(coarse).clone()

    def enhance(self, coarse: torch.Tensor) -> torch.Tensor:
        """Stage 2 alone: (B,3,H,W) brought to the enhancer's input size and enhanced."""
        if self.enhancer.input_size is not None:
            coarse = images.resize_tensor(coarse, self.enhancer.input_size)
        if any(True for _ in self.enhancer.parameters()):  # baselines compute in float32
            coarse = coarse.to(self.dtype)
        return self.enhancer(coarse).float()

    def _run_in_fp32(self, degraded: torch.Tensor, seeds: list[int]) -> tuple[torch.Tensor, ...]:
        usual, self.dtype = self.dtype, torch.float32
        try:
            for network in self._networks():
                network.to(torch.float32)
            return self._run(degraded, seeds)
        finally:
            self.dtype = usual
            for network in self._networks():
                network.to(usual)

    def _networks(self) -> list[torch.nn.Module]:
        return [self.enhancer, *([self.remover.unet] if self.remover is not None else [])]


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
) -> tuple[Restorer, dict[str, str]]:
    """Load both stages; also returns the sha256 of every weight file by stage.

    ``channels_last`` None means in low precision alone, where it is faster.

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
        remover, folder = load_remover(dr2)
        hashes["dr2"] = hash_weights(folder)
    weights = None
    if enhancer.weights is not None:
        is_file = Path(enhancer.weights).is_file()  # for spandrel
        weights = Path(enhancer.weights) if is_file else find_model(enhancer.weights)
    stage2 = build_enhancer(enhancer.name, weights, **enhancer.options)
    if stage2.conditions:
        needs = ", ".join(stage2.conditions)
        raise ConfigError(f"enhancer '{enhancer.name}' needs {needs}, which restore does not have")
    if weights is not None:
        hashes["enhancer"] = hash_weights(weights)
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


def load_remover(config: DR2Config) -> tuple[Remover, Path]:
    """Stage 1 of a config, and the folder it came from."""
    omega = config.omega
    if omega is None and config.low_pass != "bicubic":
        raise ConfigError(f"dr2.omega must be given with dr2.low_pass={config.low_pass}")
    if omega is None:
        omega = default_omega(config.tau, config.factor, config.num_steps)
    check_chain(omega, config.tau, config.num_steps, config.num_evaluations)
    options = {"bicubic": "factor", "gaussian": "sigma_px", "fft": "cutoff"}
    option = options.get(config.low_pass)
    chosen = {option: getattr(config, option)} if option else {}
    if option and chosen[option] is None:
        raise ConfigError(f"dr2.low_pass={config.low_pass} needs dr2.{option}")
    low_pass = build_low_pass(config.low_pass, **chosen)
    folder = find_model(config.model)
    unet, scheduler = _load_unet(folder)
    size = unet.config.sample_size
    if config.low_pass == "bicubic" and isinstance(size, int) and size % config.factor:
        raise ConfigError(f"dr2.factor={config.factor} does not divide the network's size {size}")
    if config.scheduler is not None or scheduler is None:
        shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        trained_with = {k: scheduler.config[k] for k in shared} if scheduler is not None else {}
        learned = unet.config.out_channels == 6
        scheduler = build_scheduler(
            config.scheduler or "ddpm",
            variance=config.variance or ("learned_range" if learned else "fixed_small"),
            **trained_with,
        )
    elif config.variance is not None:
        raise ConfigError("dr2.variance belongs to dr2.scheduler=ddpm; give both")
    chain = {
        "omega": omega,
        "tau": config.tau,
        "num_steps": config.num_steps,
        "num_evaluations": config.num_evaluations,
    }
    _, timesteps = start_chain(scheduler, **chain)
    check_network(unet, scheduler, first_timestep=timesteps[0])
    return Remover(unet, scheduler, low_pass, **chain), folder


def find_model(name: str) -> Path:
    """The folder of a model: a folder as given, a name in ``checkpoints/``, or a hub id."""
    embedded = resource("checkpoints")
    for folder in (Path(name), embedded / name):
        if folder.is_dir():
            return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        try:
            return Path(DR2Pipeline.download(name))
        except Exception as error:  # the hub client raises many kinds; all mean "not available"
            raise ConfigError(
                f"'{name}' is no folder here, and loading it from the hub failed: {error}"
            ) from None
    known = sorted(p.name for p in embedded.glob("*/") if any(p.glob("*.json")))
    raise ConfigError(
        f"no model '{name}': give a folder, a hub id, or one of {', '.join(known) or '(none)'}"
    )


def hash_weights(path: Path) -> str:
    """sha256 over the weight files of a model folder in the order of their names, or of a file."""
    files = sorted(p for s in ("*.safetensors", "*.bin") for p in path.rglob(s))
    files = [path] if path.is_file() else files
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def use_attention(unet: UNet2DModel, attention: str, device: torch.device) -> str:
    """Set the attention of ``unet``; returns what is used (``sdpa`` or ``xformers``)."""
    if attention not in ATTENTIONS:
        raise ConfigError(f"attention '{attention}': choose {', '.join(ATTENTIONS)}")
    if attention != "xformers":
        return "sdpa"  # torch's own, the diffusers default
    reason = why_no_xformers(device)
    if reason:
        raise ConfigError(f"attention=xformers cannot be used: {reason}")
    unet.enable_xformers_memory_efficient_attention()
    return "xformers"


def why_no_xformers(device: torch.device) -> str | None:
    """Why xformers' attention cannot be used on ``device``; None when it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this run uses {device.type}"
    try:
        import xformers.ops

        probe = torch.zeros(1, 8, 1, 32, device=device, dtype=torch.float16)
        xformers.ops.memory_efficient_attention(probe, probe, probe)
    except ImportError as error:
        return f"it is not installed for this torch ({error})"
    except (RuntimeError, NotImplementedError) as error:
        return f"its operator does not run here ({str(error).splitlines()[0]})"
    return None


def _load_unet(folder: Path) -> tuple[UNet2DModel, SchedulerMixin | None]:
    try:
        if (folder / "model_index.json").is_file():
            pipeline = DR2Pipeline.from_pretrained(folder, local_files_only=True)
            return pipeline.unet.float(), pipeline.scheduler
        config = folder / "config.json"
        if config.is_file() and json.loads(config.read_text()).get("_class_name") == "UNet2DModel":
            return UNet2DModel.from_pretrained(folder).float(), None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot load a face DDPM from {folder}: {error}") from error
    raise ConfigError(
        f"{folder} holds no diffusers model (model_index.json); "
        f"'dr2pipe convert' makes one from an official file"
    )
