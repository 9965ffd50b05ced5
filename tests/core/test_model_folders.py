import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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


def test_loading_leaves_other_threads_alone(tmp_path):
    SPARNet(size=16, channels=[4, 4], residual_blocks=1, hourglass_depth=1).save_pretrained(
        tmp_path
    )
    own, going = [], threading.Event()

    def build_own():
        while not going.is_set():
            own.append(torch.nn.Linear(300, 300))

    def load():
        return [load_network(tmp_path, SPARNet) for _ in range(8)]

    with ThreadPoolExecutor(3) as pool:
        builder = pool.submit(build_own)
        loads = [pool.submit(load) for _ in range(2)]
        networks = [network for one in loads for network in one.result()]
        going.set()
        builder.result()
    assert len(networks) == 16
    tensors = [p for network in [*networks, *own] for p in network.parameters()]
    assert not any(tensor.is_meta for tensor in tensors)
