"""What a GPU must do as a CPU does. Without one, `pytest -m gpu` rehearses it on the CPU."""

import pytest
import torch
from conftest import DEVICE, make_unet, waits_are_errors

from dr2pipe.core import images
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.networks import use_attention, why_no_xformers
from dr2pipe.diffusion.noise import Philox
from dr2pipe.diffusion.stage1 import DR2Config, Remover
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import Enhancer, build_enhancer
from dr2pipe.restoration.face_batches import FaceRestorer
from dr2pipe.restoration.restorer import Restorer, build_restorer
from dr2pipe.restoration.settings import EnhancerConfig
from dr2pipe.runs.jobs import LoadedPicture
from dr2pipe.runs.steps import Steps

pytestmark = pytest.mark.gpu
ON_A_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="compiling for a CPU needs a C++ compiler")
SPARNET = {"size": 32, "channels": (8, 16), "residual_blocks": 1, "hourglass_depth": 2}


def make_restorer(device=DEVICE, **options):
    remover = Remover(
        make_unet(), build_scheduler("ddpm", variance="fixed_small"),
        build_low_pass("bicubic", factor=2), omega=10, tau=4,
    )  # fmt: skip
    torch.manual_seed(0)
    enhancer = build_enhancer("sparnet", **SPARNET)
    return Restorer(remover, enhancer, device=device, noise="philox", **options)


