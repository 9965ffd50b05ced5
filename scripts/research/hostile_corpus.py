"""Small valid files of every kind that the package reads, and seeded mutations of them."""

from __future__ import annotations

import io
import json
import random
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dr2pipe.core.diffusers_types import UNet2DModel
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler

ROOT = Path(__file__).resolve().parents[2]
SIDE = 24
Corpus = dict[str, bytes]  # file name with its ending: content


def pictures() -> Corpus:
    rgb = _pixels(3)
    image, grey = Image.fromarray(rgb), Image.fromarray(_pixels(1)[..., 0])
    alpha = image.copy()
    alpha.putalpha(grey)
    deep = Image.fromarray(_pixels(1)[..., 0].astype(np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a face"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0words"
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a face")
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    palette = image.quantize(16)
    tags = ImageFileDirectory_v2()
    tags[270], tags[700] = "a face", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    frames = [image, image.rotate(90)]
    made = {
        "rgb.png": _saved(image, "PNG", pnginfo=text, dpi=(300, 300)),
        "profile.png": _saved(image, "PNG", icc_profile=profile, exif=exif),
        "alpha.png": _saved(alpha, "PNG"),
        "grey.png": _saved(grey, "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=3),
        "bits.png": _saved(grey.convert("1"), "PNG"),
        "rgb.jpg": _saved(image, "JPEG", exif=exif, icc_profile=profile, dpi=(72, 72)),
        "progressive.jpg": _saved(image, "JPEG", progressive=True, xmp=b"<x:xmpmeta/>"),
        "inks.jpg": _saved(image.convert("CMYK"), "JPEG"),
        "grey.jpg": _saved(grey, "JPEG"),
        "rgb.bmp": _saved(image, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "frames.gif": _saved(image, "GIF", save_all=True, append_images=frames),
        "rgb.webp": _saved(image, "WEBP", exif=exif),
        "alpha.webp": _saved(alpha, "WEBP", lossless=True),
        "frames.webp": _saved(image, "WEBP", save_all=True, append_images=frames),
        "rgb.tif": _saved(image, "TIFF", tiffinfo=tags, icc_profile=profile),
        "pages.tif": _saved(image, "TIFF", save_all=True, append_images=frames),
        "alpha.tif": _saved(alpha, "TIFF"),
        "deep.tif": _saved(deep, "TIFF"),
        "float.tif": _saved(grey.convert("F"), "TIFF"),
        "inks.tif": _saved(image.convert("CMYK"), "TIFF"),
        "lab.tif": _saved(image.convert("LAB"), "TIFF"),
        "planar16.tif": _planar_tiff(rgb.astype(np.uint16) * 257),
    }
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        source = grey.convert("1") if compression == "group4" else image
        made[f"{compression}.tif"] = _saved(source, "TIFF", compression=compression)
    Image.init()
    for kind, name in (("AVIF", "rgb.avif"), ("JPEG2000", "rgb.jp2")):
        if kind in Image.SAVE:  # Pillow is built with or without them
            made[name] = _saved(image, kind)
    return made


def records() -> Corpus:
    """Manifests, failures and other files of JSON lines."""
    lines = [
        {
            "path": f"sub/{name}.png",
            "sha256": "0" * 64,
            "settings": "0123456789abcdef",
            "output": f"restored/sub/{name}.png",
            "files": {f"restored/sub/{name}.png": [1234, "1" * 64]},
            "seed": 7,
            "warnings": ["was small"],
            "notes": {"spread": 1.5, "auto": {"score": 0.25}},
        }
        for name in ("a", "ü", "\udcff", "日本")
    ]
    failure = {"path": "b.png", "kind": "PictureError", "message": "truncated"}
    return {
        "manifest.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "failures.jsonl": (json.dumps(failure) + "\n").encode() * 3,
    }


def configs() -> Corpus:
    """The presets of ``restore``."""
    presets = sorted((ROOT / "configs" / "restore").glob("*.yaml"))
    return {path.name: path.read_bytes() for path in presets}


def tables() -> Corpus:
    """Tables as ``dr2pipe degrade`` writes them."""
    lines = ["path,output,seed,degradation,severity,blur", 'a.png,degraded/a.png,1,rain,2,"1,5"']
    text = "\n".join([*lines, "ü.png,degraded/ü.png,2,snow,,\n"])
    return {
        "parameters.csv": text.encode("utf-8-sig"),
        "odd.csv": text.encode("latin-1", "surrogateescape"),
    }


def arrays() -> Corpus:
    """Faces in ``.npz`` files."""
    faces = np.stack([_pixels(3), _pixels(3)[::-1]])
    named = {"images": faces, "files": np.array(["a.png", "ü.png"]), "source": np.array([0, 1])}
    made = {}
    for name, save in (("plain.npz", np.savez), ("packed.npz", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, **named)
        made[name] = buffer.getvalue()
    return made


def models() -> Corpus:
    """The JSON files of a pipeline folder, by their names with ``/`` as ``+``."""
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(Path(folder))
        return {
            str(path.relative_to(folder)).replace("/", "+"): path.read_bytes()
            for path in sorted(Path(folder).rglob("*.json"))
        }


def save_pipeline(folder: Path) -> None:
    """Write a pipeline of a network with few weights."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    DR2Pipeline(network, build_scheduler("ddim")).save_pretrained(folder)


def automatic() -> Corpus:
    """The automatic settings that come with the package."""
    return {path.name: path.read_bytes() for path in (ROOT / "checkpoints").glob("*.json")}


def weights() -> Corpus:
    """Checkpoints of a few small tensors, under names that converters know."""
    tensors = {name: torch.full((4, 3), float(i)) for i, name in enumerate(_TENSOR_NAMES)}
    return {
        "weights.safetensors": safetensors.torch.save(tensors),
        "weights.pth": save_tensors(tensors),
        "wrapped.pth": save_tensors({"params_ema": tensors}),
    }


_TENSOR_NAMES = (
    "input_blocks.0.0.weight", "time_embed.0.weight", "out.2.bias", "encoder.0.conv2d.weight",
    "conv_body_first.weight", "stylegan_decoder.style_mlp.1.weight", "style.1.weight",
    "convs.0.conv.weight", "layer1.0.conv1.weight", "final_conv.0.weight", "conv1.weight",
)  # fmt: skip


def save_tensors(content: object) -> bytes:
    """The bytes of a file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def mutate_tensors(tensors: dict[str, Any], rng: random.Random) -> dict[Any, Any]:
    """A state dict with one to four entries renamed, removed, added or changed."""
    changed: dict[Any, Any] = dict(tensors)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        name = rng.choice(list(changed))
        value = changed[name]
        how = rng.randrange(6)
        if how == 0:
            del changed[name]
        elif how == 1:  # another number in the name, perhaps of a layer that does not exist
            number = rng.choice(("0", "1", "7", "31", "-1", "x", "1000000000", "9" * 25))
            parts = [part if not part.isdigit() else number for part in str(name).split(".")]
            changed[".".join(parts)] = changed.pop(name)
        elif how == 2 and isinstance(value, torch.Tensor) and value.layout == torch.strided:
            changed[name] = rng.choice(
                (
                    value.reshape(-1),
                    value[None],
                    torch.zeros(()),
                    torch.zeros(0),
                    torch.zeros(1).expand(1 << 20),
                    value.reshape(-1)[: rng.randint(0, 5)],
                )
            )
        elif how == 3 and isinstance(value, torch.Tensor):
            kinds = (torch.int64, torch.bool, torch.float16, torch.complex64)
            changed[name] = value.detach().to(rng.choice(kinds))
        elif how == 4:
            odd = (None, 3, "text", [1, 2], {"a": 1}, value.to_sparse() if _is_float(value) else 0)
            changed[name] = rng.choice(odd)
        else:
            changed[rng.choice((7, "", "a.b", f"{name}.weight", f"module.{name}"))] = value
    return changed


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A copy of a file with one to six changes; checksums of PNG chunks are mended at times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_CHANGES)(changed, rng, others)
    if changed.startswith(b"\x89PNG") and rng.random() < 0.8:
        _mend_png(changed)
    return bytes(changed)


# -- changes: each works in place ------------------------------------------------------------


def _flip(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 4, 32))):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    value = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 10**6))
    packed = struct.pack(rng.choice("<>") + "I", value)[: rng.choice((1, 2, 4))]
    at = _place(data, rng)
    data[at : at + len(packed)] = packed


