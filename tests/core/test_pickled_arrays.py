"""Pickles of arrays are read without running their code."""

import os
import pickle

import numpy as np
import pytest

from dr2pipe.core.errors import CheckpointError, UnreadableFileError
from dr2pipe.core.weights import read_pickled_arrays

ARRAYS = {
    "a": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
    "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "c": np.array([1, -2], ">i2"),
}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def save(path, content, protocol=3):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_arrays_come_back(tmp_path):
    found = read_pickled_arrays(save(tmp_path / "w.ckpt", ARRAYS))
    assert list(found) == ["a/kernel", "b", "c"]
    np.testing.assert_array_equal(found["a/kernel"], ARRAYS["a"]["kernel"])
    np.testing.assert_array_equal(found["b"], ARRAYS["b"])
    np.testing.assert_array_equal(found["c"], [1, -2])


def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "evil.ckpt", {"a": np.zeros(3), "b": Evil()})
    with pytest.raises(CheckpointError, match=r"it names \w+\.mkdir, which is no array"):
        read_pickled_arrays(path)
    assert not (tmp_path / "made_by_a_pickle").exists()


def around(start, end):
    """A pickle of one float32 array of 4 values with other bytes in it."""
    content = pickle.dumps({"a": np.ones(4, np.float32)}, protocol=3)
    assert content.count(start) == 1
    return content.replace(start, end)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([np.zeros(2)], protocol=3),
        pickle.dumps({"a": "text"}, protocol=3),
        pickle.dumps({"a": np.array([None])}, protocol=3),
        pickle.dumps({"a": np.array(["text"])}, protocol=3),
        around(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),  # more values than bytes
        pickle.dumps(ARRAYS, protocol=3)[:-40],
    ],
)
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "w.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.ckpt is no readable pickle of arrays"):
        read_pickled_arrays(path)


def test_depth_has_an_end(tmp_path):
    inner = {}
    inner["again"] = inner
    with pytest.raises(CheckpointError, match="no dict of arrays"):
        read_pickled_arrays(save(tmp_path / "loop.ckpt", inner))
    with pytest.raises(UnreadableFileError, match="more than 10"):
        read_pickled_arrays(save(tmp_path / "w.ckpt", ARRAYS), max_bytes=10)
