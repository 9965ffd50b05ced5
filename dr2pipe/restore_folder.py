"""``dr2pipe restore``: a configuration, a folder run, both stages."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from omegaconf import MISSING

import dr2pipe
from dr2pipe import images
from dr2pipe.config import ConfigError, to_dict
from dr2pipe.processes import process_state
from dr2pipe.restore import DR2Config, EnhancerConfig, Restorer, build_restorer
from dr2pipe.runs import BatchResult, FolderRun, RunSummary
from dr2pipe.sheets import side_by_side


@dataclass
class RestoreConfig:
    input: str = MISSING  # a picture or a folder of pictures (recursive)
    output: str = MISSING  # a folder
    seed: int = 0
    dr2: DR2Config = field(default_factory=DR2Config)
    enhancer: EnhancerConfig = field(default_factory=EnhancerConfig)
    batch_size: int = 8  # pictures per process
    precision: str = "fp32"  # fp32 | bf16 | fp16
    attention: str = "auto"  # auto | sdpa | xformers
    channels_last: bool | None = None  # null: in bf16 and fp16, where it is faster
    compile: bool = False
    save_coarse: bool = False
    save_compare: bool = False  # input | coarse | restored, side by side
    loader_threads: int = 2
    max_pixels: int = images.MAX_PIXELS


def restore_folder(config: RestoreConfig) -> RunSummary:
    """Restore ``config.input`` into ``config.output``; see the README for what a run leaves.

    Raises:
        ConfigError, ValueError: an invalid setting; nothing has been written then.
    """
    if not config.input or not config.output:
        raise ConfigError("input and output must not be empty")
    restorer, weight_hashes = build_restorer(
        config.dr2,
        config.enhancer,
        device=process_state().device,
        precision=config.precision,
        attention=config.attention,
        channels_last=config.channels_last,
        compile=config.compile,
    )
    settings = _settings(config, restorer, weight_hashes)
    outputs = ["restored"]
    outputs += ["coarse"] if config.save_coarse else []
    outputs += ["compare"] if config.save_compare else []
    versions = {
        "dr2pipe": dr2pipe.__version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    run = FolderRun(
        config.input,
        config.output,
        process=lambda pictures, seeds: restore_batch(restorer, pictures, seeds, outputs),
        size=restorer.input_size,
        output_size=restorer.output_size,
        settings=settings,
        outputs=outputs,
        seed=config.seed,
        batch_size=config.batch_size,
        loader_threads=config.loader_threads,
        max_pixels=config.max_pixels,
        run_description={
            "config": to_dict(config),
            "settings": settings,
            "versions": versions,
        },
        png_text={"version": dr2pipe.__version__, "settings": settings},
    )
    return run.run()


def restore_batch(
    restorer: Restorer, pictures: torch.Tensor, seeds: list[int], outputs: list[str]
) -> BatchResult:
    """Pictures (B,3,S,S) in [-1,1] as 8-bit results by output subfolder."""
    result = restorer(pictures, seeds)
    degraded, coarse, restored = (
        images.to_uint8(t) for t in (pictures, result.coarse, result.restored)
    )
    pixels = []
    for index in range(len(pictures)):
        made = {"restored": restored[index], "coarse": coarse[index]}
        if "compare" in outputs:
            made["compare"] = side_by_side([degraded[index], coarse[index], restored[index]])
        pixels.append({name: made[name] for name in outputs})
    note = "not finite in low precision, restored again in float32"
    return BatchResult(pixels, [[note] if retried else [] for retried in result.in_fp32])


def _settings(
    config: RestoreConfig, restorer: Restorer, weight_hashes: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides a picture's result, with ω as a number."""
    dr2: dict[str, Any] = {"enabled": False}
    if restorer.remover is not None:
        scheduler = restorer.remover.scheduler
        dr2 = dataclasses.asdict(config.dr2) | {
            "omega": restorer.remover.omega,
            "scheduler": type(scheduler).__name__,
            "scheduler_config": _stated(scheduler.config),
        }
        # Where a model lies does not matter; its weights do, and their hashes are below.
        dr2.pop("model")
    return {
        "seed": config.seed,
        "dr2": dr2,
        "enhancer": {"name": config.enhancer.name, **_stated(restorer.enhancer.config)},
        "precision": config.precision,
        "weights_sha256": weight_hashes,
    }


def _stated(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers configuration without its private entries, as plain values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k[0] != "_"}
