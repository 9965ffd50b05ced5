"""The folders that the commands fill below their output.

A run looks for its inputs everywhere but in these, so that the results of one run are not the
inputs of the next.
"""

from __future__ import annotations

RESTORED = "restored"  # restore, make_coarse
REPAIRED = "repaired"  # restore: inputs after their holes were filled
FACES = "faces"  # restore: of each face its input, coarse, restored and mask; cut-faces
COARSE = "coarse"  # restore: results of stage 1
COMPARE = "compare"  # restore: input, coarse and restored side by side
SPREAD = "spread"  # restore: where several samples differ
INPAINTED = "inpainted"  # inpaint; further samples in inpainted_2 and on
MIXTURES = "mixtures"  # inpaint: styles of two exemplars mixed
DEGRADED = "degraded"  # degrade

RESULT_FOLDERS = (RESTORED, FACES, REPAIRED, COARSE, COMPARE, SPREAD, INPAINTED, MIXTURES, DEGRADED)


def sample_folder(number: int) -> str:
    """The folder of one of the samples of ``inpaint``, which are counted from 1."""
    return INPAINTED if number == 1 else f"{INPAINTED}_{number}"


def is_made_by_networks(name: str) -> bool:
    """Whether the pictures of a result folder are the user's, with parts that networks made."""
    return name == RESTORED or name.partition("_")[0] == INPAINTED


def is_result_folder(name: str) -> bool:
    """Whether a command fills a folder of this name."""
    base, _, number = name.partition("_")
    return name in RESULT_FOLDERS or (base == INPAINTED and number.isdigit())
