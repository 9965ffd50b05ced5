import move_sharp
import pytest
import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import SHARP, build_enhancer

SMALL = {"size": 16, "channels": [8], "residual_blocks": 1, "hourglass_depth": 1}


def make(folder, seed, **options):
    torch.manual_seed(seed)
    network = build_enhancer("sparnet", **{**SMALL, **options})
    network.save_pretrained(folder)
    return network.state_dict()


def test_the_difference_moves_to_the_new_network(tmp_path):
    faithful, sharp = make(tmp_path / "old", 0), make(tmp_path / "old" / SHARP, 1)
    new = make(tmp_path / "new", 2)
    move_sharp.move_sharp(tmp_path / "old", tmp_path / "new", tmp_path / "out")
    first = build_enhancer("sparnet", tmp_path / "out").state_dict()
    second = build_enhancer("sparnet", tmp_path / "out" / SHARP).state_dict()
    for name, weight in new.items():
        assert torch.equal(first[name], weight)
        if weight.is_floating_point():
            wanted = weight + sharp[name] - faithful[name]
            assert torch.allclose(second[name], wanted, atol=1e-6)


def test_networks_of_other_sizes(tmp_path):
    make(tmp_path / "old", 0)
    make(tmp_path / "old" / SHARP, 1)
    make(tmp_path / "new", 2, channels=[16])
    with pytest.raises(ConfigError, match="other sizes"):
        move_sharp.move_sharp(tmp_path / "old", tmp_path / "new", tmp_path / "out")
    assert not (tmp_path / "out").exists()
