import unicodedata

import pytest
from conftest import make_pixels
from PIL import Image

from dr2pipe.core import files
from dr2pipe.core.errors import PictureError
from dr2pipe.core.pairing import MadeFiles, Pairing
from dr2pipe.runs.degrade import DegradeConfig, degrade_folder


def test_the_whole_name_comes_first():
    pairing = Pairing(["p.png", "p.jpg"], ["p.png", "p.jpg", "q.png"], "masks")
    assert pairing.partner("p.png") == "p.png"
    assert pairing.partner("p.jpg") == "p.jpg"


def test_another_extension_if_only_one_file_has_the_name():
    assert Pairing(["a/p.jpg"], ["a/p.png"], "masks").partner("a/p.jpg") == "a/p.png"
    with pytest.raises(PictureError, match=r"several files of its name in masks: p.bmp and p.tif"):
        Pairing(["p.jpg"], ["p.bmp", "p.tif"], "masks").partner("p.jpg")
    with pytest.raises(PictureError, match=r"p.png in masks may belong to p.jpg or to p.webp"):
        Pairing(["p.jpg", "p.webp"], ["p.png"], "masks").partner("p.jpg")
    # What has a partner of its own whole name leaves none to its namesake.
    pairing = Pairing(["p.png", "p.jpg"], ["p.png"], "masks")
    assert pairing.partner("p.png") == "p.png"
    with pytest.raises(PictureError, match=r"may belong to p.jpg or to p.png"):
        pairing.partner("p.jpg")
    assert not pairing.has_partner("p.jpg")


def test_no_partner():
    with pytest.raises(PictureError, match="no file of its name in masks"):
        Pairing(["p.jpg"], ["other/p.jpg"], "masks").partner("p.jpg")


def test_letters_are_compared_composed():
    composed, decomposed = (unicodedata.normalize(form, "Zoë.png") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert Pairing([composed], [decomposed], "masks").partner(composed) == decomposed
    assert Pairing([decomposed], [composed], "masks").partner(decomposed) == composed


@pytest.fixture
def degraded(tmp_path):
    """Two pictures of one name, and what a run made of them: its names differ from theirs."""
    (tmp_path / "in/sub").mkdir(parents=True)
    for i, ending in enumerate(("png", "jpg")):
        Image.fromarray(make_pixels(i)).save(tmp_path / f"in/sub/a.{ending}")
    degrade_folder(DegradeConfig(str(tmp_path / "in"), str(tmp_path / "out"), "mild"))
    return tmp_path


@pytest.mark.parametrize("folder", ["out", "out/degraded", "out/degraded/sub", "link"])
def test_what_a_run_made_is_found_by_its_manifest(folder, degraded):
    (degraded / "link").symlink_to(degraded / "out/degraded")
    made = MadeFiles(degraded / folder)
    for ending in ("png", "jpg"):
        path = made.partner(degraded / f"in/sub/a.{ending}")
        assert path.samefile(degraded / f"out/degraded/sub/a.{ending}.png")
        assert path.is_relative_to(degraded / folder)
    assert made.partner(degraded / "in/sub/b.png") is None
    assert MadeFiles(degraded / "in").partner(degraded / "in/sub/a.png") is None


def test_what_was_made_of_another_picture_is_refused(degraded):
    made = MadeFiles(degraded / "out/degraded")
    source = degraded / "in/sub/a.jpg"
    made_of_it = degraded / "out/degraded/sub/a.jpg.png"
    Image.fromarray(make_pixels(5)).save(source)
    with pytest.raises(PictureError, match=r"in/sub/a\.jpg has changed since .*sub/a\.jpg\.png"):
        made.partner(source)
    with pytest.raises(PictureError, match="has changed"):
        made.partner(degraded / "in/sub/a.png", files.sha256(source))
    made_of_it.with_name("a.png.png").unlink()
    with pytest.raises(
        PictureError, match=r"a\.png\.png, which was made of .*a\.png, is not there"
    ):
        made.partner(degraded / "in/sub/a.png")


def test_files_of_one_name_that_a_run_made_of_other_pictures_are_paired_by_name(degraded):
    """The record is about the run's own input, which need not be the one of this run."""
    (degraded / "other/sub").mkdir(parents=True)
    Image.fromarray(make_pixels(7)).save(degraded / "other/sub/a.jpg")
    assert MadeFiles(degraded / "out/degraded").partner(degraded / "other/sub/a.jpg") is None