def faces(count, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_results_are_those_of_the_cpu():
    there = make_restorer()(faces(4), [1, 2, 3, 4]).restored.cpu()
    here = make_restorer("cpu")(faces(4), [1, 2, 3, 4]).restored
    assert (there - here).abs().max() * 127.5 <= 1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_is_close(precision):
    low = make_restorer(dtype=precision, channels_last=True)(faces(4), [1, 2, 3, 4])
    exact = make_restorer()(faces(4), [1, 2, 3, 4])
    assert (low.restored - exact.restored).abs().mean() * 127.5 < 4
    assert low.in_fp32 == [False] * 4


class Overflowing(Enhancer):
    """Its products are too large for float16 where a picture is bright."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(300.0))

    def forward(self, x):
        bright = (x.mean(dim=(1, 2, 3), keepdim=True) > 0.5).to(x.dtype)
        scale = 1 + bright * (self.weight - 1)
        return x * scale * scale / scale / scale


def test_what_overflows_in_fp16_is_done_again():
    pictures = torch.cat([torch.full((1, 3, 512, 512), 0.9), torch.zeros(1, 3, 512, 512)])
    restorer = Restorer(None, Overflowing(), device=DEVICE, dtype=torch.float16)
    result = restorer(pictures, [0, 1])
    assert result.in_fp32 == [True, False]
    assert torch.allclose(result.restored[0].cpu(), torch.tensor(0.9), atol=1e-5)
    assert {p.dtype for p in restorer.enhancer.parameters()} == {torch.float16}


@pytest.mark.skipif(DEVICE == "cpu", reason="the memory of a CPU cannot be limited here")
def test_batches_are_halved_where_memory_ends():
    restorer = FaceRestorer(make_restorer(), batch_size=4096)
    whole = faces(4096)
    looks = [None] * len(whole)
    torch.cuda.empty_cache()
    spare = torch.cuda.memory_reserved() + (256 << 20)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(spare / total)
    try:
        found = restorer(list(whole.split(1)), list(range(len(whole))), looks)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert restorer.batch_size < 4096
    few = make_restorer()(whole[:2], [0, 1]).restored.cpu()
    assert (torch.cat([one.restored for one in found[:2]]) - few).abs().max() * 127.5 <= 1


def test_levels_are_rounded_as_on_a_cpu():
    pictures = faces(3, 40) * 1.2
    assert (images.to_uint8(pictures.to(DEVICE)) == images.to_uint8(pictures)).all()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=ON_A_GPU)])
def test_widened_layers_are_close(model_folder, tmp_path, compiled):
    torch.manual_seed(0)
    build_enhancer("sparnet", **SPARNET | {"channels": (6, 12)}).save_pretrained(tmp_path / "e")
    dr2 = DR2Config(model=str(model_folder), factor=2, tau=4, omega=10)
    enhancer = EnhancerConfig("sparnet", weights=str(tmp_path / "e"))
    exact, low = (
        build_restorer(
            dr2, enhancer, device=DEVICE, precision=precision, noise="philox", compile=c
        )[0]
        for precision, c in (("fp32", False), ("bf16", compiled))
    )
    expected = exact(faces(4), [1, 2, 3, 4]).restored
    assert (low(faces(4), [1, 2, 3, 4]).restored - expected).abs().mean() * 127.5 < 4


def test_a_batch_waits_in_pinned_memory():
    steps = Steps(
        process=None, size=16, output_size=16, settings={}, outputs=["restored"], seed=0, batch_size=4,
        on_gpu=DEVICE != "cpu",
    )  # fmt: skip
    loaded = [LoadedPicture(None, face[None], None, {}, {}) for face in faces(4)]
    batch = steps.together(loaded)
    assert torch.equal(batch, faces(4))
    assert batch.is_pinned() == (DEVICE != "cpu")


def test_attention_of_xformers():
    reason = why_no_xformers(torch.device(DEVICE))
    if reason is not None:
        pytest.skip(reason)
    restorer = make_restorer(dtype=torch.bfloat16)
    usual = restorer(faces(2), [1, 2]).restored
    assert use_attention(restorer.remover.unet, "xformers", torch.device(DEVICE)) == "xformers"
    assert (restorer(faces(2), [1, 2]).restored - usual).abs().mean() * 127.5 < 2


def test_stage1_waits_for_nothing():
    """The host hands over the whole chain: in it nothing is read, or copied and waited for."""
    restorer = make_restorer(dtype=torch.bfloat16)
    first = restorer(faces(4), [1, 2, 3, 4])  # whatever is made once
    remover = restorer.remover
    degraded = faces(4).to(DEVICE)
    noise = Philox(torch.tensor([1, 2, 3, 4], device=DEVICE))
    with waits_are_errors(), torch.no_grad():
        coarse = remover(degraded, noise)
    assert (coarse - first.coarse).abs().max() < 1e-3


@pytest.mark.parametrize("enabled", [True, False])
def test_a_batch_is_begun_without_a_wait(enabled):
    restorer = make_restorer(dtype=torch.bfloat16)
    if not enabled:
        restorer = Restorer(None, restorer.enhancer, device=DEVICE, dtype=torch.bfloat16)
    pictures = faces(4, restorer.input_size)
    first = restorer(pictures, [1, 2, 3, 4])  # whatever is made once
    with waits_are_errors():
        begun = restorer.begin(pictures, [1, 2, 3, 4])
    assert (restorer.finish(begun).restored - first.restored).abs().max() < 1e-3


def test_results_are_fetched_beside_the_next_batch():
    restorer = make_restorer(dtype=torch.bfloat16)
    batches = [(faces(8)[i : i + 4], [i, i + 1, i + 2, i + 3]) for i in (0, 4)] * 4
    expected = [images.to_uint8(restorer(*batch).restored) for batch in batches]
    waiting, found = [], []
    for batch in [*batches, None]:
        waiting += [restorer.begin(*batch)] if batch is not None else []
        if len(waiting) == 2 or batch is None:
            begun = waiting.pop(0)
            with restorer.beside_the_next(begun):
                found.append(images.to_uint8(restorer.finish(begun).restored))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one.astype(int) - other).max() <= 1


def test_what_overflows_is_done_again_beside_the_next_batch():
    restorer = Restorer(None, Overflowing(), device=DEVICE, dtype=torch.float16)
    bright, dark = torch.full((1, 3, 512, 512), 0.9), torch.zeros(1, 3, 512, 512)
    begun = [restorer.begin(one, [0]) for one in (bright, dark)]
    for one, expected, again in zip(begun, (0.9, 0.0), (True, False), strict=True):
        with restorer.beside_the_next(one):
            result = restorer.finish(one)
            assert result.in_fp32 == [again]
            assert torch.allclose(result.restored.cpu(), torch.tensor(expected), atol=1e-5)
    assert {p.dtype for p in restorer.enhancer.parameters()} == {torch.float16}
