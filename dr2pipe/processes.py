"""Which kind of device the processes of a run share."""

import os

import torch


def use_cpu() -> bool:
    """Whether to run on the CPU: no accelerator here, or ACCELERATE_USE_CPU is set.

    accelerate has to be told: left to itself it takes several CPU processes for as many
    runs of one.
    """
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return forced or not torch.accelerator.is_available()
