"""The methods of a protocol, with networks and first stages that they share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import load_config, resource, stable_hash
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import process_state
from dr2pipe.diffusion.stage1 import describe_dr2, plain_config
from dr2pipe.evaluation.protocol import Degradation, MethodConfig, Protocol, partner
from dr2pipe.evaluation.shared_unet import SharedUNet
from dr2pipe.restoration.restorer import (
    DR2Config,
    EnhancerConfig,
    Restorer,
    build_restorer,
    describe_enhancer,
)
from dr2pipe.runs.restore import RestoreConfig


@dataclass
class Made:
    """What one method made of a batch: (B,3,S,S) in [-1,1], and network calls of stage 1 each.

    ``coarse``: (B,3,C,C), the degraded faces where there is no first stage.
    """

    pictures: torch.Tensor
    coarse: torch.Tensor
    calls: list[int]


class Methods:
    """All methods of a protocol on batches of degraded faces.

    Raises:
        ConfigError, ValueError: an unknown preset, a setting that is not valid, missing weights.
    """

    def __init__(self, protocol: Protocol):
        if not protocol.methods:
            raise ConfigError("methods must name at least one")
        self.size, self.precision = protocol.size, protocol.precision
        self.configs = {name: resolve(name, m) for name, m in protocol.methods.items()}
        self._restorers: dict[str, Restorer] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._networks: dict[str, SharedUNet] = {}  # by hashes of their weights and config
        for config in self.configs.values():
            for stage in (config.dr2, config.enhancer):
                if stage is not None:
                    self._build(stage)

    def describe(self) -> dict[str, Any]:
        """Settings, networks' configs and weight hashes of every method."""
        return {name: self._describe(config) for name, config in self.configs.items()}

    def restorer(self, name: str) -> Restorer:
        """Both stages of one method, for several samples of a face."""
        config = self.configs[name]
        if config.dr2 is None:
            raise ConfigError(f"'{name}' has no first stage: all its samples would be equal")
        enhancer = config.enhancer or EnhancerConfig()
        return build_restorer(config.dr2, enhancer, **self._shared())[0]

    @torch.no_grad()
    def __call__(
        self,
        degraded: torch.Tensor,
        seeds: list[int],
        names: list[str],
        degradation: Degradation,
    ) -> dict[str, Made]:
        """Every method's results for (B,3,D,D) in [-1,1].

        Raises:
            FloatingPointError: a result is not finite.
        """
        coarse = self.coarse(degraded, seeds)
        made = {}
        for method, config in self.configs.items():
            faces, calls = coarse[method]
            pictures = faces
            if config.folder is not None:
                folder = Path(config.folder) / degradation.folder
                pixels = [partner(folder, name, self.size) for name in names]
                pictures = images.to_tensor(np.stack(pixels))
            if config.enhancer is not None:
                enhancer = self._restorers[_key(config.enhancer)]
                pictures = enhancer.enhance(faces.to(enhancer.device))
            if not pictures.isfinite().all():
                where = f"'{method}' of {degradation.label}"
                raise FloatingPointError(f"{where} is not finite; try precision=fp32")
            pictures = images.resize_tensor(pictures.cpu().clamp(-1, 1), self.size)
            made[method] = Made(pictures, faces, calls)
        return made

    @torch.no_grad()
    def coarse(
        self, degraded: torch.Tensor, seeds: list[int]
    ) -> dict[str, tuple[torch.Tensor, list[int]]]:
        """By method, coarse faces and network calls; equal first stages run once."""
        found: dict[str, tuple[torch.Tensor, list[int]]] = {}
        by_method = {}
        for name, config in self.configs.items():
            by_method[name] = degraded, [0] * len(seeds)
            if config.dr2 is not None:
                key = _key(config.dr2)
                if key not in found:
                    restorer = self._restorers[key]
                    inputs = images.resize_tensor(degraded, restorer.input_size)
                    result = restorer(inputs, seeds)
                    found[key] = result.coarse.cpu(), result.calls
                by_method[name] = found[key]
        return by_method

    @property
    def first_stage_size(self) -> int:
        """Side in pixels at which the first of the first stages takes pictures."""
        sizes = (r.input_size for r in self._restorers.values() if r.remover is not None)
        return next(sizes, self.size)

    @property
    def calls(self) -> tuple[int, int]:
        """Network calls of all first stages so far, in pictures: asked for, and made."""
        networks = self._networks.values()
        return sum(n.asked for n in networks), sum(n.made for n in networks)

    def _build(self, stage: DR2Config | EnhancerConfig) -> None:
        key = _key(stage)
        if key in self._restorers:
            return
        if isinstance(stage, DR2Config):
            built = build_restorer(stage, EnhancerConfig(), **self._shared())
        else:
            built = build_restorer(DR2Config(enabled=False), stage, **self._shared())
        restorer, self._hashes[key] = built
        if restorer.remover is not None:
            # Settings of one model share its network, and what it computed.
            unet = restorer.remover.unet
            model = self._hashes[key]["dr2"] + stable_hash(plain_config(unet.config))
            shared = self._networks.setdefault(model, SharedUNet(unet))
            restorer.remover.unet = shared
        self._restorers[key] = restorer

    def _shared(self) -> dict[str, Any]:
        return {"device": process_state().device, "precision": self.precision}

    def _describe(self, config: MethodConfig) -> dict[str, Any]:
        described: dict[str, Any] = {}
        if config.folder is not None:
            described["made_elsewhere"] = True
        if config.dr2 is not None:
            key = _key(config.dr2)
            settings = describe_dr2(config.dr2, self._restorers[key].remover)
            described["dr2"] = settings | {"weights_sha256": self._hashes[key]}
        if config.enhancer is not None:
            key = _key(config.enhancer)
            settings = describe_enhancer(config.enhancer, self._restorers[key].enhancer)
            described["enhancer"] = settings | {"weights_sha256": self._hashes[key]}
        return described


def resolve(name: str, config: MethodConfig) -> MethodConfig:
    """A method with its preset read, and without stages that do nothing.

    Raises:
        ConfigError: an unknown preset, or settings that exclude each other.
    """
    if config.preset is not None:
        if config.dr2 or config.enhancer or config.folder:
            raise ConfigError(f"method '{name}': a preset leaves nothing else to set")
        path = Path(config.preset)
        if not path.is_file():
            path = resource("configs") / "restore" / f"{config.preset}.yaml"
        preset = load_config(RestoreConfig, path, ["input=-", "output=-"])
        config = MethodConfig(dr2=preset.dr2, enhancer=preset.enhancer)
    if config.folder is not None and (config.dr2 or config.enhancer):
        raise ConfigError(f"method '{name}': pictures of a folder are not restored again")
    dr2 = config.dr2 if config.dr2 is not None and config.dr2.enabled else None
    enhancer = config.enhancer
    if enhancer is not None and enhancer.name == "none":
        enhancer = None
    return MethodConfig(dr2=dr2, enhancer=enhancer, folder=config.folder)


def _key(stage: DR2Config | EnhancerConfig) -> str:
    return type(stage).__name__ + json.dumps(dataclasses.asdict(stage), sort_keys=True)
