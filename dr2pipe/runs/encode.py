"""The files of a picture's results, as bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.runs.batches import Result
from dr2pipe.runs.jobs import LoadedPicture
from dr2pipe.runs.options import RunOptions
from dr2pipe.runs.result_folders import is_made_by_networks


def encode_results(
    loaded: LoadedPicture,
    pixels: Mapping[str, Result | None],
    names: Mapping[str, str],
    *,
    text: dict[str, Any],
    in_own_space: frozenset[str],
    options: RunOptions,
    read_again: Callable[[], bytes],
) -> dict[str, bytes]:
    """Encode a picture's results.

    Args:
        loaded: the picture.
        pixels: (H,W) or (H,W,3) by result folder, uint8 or uint16. None: the picture is
            unchanged, so its file is copied where the format allows it.
        names: path of the result by result folder, the main one first.
        text: goes into every result as PNG text.
        in_own_space: result folders whose pixels are in the colour space of the input file.
        options: compression and quality.
        read_again: the bytes of the picture's file.

    Returns:
        {path below the output: content}.
    """
    marked = {images.OWN_TEXT: json.dumps(text)}
    main = next(iter(names))
    contents: dict[str, bytes] = {}
    for folder, result in pixels.items():
        name = names[folder]
        if isinstance(result, Mapping):
            stem = str(Path(name).with_suffix(""))
            for part, part_pixels in result.items():
                contents[f"{stem}/{part}.png"] = images.encode_png(
                    part_pixels, text=marked, compression=options.png_compression
                )
        elif result is None:
            contents[name] = _unchanged(loaded, name, marked, options, read_again)
        else:
            is_own = folder in in_own_space
            is_result = folder == main or is_own
            picture = loaded.picture
            if is_made_by_networks(folder):
                xmp = images.declare_restored(picture.metadata.xmp)
                metadata = dataclasses.replace(picture.metadata, xmp=xmp)
                picture = dataclasses.replace(picture, metadata=metadata)
            contents[name] = _encoded(
                name, result, picture, marked, options, is_result=is_result, is_own=is_own
            )
    return contents


def _unchanged(
    loaded: LoadedPicture,
    name: str,
    text: dict[str, str],
    options: RunOptions,
    read_again: Callable[[], bytes],
) -> bytes:
    """The picture as it was: its own file, or its samples in another format."""
    picture, job = loaded.picture, loaded.job
    if Path(name).suffix == job.path.suffix and job.page is None:
        data = read_again()
        if images.hash_bytes(data) == picture.sha256 and images.is_kind(data, name):
            return data
    assert picture.own is not None
    return _encoded(name, picture.own.levels, picture, text, options, is_result=True, is_own=True)


def _encoded(
    name: str,
    pixels: npt.NDArray[Any],
    picture: images.Picture,
    text: dict[str, str],
    options: RunOptions,
    *,
    is_result: bool,
    is_own: bool,
) -> bytes:
    """A picture's file, with what it keeps of its input."""
    own = picture.own if is_own else None
    profile = picture.profile if own is None else own.profile
    chunks = () if own is None else own.chunks
    if own is not None and chunks and own.is_other_than_srgb and not name.lower().endswith(".png"):
        # Only PNG files have these chunks.
        pixels, profile, chunks = own.to_srgb(pixels), picture.profile, ()
    return images.encode_picture(
        name,
        pixels,
        alpha=picture.alpha if is_result else None,
        profile=profile,
        colour_chunks=chunks,
        metadata=picture.metadata if is_result else None,
        text=text,
        jpeg=picture.jpeg,
        compression=options.png_compression,
        quality=options.quality,
    )
