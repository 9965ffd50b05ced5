import json

import pytest

from dr2pipe.core.errors import CheckpointError
from dr2pipe.core.model_folders import WEIGHTS, check_class, class_in_folder, load_network
from dr2pipe.core.weights import tensor_shapes
from dr2pipe.enhancers.base import BicubicEnhancer, NoEnhancer
from dr2pipe.enhancers.sparnet import SPARNet


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


def test_an_index_cannot_name_other_weights(tmp_path):
    SPARNet(size=16, channels=[4, 4], residual_blocks=1, hourglass_depth=1).save_pretrained(
        tmp_path
    )
    load_network(tmp_path, SPARNet)
    other = (tmp_path / WEIGHTS).rename(tmp_path / "other.safetensors")
    (tmp_path / WEIGHTS).write_bytes(other.read_bytes())
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensor_shapes(other), other.name)}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: weights in several files"):
        load_network(tmp_path, SPARNet)
