"""Gentler settings of stage 1, for faces that the usual ones turn into somebody else."""

from __future__ import annotations

import dataclasses
from typing import Any

from dr2pipe.diffusion.low_pass import BicubicLowPass
from dr2pipe.diffusion.stage1 import AutoRemover, Remover
from dr2pipe.diffusion.timesteps import default_omega

_HALVINGS = 2


def gentler_removers(remover: Remover | AutoRemover | None) -> list[tuple[Remover, dict[str, Any]]]:
    """Stage 1 with N and τ halved once, and twice; and these settings, for the manifest.

    A smaller N keeps more of the input, and a smaller τ leaves less to be made up. The table of
    DR2's paper gives ω (:func:`dr2pipe.diffusion.timesteps.default_omega`), where that is not more
    than before. Low-pass filters other than the bicubic one stay as they are. Settings that change nothing are left out.
    """
    if isinstance(remover, AutoRemover):
        # The strongest candidate: its halves are gentler than most.
        candidates = [one for one in remover.removers if one is not None]
        remover = max(candidates, key=lambda one: one.tau)
    found: list[tuple[Remover, dict[str, Any]]] = []
    if remover is None:
        return found
    before = remover
    for halving in range(1, _HALVINGS + 1):
        tau, low_pass, factor = remover.tau >> halving, remover.low_pass, None
        if isinstance(low_pass, BicubicLowPass):
            factor = max(1, low_pass.factor >> halving)
            low_pass = BicubicLowPass(factor)
        omega = max(tau, min(default_omega(tau, factor or 1, remover.num_steps), remover.omega))
        if factor is None:
            omega = tau + remover.omega - remover.tau
        calls = remover.num_evaluations and min(remover.num_evaluations, omega - tau + 1)
        changed = dataclasses.replace(
            remover, tau=tau, omega=omega, low_pass=low_pass, num_evaluations=calls
        )
        if changed != before:
            settings = {"factor": factor, "tau": tau, "omega": omega}
            found.append((changed, {k: v for k, v in settings.items() if v is not None}))
        before = changed
    return found
