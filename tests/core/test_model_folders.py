import pytest

from dr2pipe.core.errors import CheckpointError
from dr2pipe.core.model_folders import check_class, class_in_folder
from dr2pipe.enhancers.base import BicubicEnhancer, NoEnhancer


def test_the_class_of_a_folder(tmp_path):
    assert class_in_folder(tmp_path) is None
    NoEnhancer().save_pretrained(tmp_path)
    assert class_in_folder(tmp_path) == "NoEnhancer"
    check_class(tmp_path, NoEnhancer)
    with pytest.raises(CheckpointError, match="holds a NoEnhancer, not a BicubicEnhancer; do this"):
        check_class(tmp_path, BicubicEnhancer, hint="do this")
    with pytest.raises(CheckpointError, match=r"no NoEnhancer at .*config\.json is missing"):
        check_class(tmp_path / "nothing", NoEnhancer)
    for text in ("not json", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            check_class(tmp_path, NoEnhancer)
