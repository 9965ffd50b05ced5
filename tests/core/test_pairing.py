import unicodedata

import pytest

from dr2pipe.core.errors import PictureError
from dr2pipe.core.pairing import Pairing


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
