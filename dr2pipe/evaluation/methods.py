"""The methods of a protocol; equal networks and equal first stages are shared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.config import load_config
from dr2pipe.core.diffusers_types import ModelMixin
from dr2pipe.core.errors import ConfigError, NotFiniteError
from dr2pipe.core.models import find_file
from dr2pipe.core.processes import process_state
from dr2pipe.diffusion.stage1 import DR2Config, describe_dr2
from dr2pipe.evaluation.protocol import Degradation, MethodConfig, PartnerFolder, Protocol
from dr2pipe.evaluation.shared_unet import SharedUNet
from dr2pipe.restoration.restorer import (
    EnhancerConfig,
    Restorer,
    build_restorer,
    describe_enhancer,
)
from dr2pipe.restoration.settings import CONTRASTS
from dr2pipe.runs.restore import RestoreConfig


@dataclass
class MethodResult:
    """What one method made of a batch.

    Attributes:
        pictures: (B,3,S,S) in [-1,1].
        coarse: (B,3,C,C) in [-1,1]; the degraded faces where there is no first stage.
        calls: network calls of stage 1 for each face.
    """

    pictures: torch.Tensor
    coarse: torch.Tensor
    calls: list[int]


class Methods:
    """All methods of a protocol, applied to batches of degraded faces.

    Raises:
        ConfigError: an unknown preset, a setting that is not valid, or missing weights.
    """

    def __init__(self, protocol: Protocol):
        if not protocol.methods:
            raise ConfigError("methods must name at least one")
        self.size, self.precision = protocol.size, protocol.precision
        self.configs = {name: resolve(name, m) for name, m in protocol.methods.items()}
        self.made: dict[tuple[str, str], PartnerFolder] = {}
        self._restorers: dict[str, Restorer] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._networks: dict[str, SharedUNet] = {}  # by hashes of their weights and config
        for config in self.configs.values():
            for stage in (config.dr2, config.enhancer):
                if stage is not None:
                    self._build(stage)

    def find_made(
        self,
        names: list[str],
        degradations: Sequence[Degradation],
        inputs: Callable[[Degradation], dict[str, Path]],
    ) -> None:
        """Find the pictures of other tools for all faces, by the folders of the degradations.

        Args:
            names: of the faces.
            degradations: of the study.
            inputs: the files of the degraded faces by name.
        """
        for method, config in self.configs.items():
            for degradation in degradations if config.folder is not None else ():
                folder = Path(str(config.folder)) / degradation.folder
                made = PartnerFolder(folder, names, inputs(degradation))
                self.made[method, degradation.folder] = made

    def describe(self) -> dict[str, Any]:
        """Return settings, network configs and weight hashes by method."""
        return {name: self._describe(config) for name, config in self.configs.items()}

    def restorer(self, name: str) -> Restorer:
        """Load both stages of one method, to draw several samples of a face.

        Raises:
            ConfigError: the method has no first stage, so all its samples would be equal.
        """
        config = self.configs[name]
        if config.dr2 is None:
            raise ConfigError(f"'{name}' has no first stage: all its samples would be equal")
        enhancer = config.enhancer or EnhancerConfig()
        return build_restorer(config.dr2, enhancer, **self._where())[0]

    @torch.no_grad()
    def __call__(
        self,
        degraded: torch.Tensor,
        seeds: list[int],
        names: list[str],
        degradation: Degradation,
    ) -> dict[str, MethodResult]:
        """Restore degraded faces by every method.

        Args:
            degraded: (B,3,D,D) in [-1,1].
            seeds: one per face.
            names: relative paths of the faces, for methods whose pictures lie in a folder.
            degradation: what the faces were degraded by.

        Returns:
            Results by method.

        Raises:
            NotFiniteError: a result is not finite.
        """
        coarse = self.coarse(degraded, seeds)
        results = {}
        for method, config in self.configs.items():
            faces, calls = coarse[method]
            pictures = faces
            if config.folder is not None:
                folder = self.made[method, degradation.folder]
                pixels = [folder.read(name, self.size) for name in names]
                pictures = images.to_tensor(np.stack(pixels))
            if config.enhancer is not None:
                enhancer = self._restorers[_key(config.enhancer)]
                pictures = enhancer.enhance(faces.to(enhancer.device))
            if not pictures.isfinite().all():
                where = f"'{method}' of {degradation.label}"
                raise NotFiniteError(f"{where} is not finite; try precision=fp32")
            pictures = images.resize_tensor(pictures.cpu().clamp(-1, 1), self.size)
            results[method] = MethodResult(pictures, faces, calls)
        return results

    @torch.no_grad()
    def coarse(
        self, degraded: torch.Tensor, seeds: list[int]
    ) -> dict[str, tuple[torch.Tensor, list[int]]]:
        """Return coarse faces and network calls by method; equal first stages run once.

        Args:
            degraded: (B,3,D,D) in [-1,1].
            seeds: one per face.
        """
        found: dict[str, tuple[torch.Tensor, list[int]]] = {}
        by_method = {}
        shown: dict[str | None, torch.Tensor] = {None: degraded}
        if any(config.contrast for config in self.configs.values()):
            shown["stretch"] = stretched(degraded)
        for name, config in self.configs.items():
            by_method[name] = shown[config.contrast], [0] * len(seeds)
            if config.dr2 is not None:
                stage = _key(config.dr2)
                key = stage + (config.contrast or "")
                if key not in found:
                    restorer = self._restorers[stage]
                    inputs = images.resize_tensor(shown[config.contrast], restorer.input_size)
                    result = restorer(inputs, seeds)
                    found[key] = result.coarse.cpu(), result.calls
                by_method[name] = found[key]
        return by_method

    @property
    def first_stage_size(self) -> int:
        """Side in pixels of what the first method with a first stage takes; ``size`` if none has."""
        sizes = (r.input_size for r in self._restorers.values() if r.remover is not None)
        return next(sizes, self.size)

    @property
    def calls(self) -> tuple[int, int]:
        """Calls of all networks of first stages so far, in pictures: requested, and computed.

        Those of students are not among them.
        """
        networks = self._networks.values()
        return sum(n.requested for n in networks), sum(n.computed for n in networks)

    def _build(self, stage: DR2Config | EnhancerConfig) -> None:
        key = _key(stage)
        if key in self._restorers:
            return
        if isinstance(stage, DR2Config):
            built = build_restorer(
                stage, EnhancerConfig(), wrap_unet=self._shared_unet, **self._where()
            )
        else:
            built = build_restorer(DR2Config(enabled=False), stage, **self._where())
        self._restorers[key], self._hashes[key] = built

    def _shared_unet(self, unet: ModelMixin, key: str) -> SharedUNet:
        """Return one network for all settings of a model, so that they share its outputs."""
        return self._networks.setdefault(key, SharedUNet(unet))

    def _where(self) -> dict[str, Any]:
        return {"device": process_state().device, "precision": self.precision}

    def _describe(self, config: MethodConfig) -> dict[str, Any]:
        described: dict[str, Any] = {}
        if config.folder is not None:
            described["made_elsewhere"] = True
        if config.contrast is not None:
            described["contrast"] = config.contrast
        if config.dr2 is not None:
            key = _key(config.dr2)
            remover = self._restorers[key].remover
            assert remover is not None
            settings = describe_dr2(config.dr2, remover)
            described["dr2"] = settings | {"weights_sha256": self._hashes[key]}
        if config.enhancer is not None:
            key = _key(config.enhancer)
            settings = describe_enhancer(config.enhancer, self._restorers[key].enhancer)
            described["enhancer"] = settings | {"weights_sha256": self._hashes[key]}
        return described


def resolve(name: str, config: MethodConfig) -> MethodConfig:
    """Return a method with its preset read, and without stages that do nothing.

    Raises:
        ConfigError: an unknown preset, or settings that exclude each other.
    """
    if config.preset is not None:
        if config.dr2 or config.enhancer or config.folder:
            raise ConfigError(f"method '{name}': a preset leaves nothing else to set")
        path = find_file("configs/restore", config.preset, what="preset")
        preset = load_config(RestoreConfig, path, ["input=-", "output=-"])
        config = MethodConfig(
            dr2=preset.dr2, enhancer=preset.enhancer, contrast=config.contrast or preset.contrast
        )
    if config.folder is not None and (config.dr2 or config.enhancer or config.contrast):
        raise ConfigError(f"method '{name}': pictures of a folder are not restored again")
    if config.contrast not in (None, *CONTRASTS):
        raise ConfigError(
            f"method '{name}': contrast '{config.contrast}': choose {', '.join(CONTRASTS)}"
        )
    dr2 = config.dr2 if config.dr2 is not None and config.dr2.enabled else None
    enhancer = config.enhancer
    if enhancer is not None and enhancer.name == "none":
        enhancer = None
    contrast = "stretch" if config.contrast == "stretch" else None
    return MethodConfig(dr2=dr2, enhancer=enhancer, folder=config.folder, contrast=contrast)


def stretched(pictures: torch.Tensor) -> torch.Tensor:
    """(B,3,H,W) in [-1,1], those that are dark or pale brought to the usual range of levels."""
    result = pictures.clone()
    for i, pixels in enumerate(images.to_uint8(pictures)):
        stretch = images.find_stretch(pixels)
        if stretch is not None:
            result[i] = images.to_tensor(np.asarray(stretch.apply(pixels), np.uint8))[0]
    return result


def _key(stage: DR2Config | EnhancerConfig) -> str:
    return type(stage).__name__ + json.dumps(dataclasses.asdict(stage), sort_keys=True)
