"""How a JPEG file was compressed, so that its result is compressed no more than it was."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, JpegImagePlugin


@dataclass(frozen=True)
class JpegTables:
    """The compression of a JPEG file.

    Attributes:
        quantization: a table of 64 numbers for luma, and mostly another one for chroma.
        subsampling: of chroma: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0; -1 where it has another.
    """

    quantization: tuple[tuple[int, ...], ...]
    subsampling: int


def jpeg_tables(image: Image.Image) -> JpegTables | None:
    """The tables of an opened file; None where it is no JPEG."""
    found = getattr(image, "quantization", None)
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not found:
        return None
    # Pillow takes at most one table for luma and one for chroma of RGB pictures.
    tables = tuple(tuple(found[key]) for key in sorted(found))[:2]
    subsampling = JpegImagePlugin.get_sampling(image) if image.mode == "RGB" else -1
    return JpegTables(tables, int(subsampling))
