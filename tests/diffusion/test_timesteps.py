import parity
import pytest
from diffusers import PNDMScheduler, UniPCMultistepScheduler

from dr2pipe.diffusion.timesteps import build_scheduler, check_chain, default_omega, start_chain


def test_the_ddpm_chain_is_the_reference_one():
    _, arrays = parity.load("dr2_sampler")
    _, timesteps = start_chain(build_scheduler("ddpm"), omega=99, tau=0)
    assert timesteps[::-1] == arrays["timestep_map"].tolist()


@pytest.mark.parametrize(
    ("factor", "tau", "omega"),
    [(1, 10, 15), (2, 10, 20), (4, 22, 42), (8, 35, 60), (16, 35, 65), (3, 22, 42), (32, 35, 65)],
)
def test_default_omega(factor, tau, omega):
    assert default_omega(tau, factor) == omega


def test_default_omega_stays_inside_the_chain():
    assert default_omega(98, 1) == 99
    assert default_omega(5, 16, num_steps=20) == 19


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ({"omega": 5, "tau": 10}, r"omega=5 must lie in 10\.\.99"),
        ({"omega": 100, "tau": 10}, r"omega=100 must lie in 10\.\.99"),
        ({"omega": 20, "tau": -1}, r"tau=-1 must lie in 0\.\.99"),
        ({"omega": 20, "tau": 10, "num_steps": 15}, r"omega=20 must lie in 10\.\.14"),
        ({"omega": 20, "tau": 10, "num_evaluations": 12}, r"must lie in 2\.\.11"),
        ({"omega": 20, "tau": 10, "num_evaluations": 1}, r"must lie in 2\.\.11"),
        ({"omega": 10, "tau": 10, "num_evaluations": 2}, r"must lie in 1\.\.1"),
        ({"omega": 0, "tau": 0, "num_steps": 0}, "num_steps=0"),
    ],
)
def test_chain_errors_say_what_is_allowed(chain, says):
    with pytest.raises(ValueError, match=says):
        check_chain(**{"num_steps": 100, **chain})


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'pndm'; choose one of ddpm, ddim, dpmsolver\+\+"):
        build_scheduler("pndm")
    with pytest.raises(ValueError, match="learned_range, fixed_small, fixed_large"):
        build_scheduler("ddpm", variance="big")


@pytest.mark.parametrize("kind", [PNDMScheduler, UniPCMultistepScheduler])
def test_schedulers_that_lose_the_guidance_are_refused_by_name(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot be used"):
        start_chain(kind(), omega=20, tau=10)


def test_the_copy_steps_with_x0_and_the_given_scheduler_is_not_changed():
    for name in ("ddpm", "ddim", "dpmsolver++"):
        scheduler = build_scheduler(name, prediction_type="v_prediction")
        prepared, _ = start_chain(scheduler, omega=20, tau=10)
        assert prepared.config.prediction_type == "sample"
        assert scheduler.config.prediction_type == "v_prediction"


def test_other_predictions_are_refused():
    with pytest.raises(ValueError, match="choose one of epsilon, sample, v_prediction"):
        build_scheduler("ddim", prediction_type="flow_prediction")
    scheduler = build_scheduler("ddim")
    scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="flow_prediction"):
        start_chain(scheduler, omega=20, tau=10)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_num_evaluations_spreads_calls_and_keeps_both_ends(name):
    scheduler = build_scheduler(name)
    before = dict(scheduler.config), scheduler.num_inference_steps
    _, every = start_chain(scheduler, omega=42, tau=22)
    prepared, few = start_chain(scheduler, omega=42, tau=22, num_evaluations=5)
    assert len(every) == 21
    assert few == every[::5]
    assert set(few) <= set(int(t) for t in prepared.timesteps)
    assert (dict(scheduler.config), scheduler.num_inference_steps) == before  # left alone
