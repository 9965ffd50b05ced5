"""Colour profiles made by formula, and what a colour-managed viewer shows."""

import io
import struct

import numpy as np
from conftest import make_pixels
from PIL import Image, ImageCms

from dr2pipe.core.images import colour

PRIMARIES = {
    "display_p3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)), None),
    "adobe_rgb": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290)), 2.2),
    "prophoto": (
        ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), 1.8,
    ),
    "linear": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290)), 1.0),
}  # fmt: skip


def tag(curve):
    """A ``curv`` tag: a gamma, or a table of 1024 points."""
    if isinstance(curve, float):
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(curve * 256)) + bytes(2)
    points = np.round(curve(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(points)) + points.tobytes()


def icc(kind, tags):
    """A version 2 profile."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": white, b"cprt": b"text" + bytes(4) + b"none\0"} | tags
    table, body, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">2I", place + len(body), len(value))
        body += value
    header = struct.pack(
        ">I4sI4s4s4s12s4s", place + len(body), bytes(4), 0x02400000, b"mntr", kind, b"XYZ ",
        struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp",
    )  # fmt: skip
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(name):
    primaries, gamma = PRIMARIES[name]
    space = colour.space_of_primaries(primaries, gamma)
    curve = colour.srgb_decode if gamma is None else gamma
    columns = {
        key: b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(column * 65536).astype(int))
        for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), space.matrix.T, strict=True)
    }
    return icc(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tag(curve)))


def grey_profile(curve):
    return icc(b"GRAY", {b"kTRC": tag(curve)})


GREY = {"gamma18": 1.8, "linear": 1.0, "dot_gain": lambda x: 1 - (1 - x) ** 0.6}


def photo(height=48, width=64):
    """A picture of muted colours, which lie inside sRGB."""
    return (make_pixels(5, height, width) * 0.6 + 50).astype(np.uint8)


def look(data):
    """What a colour-managed viewer shows, as 8-bit sRGB."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey = image.mode in ("L", "LA")
        image = image.convert("L" if grey else "RGB")
        if profile:
            srgb = ImageCms.createProfile("sRGB")
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, own, srgb, 1, "RGB", flags=0x2000)
        return np.asarray(image.convert("RGB")).astype(float)
