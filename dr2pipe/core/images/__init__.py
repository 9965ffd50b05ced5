"""Picture files and colour order; nothing else in the package touches either.

Files come in as :class:`Picture` (uint8 sRGB, upright, with what a result should keep) and go
out as PNG, JPEG or WebP. Networks see float32 (B,3,H,W) RGB in [-1,1].
"""

from dr2pipe.core.images.arrays import (
    LUMA,
    Levels,
    Pixels,
    check_tensor,
    resize_pixels,
    resize_tensor,
    round_to_uint8,
    to_tensor,
    to_uint8,
    to_uint16,
)
from dr2pipe.core.images.contrast import Stretch, find_stretch
from dr2pipe.core.images.jpeg import JpegTables
from dr2pipe.core.images.metadata import OWN_TEXT
from dr2pipe.core.images.own_space import OwnSpace, reduced
from dr2pipe.core.images.provenance import SOURCE_TYPE, declare_restored
from dr2pipe.core.images.reading import (
    MAX_PIXELS,
    MIN_SIDE_PX,
    Picture,
    check_file,
    count_pages,
    decode_image,
    decode_result,
    hash_bytes,
    picture_of,
    read_file,
    read_image,
)
from dr2pipe.core.images.search import FoundImages, find_images, is_picture_path, readable_endings
from dr2pipe.core.images.tint import Place, Tint, find_face_tint, find_tint, to_grey
from dr2pipe.core.images.writing import (
    DEFAULT_COMPRESSION,
    KINDS,
    check_encoding,
    check_kind,
    encode_picture,
    encode_png,
    is_kind,
    is_marked,
    read_mark,
    write_png,
)

__all__ = [
    "DEFAULT_COMPRESSION",
    "FoundImages",
    "JpegTables",
    "KINDS",
    "LUMA",
    "Levels",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "OWN_TEXT",
    "OwnSpace",
    "Picture",
    "Pixels",
    "Place",
    "SOURCE_TYPE",
    "Stretch",
    "Tint",
    "check_encoding",
    "check_file",
    "check_kind",
    "check_tensor",
    "count_pages",
    "declare_restored",
    "decode_image",
    "decode_result",
    "encode_picture",
    "encode_png",
    "find_face_tint",
    "find_images",
    "find_stretch",
    "is_picture_path",
    "find_tint",
    "hash_bytes",
    "is_kind",
    "is_marked",
    "picture_of",
    "read_file",
    "read_image",
    "read_mark",
    "readable_endings",
    "reduced",
    "resize_pixels",
    "resize_tensor",
    "round_to_uint8",
    "to_grey",
    "to_tensor",
    "to_uint8",
    "to_uint16",
    "write_png",
]
