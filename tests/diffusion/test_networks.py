"""Model folders of stage 1."""

import pytest
import torch
from conftest import make_unet

from dr2pipe.core.errors import CheckpointError, ConfigError
from dr2pipe.diffusion.networks import load_ddpm, use_attention


def test_a_network_alone_is_a_model(tmp_path):
    unet = make_unet()
    unet.save_pretrained(tmp_path)
    found = load_ddpm(tmp_path)
    assert (found.scheduler, found.max_timestep) == (None, None)
    pairs = zip(found.unet.parameters(), unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_damaged_and_other_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no diffusers model"):
        load_ddpm(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json: is no JSON"):
        load_ddpm(tmp_path)


def test_attention_on_the_cpu():
    unet, cpu = make_unet(), torch.device("cpu")
    assert use_attention(unet, "auto", cpu) == use_attention(unet, "sdpa", cpu) == "sdpa"
    with pytest.raises(ConfigError, match="choose auto, sdpa, xformers"):
        use_attention(unet, "flash", cpu)
    with pytest.raises(ConfigError, match="needs a CUDA device, this run uses cpu"):
        use_attention(unet, "xformers", cpu)
