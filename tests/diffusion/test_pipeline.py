import json
import math

import numpy as np
import pytest
import torch
from conftest import make_pixels, make_unet
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import save_file

from dr2pipe.core.errors import CheckpointError, ConfigError, PictureError
from dr2pipe.diffusion import pipeline as pipeline_module
from dr2pipe.diffusion.networks import load_ddpm
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.timesteps import build_scheduler

SETTINGS = {"tau": 5, "omega": 8, "factor": 2}


@pytest.fixture
def pipeline(unet):
    pipeline = DR2Pipeline(unet, build_scheduler("ddim"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded():
    return torch.Generator().manual_seed(0)


def test_pil_numpy_and_tensor_inputs_agree(pipeline):
    pixels = make_pixels(0, 16, 16)
    inputs = {
        "pil": Image.fromarray(pixels),
        "uint8": pixels,
        "float": pixels / 255.0,
        "batch": pixels[None],
        "list": [Image.fromarray(pixels)],
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1,
    }
    results = {
        name: pipeline(image, generator=seeded(), output_type="np", **SETTINGS).images
        for name, image in inputs.items()
    }
    for name, result in results.items():
        assert result.shape == (1, 16, 16, 3), name
        assert np.abs(result - results["pil"]).max() < 1e-5, name


def test_output_types(pipeline):
    image = make_pixels(1, 40, 30)  # resized to the network's size
    (pil,) = pipeline(image, generator=seeded(), **SETTINGS).images
    assert pil.size == (16, 16)
    tensor = pipeline(image, generator=seeded(), output_type="pt", **SETTINGS).images
    assert tensor.shape == (1, 3, 16, 16)
    assert np.abs(np.asarray(pil) - (tensor[0].permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.51
    with pytest.raises(ValueError, match="pil, np, pt"):
        pipeline(image, output_type="latent", **SETTINGS)


def test_callback_and_default_omega(pipeline):
    seen = []

    def on_step(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, timestep, tensors["estimate"].shape))
        return {}

    pipeline(make_pixels(0, 16, 16), tau=3, factor=2, callback_on_step_end=on_step)
    assert [step for step, _, _ in seen] == list(range(11))  # omega = tau + 10 for N = 2
    assert seen[-1][1:] == (39, (1, 3, 16, 16))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(3, 16, 16), r"\(B,3,H,W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "float"),
        (np.zeros((16, 16)), r"\(H,W,3\)"),
        (np.full((16, 16, 3), 2.0), r"\[0,1\]"),
        ("face.png", "str"),
        ([], "no image"),
        (torch.zeros(0, 3, 16, 16), "float"),
        (torch.full((1, 3, 16, 16), math.nan), "not finite"),
        (torch.full((1, 3, 16, 16), 255.0), "the largest is 255"),
        (np.zeros((0, 16, 3)), r"\(H,W,3\)"),
    ],
)
def test_bad_images(pipeline, image, says):
    with pytest.raises(ValueError, match=says):
        pipeline(image, **SETTINGS)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_generators_as_pictures(pipeline, count):
    pictures = [make_pixels(i, 16, 16) for i in range(2)]
    with pytest.raises(ConfigError, match=f"as many generators, not {count}"):
        pipeline(pictures, generator=[seeded() for _ in range(count)], **SETTINGS)
    given = dict(output_type="pt", **SETTINGS)
    found = [
        pipeline(pictures, generator=kind(seeded() for _ in range(2)), **given).images
        for kind in (list, tuple)
    ]
    assert torch.equal(*found)


def test_save_and_load_give_the_same_picture(pipeline, tmp_path):
    before = pipeline(make_pixels(0, 16, 16), generator=seeded(), output_type="pt", **SETTINGS)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = DR2Pipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    after = loaded(make_pixels(0, 16, 16), generator=seeded(), output_type="pt", **SETTINGS)
    # Loaded weights may lie at other addresses, which changes the last bit of a convolution.
    assert torch.allclose(before.images, after.images, atol=1e-4)


def test_max_timestep_is_saved_and_checked(unet, tmp_path, caplog):
    DR2Pipeline(unet, build_scheduler("ddim"), max_timestep=89).save_pretrained(tmp_path / "model")
    loaded = DR2Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.max_timestep == 89
    assert loaded(make_pixels(0), **SETTINGS).images[0].size == (16, 16)  # omega is timestep 89
    with pytest.raises(ConfigError, match="omega is timestep 99"):
        loaded(make_pixels(0), **SETTINGS | {"omega": 9})
    assert "not expected" not in caplog.text  # diffusers warns of keys that it does not know
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unknown_key": 1}))
    DR2Pipeline.from_pretrained(tmp_path / "model")
    assert "not expected" in caplog.text


@pytest.mark.parametrize("channels", [3, 6])
def test_any_ddpm_pipeline_folder_works(tmp_path, channels):
    variance = "fixed_large" if channels == 3 else "learned_range"
    DDPMPipeline(make_unet(channels), DDPMScheduler(variance_type=variance)).save_pretrained(
        tmp_path / "ddpm"
    )
    pipeline = DR2Pipeline.from_pretrained(tmp_path / "ddpm")
    assert pipeline(make_pixels(0), **SETTINGS).images[0].size == (16, 16)


def test_the_flat_layout_of_old_hub_models(tmp_path):
    """google/ddpm-* keep unet and scheduler files side by side in the model's root."""
    unet = make_unet()
    folder = tmp_path / "old"
    folder.mkdir()
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.1.1", **config})
    )
    save_file(unet.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDPMScheduler", "variance_type": "fixed_small"})
    )
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "DDPMPipeline",
                "_diffusers_version": "0.1.1",
                "unet": ["diffusers", "UNet2DModel"],
                "scheduler": ["diffusers", "DDPMScheduler"],
            }
        )
    )
    pipeline = DR2Pipeline.from_pretrained(folder)
    assert torch.equal(pipeline.unet.conv_in.weight, unet.conv_in.weight)
    assert pipeline(make_pixels(0), **SETTINGS).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("model_index.json", {"unet": ["evil", "UNet2DModel"]}, "'unet' is .*evil"),
        ("model_index.json", {"_class_name": ["evil", "Evil"]}, "must be the name of a pipeline"),
        ("model_index.json", {"scheduler": ["os", "DDIMScheduler"]}, "'scheduler' is .*os"),
        ("unet/config.json", {"block_out_channels": [8192, 8192]}, "larger network than its weights"),
        ("unet/config.json", {"layers_per_block": 10**9}, "at most"),
        ("unet/config.json", {"auto_map": {}}, "not supported"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e12}, "at most"),
    ],
)  # fmt: skip
def test_a_foreign_folder_is_checked_before_diffusers_sees_it(unet, tmp_path, file, change, says):
    DR2Pipeline(unet, build_scheduler("ddim")).save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=says):
        DR2Pipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        load_ddpm(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_arrays_that_are_no_pictures(value):
    array = np.full((8, 8, 3), 0.5, np.float32)
    array[3, 3, 1] = value
    with pytest.raises(PictureError, match=r"float in \[0,1\]"):
        pipeline_module._as_pixels(array)
