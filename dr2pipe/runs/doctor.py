"""``dr2pipe doctor``: what is installed, and what a run would use."""

from __future__ import annotations

import shutil

import torch

from dr2pipe.core.models import user_folder
from dr2pipe.core.precision import AUTO, multiplies
from dr2pipe.core.processes import process_state
from dr2pipe.core.records import versions
from dr2pipe.diffusion.networks import why_no_xformers
from dr2pipe.features.dlib_identity import PACKAGE, weights_file
from dr2pipe.metrics import available
from dr2pipe.restoration.precision import restoration_precision

_METRICS_SIZE_PX = 512  # pictures of which every metric is possible


def report() -> str:
    """A few lines of text about this installation."""
    lines = [f"{package} {version}" for package, version in versions().items()]
    lines.append(f"downloads and converted models: {user_folder()}")
    device = process_state().device
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            lines.append(f"device: cuda:{index} {properties.name}, {memory:.0f} GiB")
        low: str | None = "bf16" if multiplies(device, "bf16") else "fp16"
    else:
        lines.append(f"device: {device}, {torch.get_num_threads()} CPU threads")
        low = "bf16" if multiplies(device, "bf16") else None
        if shutil.which("nvidia-smi"):
            lines.append(
                "WARNING: this machine has an NVIDIA driver, but torch cannot use it "
                f"(torch {torch.__version__}); install a CUDA build of torch"
            )
    faster = f"; precision={low} is the faster choice here" if low else ""
    auto = restoration_precision(AUTO, "sparnet", device)
    lines.append(f"precision: {auto} in the default preset{faster}")
    reason = why_no_xformers(device)
    lines.append("attention: sdpa (torch's own)")
    lines.append("xformers: can be used" if reason is None else f"xformers: no, {reason}")
    reason = f"no, it needs {PACKAGE}: pip install 'dr2pipe[identity]'"
    lines.append(f"identity of faces: {'can be compared' if weights_file() else reason}")
    names, _ = available(None, {}, _METRICS_SIZE_PX)
    lines.append(f"metrics without metric_files: {', '.join(names)}")
    return "\n".join(lines)