def _truncate(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    del data[at : at + rng.randint(1, 40)]


def _repeat(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.randint(1, 200)] * rng.choice((1, 2, 50))


def _splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other, at = rng.choice(others), _place(data, rng)
    start = rng.randrange(max(len(other), 1))
    part = other[start : start + rng.randint(1, 300)]
    data[at : at + rng.choice((0, len(part)))] = part


def _digits(data: bytearray, rng: random.Random, _: list[bytes]) -> None:
    """Another number or word in place of a number, in files of text."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice(_WORDS)


_WORDS = (
    b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"x"', b"99999999999999999999", b"0x10", b"010",
    b"1:30", b"${oc.env:HOME}", b"\xff\xfe", b"\0", b"&a *a", b"[" * 2000, b"\n", b"../../etc", b"true",
)  # fmt: skip
_CHANGES = (_flip, _overwrite, _truncate, _remove, _repeat, _splice, _digits, _digits) + (
    _flip, _overwrite,
) * 4  # fmt: skip


def _place(data: bytearray, rng: random.Random) -> int:
    """A place in the file, more often in its first bytes, where headers are."""
    if not data:
        return 0
    return rng.randrange(min(len(data), rng.choice((16, 64, 256, len(data)))))


def _mend_png(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


# -- valid files -----------------------------------------------------------------------------


def _pixels(channels: int) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = [(x * (7 + c) + y * (11 - c)) % 256 for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _planar_tiff(levels: np.ndarray) -> bytes:
    """A TIFF of 16 bits with its channels one after the other."""
    height, width, channels = levels.shape
    plane = height * width * 2
    data_at = 8 + 2 + 11 * 12 + 4
    bits_at = data_at + plane * channels
    offsets_at, counts_at = bits_at + 6, bits_at + 18
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits_at), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, channels, offsets_at), (277, 3, 1, channels), (278, 3, 1, height),
        (279, 4, channels, counts_at), (284, 3, 1, 2), (339, 3, 1, 1),
    ]  # fmt: skip
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    header += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    planes = levels.transpose(2, 0, 1).astype("<u2").tobytes()
    offsets = [data_at + plane * c for c in range(channels)]
    tail = struct.pack("<3H3I3I", 16, 16, 16, *offsets, *[plane] * channels)
    return header + planes + tail
