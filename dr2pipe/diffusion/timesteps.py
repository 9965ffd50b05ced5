"""The respaced chain: schedulers, the indices ω and τ, and which timesteps are visited.

ω and τ count steps of a chain of ``num_steps`` (0 is the cleanest). Index i of that chain is
the i-th smallest timestep of the scheduler's own grid.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from dr2pipe.core.diffusers_types import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from dr2pipe.core.errors import ConfigError

PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("learned_range", "fixed_small", "fixed_large")
SCHEDULERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}

# ω - τ for each low-pass factor up to the given one (official DR2 demo).
_STEPS_ABOVE_TAU = {1: 5, 2: 10, 4: 20, 8: 25, 16: 30}


def default_omega(tau: int, factor: int, num_steps: int = 100) -> int:
    """Return ω for (N, τ): τ + 5, 10, 20, 25, 30 for N up to 1, 2, 4, 8, 16; at most num_steps - 1."""
    offsets = [offset for limit, offset in _STEPS_ABOVE_TAU.items() if factor <= limit]
    return min(tau + (offsets[0] if offsets else 30), num_steps - 1)


def build_scheduler(
    name: str,
    *,
    variance: str = "learned_range",
    prediction_type: str = "epsilon",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    beta_schedule: str = "linear",
) -> SchedulerMixin:
    """Return a diffusers scheduler for ``ddpm``, ``ddim`` or ``dpmsolver++``.

    The grid of ddpm is evenly spaced and includes both ends: published (N, τ) refer to it. The
    grids of the others start at the last timestep and have a constant distance.

    Args:
        name: a key of ``SCHEDULERS``.
        variance: of ddpm's posterior: ``learned_range`` for networks with 6 output channels,
            ``fixed_small`` or ``fixed_large`` for 3 (Ho et al. 2020, §3.2). The other two
            samplers are deterministic.
        prediction_type: what the network predicts, one of ``PREDICTIONS``.
        num_train_timesteps: length of the chain that the network was trained on.
        beta_start: β of the first timestep.
        beta_end: β of the last timestep.
        beta_schedule: how β grows, as diffusers names it.

    Raises:
        ConfigError: unknown name, variance or prediction type.
    """
    _check_choice("scheduler", name, SCHEDULERS)
    _check_choice("variance", variance, VARIANCES)
    _check_choice("prediction_type", prediction_type, PREDICTIONS)
    shared = {
        "num_train_timesteps": num_train_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "beta_schedule": beta_schedule,
        "prediction_type": prediction_type,
    }
    if name == "ddpm":
        return DDPMScheduler(**shared, variance_type=variance, timestep_spacing="linspace")
    if name == "ddim":
        return DDIMScheduler(**shared, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler(
        **shared, algorithm_type="dpmsolver++", timestep_spacing="trailing"
    )


def scheduler_name(scheduler: SchedulerMixin) -> str:
    """Return the key in ``SCHEDULERS`` of a scheduler; ConfigError for one that DR2 cannot use."""
    for name, kind in SCHEDULERS.items():
        if type(scheduler) is kind:
            algorithm = scheduler.config.get("algorithm_type", "dpmsolver++")
            if algorithm != "dpmsolver++":
                raise ConfigError(
                    f"algorithm_type '{algorithm}' cannot be used; choose dpmsolver++"
                )
            prediction = scheduler.config.prediction_type
            if prediction not in PREDICTIONS:
                raise ConfigError(
                    f"prediction_type '{prediction}' cannot be used; choose {', '.join(PREDICTIONS)}"
                )
            return name
    raise ConfigError(
        f"{type(scheduler).__name__} cannot be used for DR2 (its steps would discard the "
        f"guidance or need a grid of their own); choose one of {', '.join(SCHEDULERS)}"
    )


def check_chain(omega: int, tau: int, num_steps: int, num_evaluations: int | None = None) -> None:
    """Raise ConfigError unless 0 <= τ <= ω < num_steps and ``num_evaluations`` fits between."""
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1")
    if not 0 <= tau < num_steps:
        raise ConfigError(f"tau={tau} must lie in 0..{num_steps - 1} (num_steps={num_steps})")
    if not tau <= omega < num_steps:
        raise ConfigError(
            f"omega={omega} must lie in {tau}..{num_steps - 1}: not below tau={tau}, and "
            f"below num_steps={num_steps}; where a preset fixes omega, set it too"
        )
    if num_evaluations is not None:
        most, least = omega - tau + 1, min(2, omega - tau + 1)
        if not least <= num_evaluations <= most:
            raise ConfigError(
                f"num_evaluations={num_evaluations} must lie in {least}..{most} "
                f"for omega={omega} and tau={tau}, or be null for all of them"
            )


def check_max_timestep(first_timestep: int, max_timestep: int | None) -> None:
    """Raise ConfigError where a chain starts above what the network was trained on.

    Args:
        first_timestep: the timestep of ω.
        max_timestep: the highest timestep of training; None for all of them.
    """
    if max_timestep is not None and first_timestep > max_timestep:
        raise ConfigError(
            f"omega is timestep {first_timestep}, and the network was trained on timesteps "
            f"0..{max_timestep}; choose a smaller omega"
        )


def start_chain(
    scheduler: SchedulerMixin,
    *,
    omega: int,
    tau: int,
    num_steps: int = 100,
    num_evaluations: int | None = None,
) -> tuple[SchedulerMixin, list[int]]:
    """Return a scheduler that is ready to step, and the timesteps from ω down to τ.

    The scheduler given is not changed. The one returned is a copy with its grid set, and its
    ``prediction_type`` is ``sample``: its ``step`` takes the estimate of x0. With
    ``num_evaluations``, only that many indices are visited, evenly spread, both ends included.

    Raises:
        ConfigError: see :func:`check_chain` and :func:`scheduler_name`.
    """
    check_chain(omega, tau, num_steps, num_evaluations)
    name = scheduler_name(scheduler)
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps)
    grid = sorted(int(t) for t in scheduler.timesteps)
    count = num_evaluations or omega - tau + 1
    indices = torch.linspace(omega, tau, count, dtype=torch.float64).round().long().tolist()
    timesteps = [grid[i] for i in indices]
    if name == "ddpm":
        scheduler.register_to_config(prediction_type="sample")
        if num_evaluations is not None:
            scheduler.set_timesteps(timesteps=timesteps)
        return scheduler, timesteps
    # The step of DDIMScheduler assumes a constant distance. Without noise DDIM is the
    # first-order DPM-Solver++ (Lu et al. 2022, §4.1), which takes any list of timesteps.
    config = dict(scheduler.config)
    order = 1 if name == "ddim" else config["solver_order"]
    scheduler = DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=order, prediction_type="sample"
    )
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler, timesteps


def _check_choice(setting: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown {setting} '{value}'; choose one of {', '.join(choices)}")
