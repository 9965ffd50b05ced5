import numpy as np
import pytest
import torch
from conftest import make_unet
from diffusers import DDIMScheduler, DDPMPipeline, PNDMScheduler, UNet2DModel

from dr2pipe.core import files
from dr2pipe.core.config import load_config, resource
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.pipeline import DR2Pipeline
from dr2pipe.diffusion.stage1 import DR2Config, Remover
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import Enhancer, build_enhancer
from dr2pipe.restoration.restorer import EnhancerConfig, Restorer, build_restorer
from dr2pipe.runs.restore import RestoreConfig

SPARNET = {"size": 32, "channels": (8, 16), "residual_blocks": 1, "hourglass_depth": 2}


def make_remover(unet=None):
    return Remover(
        unet or make_unet(), build_scheduler("ddim"), build_low_pass("bicubic", factor=2),
        omega=10, tau=4, num_evaluations=3,
    )  # fmt: skip


def faces(count=4, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def settings(model_folder, **changes):
    tiny = {"model": str(model_folder), "tau": 2, "omega": 8, "factor": 2}
    return DR2Config(**tiny | changes)


def test_two_stages_and_sizes():
    torch.manual_seed(0)
    restorer = Restorer(make_remover(), build_enhancer("sparnet", **SPARNET))
    assert (restorer.input_size, restorer.output_size) == (16, 32)
    result = restorer(faces(), [1, 2, 3, 4])
    assert result.coarse.shape == (4, 3, 16, 16)
    assert result.restored.shape == (4, 3, 32, 32)
    assert result.in_fp32 == [False] * 4


def test_batch_of_four_equals_four_singles():
    torch.manual_seed(0)
    restorer = Restorer(make_remover(), build_enhancer("sparnet", **SPARNET))
    batch = restorer(faces(), [1, 2, 3, 4])
    for i in range(4):
        single = restorer(faces()[i : i + 1], [i + 1])
        assert (single.restored[0] - batch.restored[i]).abs().max() < 1 / 255
    other = restorer(faces()[:1], [9])
    assert (other.restored[0] - batch.restored[0]).abs().max() > 1 / 255


def test_each_stage_can_be_off():
    coarse_alone = Restorer(make_remover(), build_enhancer("none"))
    result = coarse_alone(faces(1), [0])
    assert torch.equal(result.coarse, result.restored)
    enhancer_alone = Restorer(None, build_enhancer("bicubic", size=64))
    assert (enhancer_alone.input_size, enhancer_alone.output_size) == (64, 64)
    x = faces(1, 64)
    assert torch.equal(enhancer_alone(x, [0]).restored, x)


def test_low_precision_is_close_and_falls_back_to_fp32():
    exact = Restorer(make_remover(), build_enhancer("none"))(faces(), [1, 2, 3, 4])
    low = Restorer(make_remover(), build_enhancer("none"), dtype=torch.bfloat16)
    result = low(faces(), [1, 2, 3, 4])
    assert (result.restored - exact.restored).abs().mean() < 4 / 255

    class Overflowing(Enhancer):
        """Breaks on bright pictures unless it runs in float32."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            bright = x.mean(dim=(1, 2, 3), keepdim=True) > 0.5
            return x * torch.where(bright & (x.dtype != torch.float32), torch.inf, 1)

    mixed = torch.cat([torch.full((1, 3, 512, 512), 0.9), torch.zeros(1, 3, 512, 512)])
    restorer = Restorer(None, Overflowing(), dtype=torch.bfloat16)
    result = restorer(mixed, [0, 1])
    assert result.in_fp32 == [True, False]
    assert torch.allclose(result.restored[0], torch.tensor(0.9))
    assert restorer.dtype == torch.bfloat16


def test_a_result_that_is_never_finite_is_an_error():
    class Broken(Enhancer):
        def forward(self, x):
            return x / 0

    with pytest.raises(FloatingPointError, match="not even in float32"):
        Restorer(None, Broken())(torch.zeros(1, 3, 512, 512), [0])


def test_wrong_batches():
    restorer = Restorer(make_remover(), build_enhancer("none"))
    with pytest.raises(PictureError, match=r"expected \(B,3,16,16\)"):
        restorer(faces(1, 20), [0])
    with pytest.raises(Dr2pipeError, match="as many seeds"):
        restorer(faces(2), [0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (faces()[:0], "expected floats"),
        (faces().to(torch.uint8), "expected floats"),
        ((faces() + 1) * 127.5, "the largest is"),
        (torch.cat([faces(1), faces(1) * torch.nan]), "picture 1 of the batch"),
    ],
)
def test_tensors_that_are_no_faces_are_refused(wrong, says):
    with pytest.raises(PictureError, match=says):
        Restorer(make_remover(), build_enhancer("none"))(wrong, list(range(len(wrong))))


def test_half_precision_and_numpy_seeds_are_taken():
    restorer = Restorer(make_remover(), build_enhancer("none"))
    pictures = faces().half()
    found = restorer(pictures, np.arange(4)).restored
    assert torch.equal(found, restorer(pictures.float(), range(4)).restored)


class Own(Enhancer):
    """An enhancer as a user writes it, with a layer that training changes."""

    def __init__(self, answer=None):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout(0.5))
        self.answer = answer

    def forward(self, x):
        return self.layers(x) if self.answer is None else self.answer


def test_another_enhancer_is_prepared_like_the_first():
    restorer = Restorer(None, build_enhancer("none"), dtype=torch.bfloat16)
    changed = restorer.with_enhancer(Own())
    found = changed.enhance(faces())
    assert torch.equal(found, changed.enhance(faces()))
    assert not found.requires_grad
    assert changed.enhancer.layers[0].weight.dtype == torch.bfloat16
    assert isinstance(restorer.enhancer, type(build_enhancer("none")))


@pytest.mark.parametrize("answer", [torch.zeros(4, 1, 16, 16), torch.zeros(4, 3, 8, 8), (1, 2)])
def test_an_enhancer_that_breaks_its_contract_is_named(answer):
    with pytest.raises(ConfigError, match=r"Own.forward must give a tensor \(1, 3, 16, 16\)"):
        Restorer(None, Own(answer)).enhance(faces())


def test_build_from_config(model_folder, tmp_path):
    build_enhancer("sparnet", **SPARNET).save_pretrained(tmp_path / "spar")
    enhancer = EnhancerConfig("sparnet", str(tmp_path / "spar"))
    restorer, hashes = build_restorer(settings(model_folder, omega=None), enhancer)
    assert restorer.remover.omega == 12  # tau + 10 for N = 2
    assert hashes == {
        "dr2": files.sha256(model_folder), "enhancer": files.sha256(tmp_path / "spar")
    }  # fmt: skip
    assert restorer(faces(1), [0]).restored.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("low_pass", [{}, {"low_pass": "gaussian", "sigma_px": 1.5},
                                      {"low_pass": "fft", "cutoff": 0.5}, {"low_pass": "none"}])  # fmt: skip
def test_schedulers_and_filters_from_config(model_folder, name, low_pass):
    config = settings(model_folder, scheduler=name, num_evaluations=3, **low_pass)
    restorer, _ = build_restorer(config, EnhancerConfig())
    assert restorer(faces(2), [0, 1]).restored.isfinite().all()


def test_memory_format(model_folder):
    restorer, _ = build_restorer(settings(model_folder), EnhancerConfig(), channels_last=True)
    plain, _ = build_restorer(settings(model_folder), EnhancerConfig())
    difference = restorer(faces(2), [0, 1]).restored - plain(faces(2), [0, 1]).restored
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("dr2", "enhancer", "options", "says"),
    [
        ({}, {"name": "sparnet"}, {}, "needs enhancer.weights"),
        ({}, {"name": "magic"}, {}, "magic"),
        ({"omega": 1}, {}, {}, "omega=1"),
        ({"factor": 3}, {}, {}, "dr2.factor=3 does not divide"),
        ({"factor": 0}, {}, {}, "whole number of at least 1, not 0"),
        ({"low_pass": "gaussian"}, {}, {}, "needs dr2.sigma_px"),
        ({"scheduler": "euler"}, {}, {}, "ddpm, ddim"),
        ({"variance": "fixed_small"}, {}, {}, "belongs to dr2.scheduler=ddpm"),
        ({"scheduler": "ddpm", "variance": "learned_range"}, {}, {}, "3 output channels, not 6"),
        ({"low_pass": "none", "omega": None}, {}, {}, "dr2.omega must be given"),
        ({}, {}, {"precision": "int8"}, "fp32, bf16, fp16"),
        ({}, {}, {"attention": "flash"}, "auto, sdpa, xformers"),
        ({}, {}, {"attention": "xformers"}, "needs a CUDA device"),
        ({"model": "nothing-here"}, {}, {}, "no model 'nothing-here'"),
    ],
)
def test_invalid_settings(model_folder, dr2, enhancer, options, says):
    with pytest.raises(ValueError, match=says):
        build_restorer(settings(model_folder, **dr2), EnhancerConfig(**enhancer), **options)


@pytest.mark.parametrize(
    ("network", "scheduler", "says"),
    [
        ({}, PNDMScheduler(), "PNDMScheduler"),
        ({"num_class_embeds": 3}, DDIMScheduler(), "class-conditional"),
        ({"out_channels": 1}, DDIMScheduler(), "1 output channels"),
    ],
)
def test_models_that_cannot_be_used_are_refused_before_work_starts(
    tmp_path, network, scheduler, says
):
    config = {k: v for k, v in make_unet().config.items() if not k.startswith("_")}
    unet = UNet2DModel.from_config(config | network)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=says):
        build_restorer(settings(tmp_path / "model", omega=9), EnhancerConfig())


def test_omega_must_be_a_timestep_of_training(tmp_path):
    DR2Pipeline(make_unet(), build_scheduler("ddim"), max_timestep=89).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"omega is timestep 99.*trained on timesteps 0\.\.89"):
        build_restorer(settings(tmp_path, omega=9), EnhancerConfig())
    build_restorer(settings(tmp_path, omega=8), EnhancerConfig())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_baselines_work_in_every_precision(model_folder, precision):
    bicubic = EnhancerConfig("bicubic", options={"size": 32})
    restorer, _ = build_restorer(settings(model_folder), bicubic, precision=precision)
    assert restorer(faces(2), [0, 1]).restored.shape == (2, 3, 32, 32)


@pytest.mark.slow
def test_compiled_networks_give_the_same(model_folder):
    compiled, _ = build_restorer(settings(model_folder), EnhancerConfig(), compile=True)
    plain, _ = build_restorer(settings(model_folder), EnhancerConfig())
    difference = compiled(faces(2), [0, 1]).restored - plain(faces(2), [0, 1]).restored
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("preset", ["dr2_ffhq_sparnethd", "celebahq256_bicubic", "portrait128"])
@pytest.mark.parametrize("name", ["none", "bicubic"])
def test_every_preset_can_switch_to_a_baseline(model_folder, preset, name):
    path = resource("configs") / "restore" / f"{preset}.yaml"
    overrides = [f"dr2.model={model_folder}", f"enhancer.name={name}", "input=a", "output=b",
                 "dr2.variance=null", "dr2.scheduler=ddim"]  # fmt: skip
    config = load_config(RestoreConfig, path, overrides)
    restorer, hashes = build_restorer(config.dr2, config.enhancer)
    assert list(hashes) == ["dr2"]
    assert restorer(faces(1), [0]).restored.shape[-1] == (16 if name == "none" else 512)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"no diffusers model"):
        build_restorer(settings(tmp_path), EnhancerConfig())
