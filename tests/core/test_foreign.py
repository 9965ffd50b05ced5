"""Foreign files: whatever their bytes are, a reader returns or raises one kind of error."""

import contextlib
import io
import json
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dr2pipe.core import files, foreign
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError, UnreadableFileError
from dr2pipe.core.weights import read_tensors, tensor_shapes
from dr2pipe.diffusion.stage1 import DR2Config

SOME = settings(max_examples=150, deadline=None)


def mutated(data, draw):
    """Some bytes of ``data`` replaced, removed or repeated."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 9))
        data[start : start + length] = draw(st.binary(max_size=9))
    return bytes(data)


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def pth_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


WEIGHTS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}
FILES = {
    "a.npz": npz_bytes(images=np.zeros((2, 4, 4, 3), np.uint8), files=np.array(["a", "b"])),
    "a.json": json.dumps({"a": [1, 2.5, None, "x"], "b": {"c": True}}).encode(),
    "a.csv": b'\xef\xbb\xbffile,x\r\na.png,1\r\n"b,",2\r\n',
    "a.yaml": b"dr2: &d {tau: 3, omega: null}\nlist: [1, *d]\n",
    "new.pth": pth_bytes(WEIGHTS),
    "old.pth": pth_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
}
READERS = {
    "npz": foreign.read_npz,
    "json": foreign.read_object,
    "csv": foreign.read_csv,
    "yaml": foreign.read_yaml_text,
    "pth": read_tensors,
    "safetensors": read_tensors,
}


@pytest.mark.parametrize("name", [*FILES, "a.safetensors"])
@SOME
@given(data=st.data())
def test_mutated_files_raise_one_kind_of_error(name, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / name
    if name == "a.safetensors":
        save_file(WEIGHTS, path)
    content = path.read_bytes() if name == "a.safetensors" else FILES[name]
    path.write_bytes(mutated(content, data.draw))
    with contextlib.suppress(Dr2pipeError, pickle.UnpicklingError):
        READERS[name.rpartition(".")[2]](path)


@pytest.mark.parametrize("reader", READERS.values())
def test_pipes_folders_and_nothing_are_refused_without_waiting(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("pipe.safetensors", ".", "none", "link"):
        start = time.monotonic()
        with pytest.raises(UnreadableFileError):
            reader(tmp_path / name)
        assert time.monotonic() - start < 1
    with pytest.raises(UnreadableFileError):
        reader("/dev/zero")


def test_what_the_readers_return(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    assert foreign.read_csv(tmp_path / "a.csv") == [
        {"file": "a.png", "x": "1"},
        {"file": "b,", "x": "2"},
    ]
    assert foreign.read_object(tmp_path / "a.json")["a"] == [1, 2.5, None, "x"]
    arrays = foreign.read_npz(tmp_path / "a.npz")
    assert arrays["images"].shape == (2, 4, 4, 3)
    assert arrays["files"].tolist() == ["a", "b"]
    for name in ("new.pth", "old.pth"):
        found = read_tensors(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert tensor_shapes(tmp_path / "a.safetensors") == {"a": (3, 4), "b": (2,)}


def test_tables_keep_names_that_are_no_utf8(tmp_path):
    name = os.fsdecode(b"M\xfcller.png")
    (tmp_path / "t.csv").write_bytes(foreign.to_csv([["file", "x"], [name, 1]]))
    assert b"M\xfcller.png" in (tmp_path / "t.csv").read_bytes()
    assert foreign.read_csv(tmp_path / "t.csv", ["file"])[0]["file"] == name
    with pytest.raises(UnreadableFileError, match="no column 'y'; it has file, x"):
        foreign.read_csv(tmp_path / "t.csv", ["y"])


def test_archives_that_would_grow_are_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    path.write_bytes(npz_bytes(images=np.zeros(1 << 27, np.uint8)))
    with pytest.raises(UnreadableFileError, match="would grow to"):
        foreign.read_npz(path)
    buffer = io.BytesIO()
    header = str({"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)}).ljust(117) + "\n"
    buffer.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", buffer.getvalue())
    with pytest.raises(UnreadableFileError, match="is no readable"):
        foreign.read_npz(path)


def repacked(content, change):
    """A file of torch.save with records that ``change`` (name, bytes) returns, packed tightly."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def test_tensors_larger_than_their_file_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(pth_bytes({"x": torch.zeros(1).expand(1 << 32)}))
    with pytest.raises(CheckpointError, match="its tensors would need"):
        read_tensors(path)
    count, large = struct.pack("<i", 70_000), struct.pack("<i", 700_000_000)
    content = pth_bytes({"x": torch.zeros(70_000)})
    path.write_bytes(repacked(content, lambda _, data: data.replace(count, large)))
    with pytest.raises(CheckpointError, match="a storage claims 2800000000 bytes and has 280000"):
        read_tensors(path)
    old = pth_bytes({"x": torch.zeros(70_000)}, _use_new_zipfile_serialization=False)
    path.write_bytes(old.replace(count, large))
    with pytest.raises(CheckpointError, match="a storage claims"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(1 << 24))
    with pytest.raises(CheckpointError, match="packed"):
        read_tensors(path)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}})
    (tmp_path / "w.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header.encode() + b"1234"
    )
    with pytest.raises(CheckpointError, match="it has not"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: ${oc.env:HOME}", r"line 1: '\$\{' is refused"),
        ("tau: 1\n${x}: 2", "line 2"),
        ("[" * 5000, "nested too deeply"),
        (
            "\n".join(
                ["a0: &a0 [x]"]
                + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
            ),
            "grows too large",
        ),
        ("a: &a [*a]", "grows too large"),
        ("tau: " + "9" * 5000, "cannot read"),
        ("tau: 2020-01-01", "tau"),
        ("? [1]\n: 2", "cannot read"),
        ("\ud800tau: 1", "no UTF-8"),
    ],
)
def test_configurations_that_are_refused(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=says):
        load_config(DR2Config, path)
    assert time.monotonic() - start < 10


@SOME
@given(text=st.text(max_size=60), override=st.text(max_size=30))
def test_any_text_is_a_configuration_or_an_error(text, override, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for given_to in ([override], [f"tau={override}"], [f"tau{override}"]):
        with contextlib.suppress(Dr2pipeError):
            load_config(DR2Config, path, given_to)


PARTS = ("a", "é", ".", "/", "\\", "..", "\0", "C:", " ", "\udcfc", "\ud800")
NAMES = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@SOME
@given(name=NAMES | st.text(max_size=400))
def test_names_never_leave_their_folder(name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "out"
    try:
        path = files.safe_join(folder, name)
    except Dr2pipeError:
        return
    assert os.path.normpath(path).startswith(f"{folder}{os.sep}")
    assert all(len(os.fsencode(part)) <= 255 for part in path.relative_to(folder).parts)


def test_long_names_stay_different():
    long = "n" * 300
    first, second = (files.safe_join("o", f"{long}{i}.jpg.png") for i in range(2))
    assert first != second
    assert first.suffix == ".png"
    assert files.safe_join("o", "a/b.png").as_posix() == "o/a/b.png"
