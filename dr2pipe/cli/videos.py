"""The command for videos."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from dr2pipe.cli.options import add_set, whole_number
from dr2pipe.core.config import load_config
from dr2pipe.core.models import find_file

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_video(to: Commands) -> None:
    """Add the command to the parser of ``dr2pipe``."""
    command = to.add_parser("video", help="restore the faces of a video, see docs/video.md")
    command.add_argument("input", help="video")
    command.add_argument("output", help="file for the result: .mp4, .mov or .mkv")
    command.add_argument(
        "--preset", default="default", help="name in configs/restore, or a YAML file (default)"
    )
    command.add_argument("--codec", default="h264", help="h264, h265, av1 or ffv1 (h264)")
    command.add_argument(
        "--quality",
        type=whole_number,
        help="constant quality (CRF) of the codec, 0 is best (h264 18, h265 20, av1 25)",
    )
    command.add_argument(
        "--preview", type=seconds, metavar="10s", help="so much of the beginning alone"
    )
    command.add_argument(
        "--strict", action="store_true", help="a video in which no face is found is a failure"
    )
    add_set(command)
    command.set_defaults(run=video)


def seconds(text: str) -> float:
    """Read a time such as ``10s``, ``2.5`` or ``1m30s``."""
    found = re.fullmatch(r"(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,6})?)s?)?", text)
    total = 60 * float(found[1] or 0) + float(found[2] or 0) if found else 0.0
    if total <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time such as 10s or 1m30s")
    return total


def video(options: argparse.Namespace) -> int:
    """Restore the faces of a video."""
    from dr2pipe.cli.commands import quiet_libraries
    from dr2pipe.runs.video import restore_video
    from dr2pipe.runs.video_config import VideoConfig

    given = {
        "input": options.input,
        "output": options.output,
        "codec": options.codec,
        "quality": options.quality,
        "preview_s": options.preview,
        "strict": "true" if options.strict else None,
    }
    overrides = [f"{name}={value}" for name, value in given.items() if value is not None]
    path = find_file("configs/restore", options.preset, what="preset")
    config = load_config(VideoConfig, path, [*overrides, *options.set])
    quiet_libraries()
    summary = restore_video(config)
    for warning in summary.warnings:
        print(f"warning: {warning}")
    if summary.frames:
        left = summary.followed - summary.restored
        faces = f"{summary.followed} face{'' if summary.followed == 1 else 's'}"
        counts = f"{summary.frames} frames, {faces} followed"
        counts += f", {left} of them left as before" if left else ""
        print(f"{counts}{' (done already)' if summary.was_done else ''} -> {options.output}")
        print(f"what was done to each face: {options.output}.json")
    return summary.exit_code
