"""Make the pictures and numbers of a model card.

Usage: ``python scripts/research/model_card.py WHAT PNG ...``

    losses PNG RUN [RUN ...]    loss curves; prints steps, speed and time
    terms PNG RUN               every term of a recipe's loss
    samples PNG MODEL           16 faces that a DDPM makes from noise alone
    restorations PNG NPZ        16 faces through the default preset
    inpaintings PNG MODEL NPZ   8 faces with holes, filled by an EXE-GAN
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from dr2pipe.cli import report_errors
from dr2pipe.core import files, images
from dr2pipe.core.config import load_config, resource, stable_seed
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.sheets import contact_sheet
from dr2pipe.degradations import degrade
from dr2pipe.degradations.masks import MASKS, draw_mask
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.stage1 import DR2Config, load_remover
from dr2pipe.restoration.inpainter import InpainterConfig, load_inpainter
from dr2pipe.restoration.restorer import build_restorer
from dr2pipe.runs.restore import RestoreConfig

_SAMPLING_STEPS = 50


def read_log(run: str | Path) -> list[dict[str, float]]:
    """Read the lines of a training run's ``log.jsonl``.

    Raises:
        Dr2pipeError: there is none, or it is empty or of an older version.
    """
    path = Path(run) / "log.jsonl"
    if not path.is_file() or not path.read_text().strip():
        raise Dr2pipeError(f"no training log at {path}")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if "pictures" not in lines[0]:
        raise Dr2pipeError(f"{path} was written by an older version, which did not count pictures")
    return lines


def summarise(log: list[dict[str, float]]) -> str:
    """Return steps, pictures, speed, time and losses of a run, a line each."""
    steps = np.array([line["step"] for line in log])
    speeds = np.array([line["images_per_second"] for line in log])
    pictures = np.array([int(line["pictures"]) for line in log])  # of all processes
    seconds = pictures / speeds
    waited = np.array([line["data_wait_share"] for line in log])
    lines = [
        f"steps {steps[-1]}, pictures {pictures.sum()}, {seconds.sum() / 60:.0f} minutes",
        f"pictures/s {np.median(speeds):.1f} at the median",
        f"waiting for data {100 * (waited * seconds).sum() / seconds.sum():.1f} % of the time",
    ]
    for name in _losses(log):
        last = [line[name] for line in log if line["step"] > 0.9 * steps[-1]]
        lines.append(f"{name} {np.mean(last):.4f}, mean of the last tenth of the steps")
    return "\n".join(lines)


def plot_losses(logs: dict[str, list[dict[str, float]]], *, terms: bool = False) -> bytes:
    """Plot the losses of runs over their steps, or with ``terms`` their terms, as a PNG file."""
    figure = Figure(figsize=(9, 5) if terms else (7, 3.5), layout="constrained")
    axes = figure.subplots()
    if terms:  # more lines than the usual ten colours
        axes.set_prop_cycle(color=colormaps["tab20"].colors)
    for title, log in logs.items():
        for name in _terms(log) if terms else _losses(log):
            lines = [x for x in log if x.get(name, 0) > 0]  # terms may end, the axis has no zero
            axes.plot(
                [x["step"] for x in lines],
                [x[name] for x in lines],
                label=f"{title} {name}" if len(logs) > 1 else name,
            )
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    if terms:
        figure.legend(loc="outside right upper", fontsize="small")
    else:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def sample_faces(model: str, count: int = 16, *, seed: int = 0) -> np.ndarray:
    """Return faces that a DDPM makes from noise alone, (count,S,S,3) uint8 RGB.

    DR2 with a filter that keeps nothing is ordinary sampling. It starts at the highest
    timestep that the model was trained on.
    """
    config = DR2Config(
        model=model, scheduler="ddim", low_pass="none", omega=1, tau=0, num_steps=1000
    )
    remover, _ = load_remover(config)
    trained_up_to = 999 if remover.max_timestep is None else remover.max_timestep
    noiseless = torch.zeros(count, 3, remover.size, remover.size)
    generators = [
        torch.Generator().manual_seed(stable_seed(seed, "sample", i)) for i in range(count)
    ]
    faces = remove_degradation(
        remover.unet.eval(),
        remover.scheduler,
        torch.zeros_like,
        noiseless,
        omega=trained_up_to,
        tau=0,
        num_steps=1000,
        num_evaluations=_SAMPLING_STEPS,
        generator=generators,
    )
    return images.to_uint8(faces)


def write_samples(model: str, path: str | Path) -> None:
    """Write sixteen samples in four rows, each face at twice its size."""
    faces = sample_faces(model)
    side = 2 * faces.shape[1]
    faces = [images.resize_pixels(face, (side, side)) for face in faces]
    rows = [faces[i : i + 4] for i in range(0, len(faces), 4)]
    images.write_png(path, contact_sheet(rows))


def write_restorations(
    preset: str, faces: str | Path, path: str | Path, *, count: int = 16, seed: int = 0
) -> None:
    """Write faces degraded, coarse, restored and clean, two a row; every other one is severe.

    Args:
        preset: name in configs/restore.
        faces: ``.npz`` with ``images`` (N,S,S,3) uint8.
        path: picture to write.
        count: number of faces, taken evenly spaced.
        seed: of degradations and restorations.
    """
    config = load_config(
        RestoreConfig,
        resource("configs") / "restore" / f"{preset}.yaml",
        ["input=unused", "output=unused"],
    )
    restorer, _ = build_restorer(config.dr2, config.enhancer)
    with np.load(faces, allow_pickle=False) as archive:
        clean = archive["images"]
    clean = clean[np.linspace(0, len(clean) - 1, count).astype(int)]
    given = (restorer.input_size, restorer.input_size)
    degraded = []
    for i, face in enumerate(clean):
        rng = np.random.default_rng(stable_seed(seed, "restoration", i))
        small = images.resize_pixels(face, given)
        degraded.append(degrade(small, ("medium", "severe")[i % 2], rng)[0])
    seeds = [stable_seed(seed, i) for i in range(len(clean))]
    result = restorer(images.to_tensor(np.stack(degraded)), seeds)
    stages = (degraded, images.to_uint8(result.coarse), images.to_uint8(result.restored), clean)
    shown = (restorer.output_size, restorer.output_size)
    blocks = [
        [images.resize_pixels(picture, shown) for picture in row]
        for row in zip(*stages, strict=True)
    ]
    rows = [[*first, *second] for first, second in zip(blocks[::2], blocks[1::2], strict=True)]
    images.write_png(path, contact_sheet(rows))


def write_inpaintings(
    model: str, faces: str | Path, path: str | Path, *, count: int = 8, seed: int = 0
) -> None:
    """Write faces with a hole, their exemplar (the next face), the filling, the face; two a row.

    Args:
        model: folder of an EXE-GAN, or its name in checkpoints/.
        faces: ``.npz`` with ``images`` (N,S,S,3) uint8.
        path: picture to write.
        count: number of faces, taken evenly spaced.
        seed: of masks and fillings.
    """
    inpainter, _ = load_inpainter(InpainterConfig(model))
    with np.load(faces, allow_pickle=False) as archive:
        clean = archive["images"]
    clean = clean[np.linspace(0, len(clean) - 1, count).astype(int)]
    kinds, holes = list(MASKS), []
    for i in range(count):
        rng = np.random.default_rng(stable_seed(seed, "hole", i))
        holes.append(draw_mask(kinds[i % len(kinds)], clean.shape[1], rng))
    holes, exemplars = np.stack(holes), np.roll(clean, -1, axis=0)
    filled = inpainter(
        images.to_tensor(clean),
        torch.from_numpy(holes).float()[:, None],
        inpainter.styles(images.to_tensor(exemplars)),
        [stable_seed(seed, i) for i in range(count)],
    )
    known = np.where(holes[..., None], 128, clean).astype(np.uint8)
    side = (2 * clean.shape[1], 2 * clean.shape[1])
    blocks = [
        [images.resize_pixels(picture, side) for picture in row]
        for row in zip(known, exemplars, images.to_uint8(filled), clean, strict=True)
    ]
    rows = [[*first, *second] for first, second in zip(blocks[::2], blocks[1::2], strict=True)]
    images.write_png(path, contact_sheet(rows))


def write_losses(runs: list[str], path: str | Path, *, terms: bool = False) -> str:
    """Plot the logs of training runs into ``path``; return their summaries."""
    logs = {_title(run, runs): read_log(run) for run in runs}
    files.write_bytes(path, plot_losses(logs, terms=terms))
    return "\n\n".join(f"{title}\n{summarise(log)}" for title, log in logs.items())


def _title(run: str, runs: list[str]) -> str:
    """Return the folder's name, or the whole path where names repeat."""
    names = [Path(other).name for other in runs]
    return run if names.count(Path(run).name) > 1 else Path(run).name


def _losses(log: list[dict[str, float]]) -> list[str]:
    return [name for name in log[-1] if name.endswith("/loss")]


def _terms(log: list[dict[str, float]]) -> list[str]:
    """Return the terms of every loss, or the loss itself where the log has no terms of it."""
    names = dict.fromkeys(name for line in log for name in line if "/" in name)
    losses, parts = _losses(log), [n for n in names if not n.endswith(("/loss", "/grad_norm"))]
    split = {name.split("/")[0] for name in parts}
    return parts + [name for name in losses if name.split("/")[0] not in split]


def main() -> int:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ["losses", "terms", "samples", "restorations", "inpaintings"]
    parser.add_argument("what", choices=kinds)
    parser.add_argument("png", help="picture to write")
    parser.add_argument(
        "of", nargs="+", help="training runs, one DDPM, an EXE-GAN, an .npz of faces"
    )
    options = parser.parse_args()
    if options.what in ("losses", "terms"):
        print(write_losses(options.of, options.png, terms=options.what == "terms"))
    elif options.what == "restorations":
        write_restorations("portrait128", options.of[0], options.png)
    elif options.what == "inpaintings":
        model, faces = options.of
        write_inpaintings(model, faces, options.png)
    else:
        write_samples(options.of[0], options.png)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
