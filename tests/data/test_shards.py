"""Faces in tar files."""

import io
import sys
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from conftest import make_pictures
from PIL import Image
from torch.utils.data import DataLoader

from dr2pipe.core.errors import ConfigError, Dr2pipeError, MissingPackageError, PictureError
from dr2pipe.core.storage import StoredObject
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shards import Shards, are_shards, expand
from dr2pipe.evaluation.protocol import CleanConfig, CleanSet


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path):
    return make_pictures(tmp_path / "faces", 7, height=24, width=24)


def tar_of(paths, root):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in paths:
            archive.add(path, path.relative_to(root).as_posix())
            note = tarfile.TarInfo(path.relative_to(root).with_suffix(".json").as_posix())
            note.size = 2
            archive.addfile(note, io.BytesIO(b"{}"))
    return content.getvalue()


@pytest.fixture(params=["disk", "memory"])
def shards(request, folder, tmp_path):
    """The pattern of three tar files with the pictures of the folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for number in range(3):
        data = tar_of(paths[number::3], folder)
        if request.param == "disk":
            (tmp_path / f"faces-{number:02}.tar").write_bytes(data)
        else:
            fs.pipe_file(f"/bucket/faces-{number:02}.tar", data)
    start = tmp_path if request.param == "disk" else "memory://bucket"
    return f"{start}/faces-{{00..02}}.tar"


def test_they_give_what_a_folder_gives(shards, folder):
    found, wanted = FaceDataset(shards, size=16, seed=3), FaceDataset(folder, size=16, seed=3)
    assert len(found) == len(wanted) == 7
    assert found.names[0].startswith("faces-00/")
    by_name = {name.partition("/")[2]: index for index, name in enumerate(found.names)}
    for index, name in enumerate(wanted.names):
        a, b = found[by_name[wanted.relative(name)], 11], wanted[index, 11]
        assert torch.equal(a["image"], b["image"])
        assert (a["seed"], a["flipped"]) == (b["seed"], b["flipped"])
        assert found.relative(a["name"]) == a["name"]


def test_a_shard_is_read_through_once(shards, monkeypatch):
    names = Shards(shards).names
    opened = []
    monkeypatch.setattr(StoredObject, "open", lambda self: opened.append(self.url))
    assert Shards(shards).names == names
    assert not opened


def test_a_damaged_index_is_made_again(shards, tmp_path):
    names = Shards(shards).names
    for path, text in zip(
        (tmp_path / "home/shards").iterdir(), ("{", "[]", '{"members": [1]}'), strict=True
    ):
        path.write_text(text)
    assert Shards(shards).names == names


def test_a_changed_shard_is_indexed_again(folder, tmp_path):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of(paths[:2], folder))
    old = Shards(str(shard))
    shard.write_bytes(tar_of(paths[3:], folder))
    assert len(Shards(str(shard)).names) == len(paths) - 3
    shard.write_bytes(b"short")
    with pytest.raises(PictureError, match=r"s\.tar.*has it changed"):
        old.read(1)


def test_workers_read_them_too(folder, tmp_path):
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of(sorted(p for p in folder.rglob("*") if p.is_file()), folder))
    faces = FaceDataset(str(shard), size=16)
    keys = [(index, 5) for index in range(len(faces))]
    loaded = DataLoader(faces, batch_sampler=[keys[:4], keys[4:]], num_workers=2)
    found = torch.cat([batch["image"] for batch in loaded])
    assert torch.equal(found, torch.stack([faces[key]["image"] for key in keys]))


def cut(share):
    return lambda data: data[: int(len(data.rstrip(b"\0")) * share)]


def twice(data):
    return data[:-10240].rstrip(b"\0") + b"\0" * (-len(data[:-10240].rstrip(b"\0")) % 512) + data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"no tar" * 500, "is no tar file, or a damaged or compressed one"),
        (lambda data: b"", "is no tar file|holds no pictures"),
        *(
            (cut(share), "is cut off|damaged|unexpected end")
            for share in (0.1, 0.3, 0.55, 0.8, 0.97, 1)
        ),
        (twice, "two files"),
        (lambda data: tar_of([], None), "holds no pictures"),
    ],
)
def test_files_that_are_no_shards(folder, tmp_path, change, says):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    shard = tmp_path / "s.tar"
    shard.write_bytes(change(tar_of(paths, folder)))
    with pytest.raises(Dr2pipeError, match=says):
        Shards(str(shard))
    assert not (tmp_path / "home/shards").exists()


def test_pictures_that_cannot_be_used_are_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / "b.png")
    shard = tmp_path / "s.tar"
    shard.write_bytes(tar_of(sorted(source.iterdir()), source))
    faces = FaceDataset(str(shard), size=16)
    with pytest.raises(PictureError, match=r"s/a\.png: not an image"):
        faces[0, 0]
    with pytest.raises(PictureError, match=r"s/b\.png is smaller than data\.size=16"):
        faces[1, 0]


def test_patterns(monkeypatch):
    assert expand("s3://b/f-{008..010}.tar") == [f"s3://b/f-{n}.tar" for n in ("008", "009", "010")]
    assert expand("a.tar") == ["a.tar"]
    assert [are_shards(p) for p in ("a.tar", "{a.tar,b.tar}", "a.npz", "tar", "a.tar.d")] == [
        *(True, True, False, False, False),
    ]
    with pytest.raises(ConfigError, match="a brace has no partner"):
        expand("a-{00..02.tar")
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'dr2pipe\[train\]'"):
        expand("a-{00..02}.tar")


def test_what_is_refused_before_work(tmp_path, shards):
    with pytest.raises(ConfigError, match="no file at"):
        Shards(str(tmp_path / "gone.tar"))
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        Shards(str(tmp_path / "folder.tar"))
    with pytest.raises(ConfigError, match="tar files have none"):
        FaceDataset(shards, size=16, sources=[1])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.tar").write_bytes(b"")
    with pytest.raises(Dr2pipeError):
        Shards(f"{tmp_path}/{{a,other/a}}.tar")


def test_tar_files_are_refused_where_faces_must_be_files(shards):
    with pytest.raises(ConfigError, match="a study takes a folder"):
        CleanSet(CleanConfig(path=str(shards)), 16)
