"""Other settings of stage 1 for the same networks: by how damaged a face is, or as a grid."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.stage1 import AutoRemover, DR2Config, Remover
from dr2pipe.diffusion.timesteps import check_max_timestep, default_omega, start_chain
from dr2pipe.restoration.restorer import Restorer

DAMAGES = ("mild", "medium", "severe", "auto")
_MOST_TAU = 35  # of the table of DR2's paper


@dataclass
class Tried:
    """What one setting makes of one face.

    Attributes:
        factor: N.
        tau: τ.
        omega: ω.
        calls: of the network.
        seconds: of stage 1.
        coarse: (1,3,S,S) around [-1,1], on the CPU.
    """

    factor: int
    tau: int
    omega: int
    calls: int
    seconds: float
    coarse: torch.Tensor


def settings_for(damage: str, config: DR2Config) -> list[str]:
    """Settings of stage 1 for a damage in words, as ``--set`` takes them.

    The preset's own are for ``medium``. N and τ are halved for ``mild``, and doubled for
    ``severe``: from (4, 22) this makes (8, 35), which DR2's authors published.

    Args:
        damage: one of ``DAMAGES``.
        config: stage 1 of the preset.

    Raises:
        ConfigError: an unknown word, or ``auto`` where nothing is fitted for the model.
    """
    if damage not in DAMAGES:
        raise ConfigError(f"damage '{damage}': choose {', '.join(DAMAGES)}")
    if not config.enabled:
        return []
    if damage == "medium":
        return [] if config.mode == "fixed" else ["dr2.mode=fixed"]
    if damage == "auto":
        if config.mode == "auto":
            return []
        if config.auto != f"auto_{config.model}":
            raise ConfigError(
                f"auto is not fitted for the model {config.model}: choose mild, medium or severe"
            )
        return ["dr2.mode=auto"]
    halves = damage == "mild"
    factor = max(1, config.factor // 2) if halves else config.factor * 2
    tau = config.tau // 2 if halves else max(config.tau, min(config.tau * 2, _MOST_TAU))
    return stage1_settings(factor, tau, config)


def stage1_settings(factor: int, tau: int, config: DR2Config) -> list[str]:
    """N and τ, with ω and the number of calls that go with them, as ``--set`` takes them.

    Where the preset gives ω, it stays as far above τ.
    """
    omega = default_omega(tau, factor, config.num_steps)
    if config.omega is not None:
        omega = min(tau + config.omega - config.tau, config.num_steps - 1)
    settings = [f"dr2.factor={factor}", f"dr2.tau={tau}", f"dr2.omega={omega}"]
    if config.num_evaluations is not None:
        calls = min(config.num_evaluations, omega - tau + 1)
        settings.append(f"dr2.num_evaluations={calls}")
    return settings


def try_settings(
    restorer: Restorer,
    degraded: torch.Tensor,
    seed: int,
    *,
    factors: Sequence[int] = (1, 2, 4),
    taus: Sequence[int] = (3, 6, 12, 22),
) -> list[list[Tried]]:
    """Coarse faces of one face over N and τ, with ω by the table of DR2's paper.

    Args:
        restorer: with a stage 1, whose network, scheduler and number of calls are used.
        degraded: (1,3,S,S) in [-1,1].
        seed: of the noise.
        factors: N, one for each row; those that do not divide S are left out.
        taus: τ, one for each column; those above what the network was trained on are left out.

    Raises:
        ConfigError: no stage 1.
    """
    remover = restorer.remover
    if isinstance(remover, AutoRemover):
        remover = next(one for one in remover.removers if one is not None)
    if remover is None:
        raise ConfigError("this preset has no stage 1, so there is no N and no τ to choose")
    pictures = degraded.to(restorer.device)
    rows = []
    for factor in factors:
        if restorer.input_size % factor:
            continue
        found = [_with(remover, factor, tau) for tau in taus]
        rows.append([_try(one, factor, pictures, seed) for one in found if one is not None])
    return rows


def _with(remover: Remover, factor: int, tau: int) -> Remover | None:
    omega = default_omega(tau, factor, remover.num_steps)
    calls = remover.num_evaluations and min(remover.num_evaluations, omega - tau + 1)
    changed = dataclasses.replace(
        remover, low_pass=BicubicLowPass(factor), tau=tau, omega=omega, num_evaluations=calls
    )
    _, timesteps = start_chain(
        changed.scheduler,
        omega=omega,
        tau=tau,
        num_steps=changed.num_steps,
        num_evaluations=calls,
    )
    try:
        check_max_timestep(timesteps[0], changed.max_timestep)
    except ConfigError:
        return None
    return changed


@torch.no_grad()
def _try(remover: Remover, factor: int, pictures: torch.Tensor, seed: int) -> Tried:
    began = time.monotonic()
    coarse = remover(pictures, [torch.Generator().manual_seed(seed)]).float().cpu()
    seconds = time.monotonic() - began
    return Tried(factor, remover.tau, remover.omega, remover.calls, seconds, coarse)
