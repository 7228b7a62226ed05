"""Preconditioning and noise levels: the published formulas, and the reasons they were chosen."""

import math

import pytest
import torch
from pydantic import ValidationError

from kinfolk.config import parse
from kinfolk.errors import ConfigError
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import DdpmConfig, EdmConfig, FlowConfig
from kinfolk_families.diffusion.preconditioning import Ddpm, Edm, Flow, ddpm_betas, ddpm_sigmas, preconditioner

SIGMA = torch.logspace(-3, 2, 200, dtype=torch.float64)
DATA_STD = 0.7
EDM = Edm(EdmConfig(), DATA_STD)
DDPM = Ddpm(DdpmConfig())
FLOW = Flow(FlowConfig(), DATA_STD)
BOTH = pytest.mark.parametrize(("conditioner", "data_std"), [(EDM, DATA_STD), (DDPM, 1.0)], ids=["edm", "ddpm"])
ALL = pytest.mark.parametrize(
    ("conditioner", "data_std"), [(EDM, DATA_STD), (DDPM, 1.0), (FLOW, DATA_STD)], ids=["edm", "ddpm", "flow"]
)


@ALL
def test_every_noise_level_has_the_same_weight_at_the_networks_output(conditioner, data_std):
    one = conditioner.weight(SIGMA) * conditioner.scales(SIGMA).out ** 2
    assert torch.allclose(one, torch.ones_like(one), rtol=1e-12)


@BOTH
def test_the_networks_input_has_unit_variance(conditioner, data_std):
    variance = conditioner.scales(SIGMA).into ** 2 * (data_std**2 + SIGMA**2)
    assert torch.allclose(variance, torch.ones_like(variance), rtol=1e-12)


@ALL
def test_the_networks_target_has_unit_variance(conditioner, data_std):
    """The target is (x - skip (x + sigma n)) / out."""
    scale = conditioner.scales(SIGMA)
    variance = ((1 - scale.skip) ** 2 * data_std**2 + (scale.skip * SIGMA) ** 2) / scale.out**2
    assert torch.allclose(variance, torch.ones_like(variance), rtol=1e-9)


def test_edm_of_a_silent_network_is_the_best_linear_estimate():
    """For Gaussian data E[x | x_t] = sigma_data^2 / (sigma_data^2 + sigma^2) x_t, which the skip gives alone."""
    best = DATA_STD**2 / (DATA_STD**2 + SIGMA**2)
    assert torch.allclose(EDM.scales(SIGMA).skip, best, rtol=1e-12)


def test_a_ddpm_network_that_knows_the_noise_gives_back_the_data():
    x, noise = torch.randn(2, len(SIGMA), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = DDPM.scales(SIGMA)
    assert torch.allclose(scale.skip * (x + SIGMA * noise) + scale.out * noise, x)


def test_sigma_data_is_measured_unless_the_recipe_says_otherwise():
    assert preconditioner(EdmConfig(), 0.31).scales(SIGMA).skip.equal(Edm(EdmConfig(), 0.31).scales(SIGMA).skip)
    assert (
        preconditioner(EdmConfig(sigma_data=0.5), 0.31)
        .scales(SIGMA)
        .skip.equal(Edm(EdmConfig(), 0.5).scales(SIGMA).skip)
    )


def test_edm_trains_at_log_normal_levels():
    log_sigma = EDM.draw(200_000, torch.Generator().manual_seed(1)).log()
    assert abs(float(log_sigma.mean()) + 1.2) < 0.01
    assert abs(float(log_sigma.std()) - 1.2) < 0.01


def levels(conditioner, steps, count=None, smooth=False):
    """The first ``count`` noise levels of a run, by default all and the zero it ends with."""
    return levels_from(math.inf, conditioner, steps, count, smooth)


def levels_from(top, conditioner, steps, count=None, smooth=False, bottom=0.0):
    """The same of a run that starts at ``top`` and whose last step starts at ``bottom``."""
    step = torch.arange(count or steps + 1)
    ends = (torch.tensor(value, dtype=torch.float64) for value in (top, bottom))
    return conditioner.level(step, torch.tensor(steps), torch.tensor(smooth), *ends)


@pytest.mark.parametrize("conditioner", [EDM, DDPM, FLOW], ids=["edm", "ddpm", "flow"])
def test_a_smooth_run_ends_where_it_is_asked_to_but_not_below_the_lowest_level(conditioner):
    lowest, _ = conditioner.ends
    for bottom, last in ((0.5, 0.5), (lowest, lowest), (lowest / 2, lowest)):
        *_, before, end = levels_from(20.0, conditioner, 10, smooth=True, bottom=bottom)
        assert float(before) == pytest.approx(last)
        assert end == 0
    gaps = (levels_from(20.0, conditioner, 10, 10, True, 0.5) ** (1 / 7)).diff()
    assert torch.allclose(gaps, gaps.mean().expand(9), rtol=1e-9)


@pytest.mark.parametrize("smooth", [False, True])
def test_edm_steps_are_even_in_the_rho_th_root(smooth):
    sigma = levels(EDM, 18, count=20, smooth=smooth)
    assert sigma[0] == pytest.approx(80)
    assert sigma[17] == pytest.approx(0.002)
    assert sigma[18:].tolist() == [0, 0]
    gaps = (sigma[:18] ** (1 / 7)).diff()
    assert torch.allclose(gaps, gaps.mean().expand(17), rtol=1e-9)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("conditioner", [EDM, DDPM, FLOW], ids=["edm", "ddpm", "flow"])
def test_one_step_starts_at_the_largest_level(conditioner, smooth):
    first, last = levels(conditioner, 1, smooth=smooth)
    assert first == levels(conditioner, 50, smooth=smooth)[0]
    assert last == 0


@pytest.mark.parametrize(("schedule", "lowest", "highest"), [("linear", 0.01, 80), ("cosine", 0.0064, 80)])
def test_smooth_ddpm_levels_are_those_of_edm_within_what_was_trained(schedule, lowest, highest):
    sigma = levels(Ddpm(DdpmConfig(schedule=schedule)), 18, smooth=True)
    assert sigma[0] == pytest.approx(highest)
    assert sigma[17] == pytest.approx(lowest, rel=0.01)
    assert sigma[18] == 0
    gaps = (sigma[:18] ** (1 / 7)).diff()
    assert torch.allclose(gaps, gaps.mean().expand(17), rtol=1e-9)


def test_smooth_levels_stay_below_the_largest_that_was_trained():
    short = Ddpm(DdpmConfig(beta_last=0.005))
    assert levels(short, 18, smooth=True)[0] == pytest.approx(ddpm_sigmas(short.config)[-1].item())


def test_linear_betas_that_fall_and_settings_of_the_other_schedule_are_refused():
    with pytest.raises(ValidationError, match=r"beta_first=0\.5 must not be above beta_last=0\.02"):
        DdpmConfig(beta_first=0.5)
    with pytest.raises(ValidationError, match=r"beta_last=0\.5 would have no effect: it is for schedule=linear"):
        DdpmConfig(schedule="cosine", beta_last=0.5)
    with pytest.raises(ValidationError, match=r"cosine_offset=0\.1 would have no effect"):
        DdpmConfig(cosine_offset=0.1)
    with pytest.raises(ValidationError, match=r"p_mean=3\.0 would have no effect: it is for times=skewed"):
        FlowConfig(p_mean=3.0)


def test_linear_betas_and_what_they_leave_of_the_data():
    beta = ddpm_betas(DdpmConfig())
    assert beta[0] == pytest.approx(1e-4)
    assert beta[-1] == pytest.approx(0.02)
    assert torch.allclose(beta.diff(), beta.diff().mean().expand(999))
    kept = math.prod(1 - 1e-4 - (0.02 - 1e-4) * t / 999 for t in range(1000))
    assert ddpm_sigmas(DdpmConfig())[-1] == pytest.approx(math.sqrt((1 - kept) / kept))


def test_cosine_leaves_a_squared_cosine_of_the_data():
    """Nichol & Dhariwal eq. 17, where the limit on beta is not reached."""
    sigma = ddpm_sigmas(DdpmConfig(schedule="cosine"))[:-1]
    kept = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1000)]
    assert torch.allclose(1 / (1 + sigma**2), torch.tensor(kept, dtype=torch.float64) / kept[0], rtol=1e-9)
    assert ddpm_betas(DdpmConfig(schedule="cosine"))[-1] == 0.999


def test_as_many_steps_as_times_visit_each_once():
    level = levels(DDPM, 1000)
    assert torch.equal(level, ddpm_sigmas(DDPM.config).flip(0))


def test_fewer_steps_are_evenly_spaced_over_all_times():
    level = levels(DDPM, 10)
    assert torch.equal(level[:-1], ddpm_sigmas(DDPM.config)[[1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]])


def test_ddpm_trains_at_every_time_alike_and_never_at_none():
    config = DdpmConfig(timesteps=4)
    drawn = Ddpm(config).draw(40_000, torch.Generator().manual_seed(2))
    levels, count = drawn.unique(return_counts=True)
    assert torch.allclose(levels.double(), ddpm_sigmas(config)[1:])
    assert count.min() > 9_700


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"preconditioning": {"kind": "edm", "sigma_min": 5, "sigma_max": 2}}, "sigma_min=5.0 must be below"),
        ({"preconditioning": {"kind": "ddpm", "timesteps": 20}, "sampler": {"steps": 21}}, "sampler.steps=21"),
        ({"sampler": {"guidance": 2}}, "conditional: true"),
        ({"conditional": True, "label_dropout": 0, "sampler": {"guidance": 2}}, "label_dropout above 0"),
        ({"network": {"kind": "transformer", "width": 64, "heads": 6}}, "heads=6 does not divide width=64"),
        ({"preconditioning": {"kind": "edm", "sigma_dat": 1}}, "Did you mean 'sigma_data'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values, named):
    with pytest.raises(ConfigError, match=named):
        parse(FAMILY.config, values, "model")


def straight(x, noise, time):
    """What flow matching shows its network, and the velocity it wants of it."""
    return (1 - time) * noise + time * x, x - noise


def test_flow_matching_in_the_words_of_its_paper():
    """The state of the straight way is what the network sees, and the velocity of the way makes D the data."""
    x, noise = torch.randn(2, len(SIGMA), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state, velocity = straight(x, noise, time=1 / (1 + SIGMA))
    scale, x_t = FLOW.scales(SIGMA), x + SIGMA * noise
    assert torch.allclose(scale.into * x_t, state)
    assert torch.allclose(scale.skip * x_t + scale.out * velocity / math.sqrt(1 + DATA_STD**2), x)


def test_the_flow_loss_is_the_squared_error_of_the_velocity_over_its_variance():
    x, noise, predicted = torch.randn(3, len(SIGMA), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale, x_t = FLOW.scales(SIGMA), x + SIGMA * noise
    error = scale.skip * x_t + scale.out * predicted - x
    velocity_std = math.sqrt(1 + DATA_STD**2)
    wanted = (velocity_std * predicted - (x - noise)) ** 2 / velocity_std**2
    assert torch.allclose(FLOW.weight(SIGMA) * error**2, wanted)


def test_flow_matching_trains_at_times_uniform_between_the_levels_it_samples():
    sigma = FLOW.draw(100_000, torch.Generator().manual_seed(2))
    assert 0.002 * 0.999 < float(sigma.min()) < 0.0021
    assert 75 < float(sigma.max()) < 80.1
    time = (1 / (1 + sigma)).sort().values
    assert torch.allclose(time, torch.linspace(1 / 81, 1 / 1.002, 100_000), atol=0.01)


def test_skewed_times_are_those_of_log_normal_levels():
    skewed = Flow(FlowConfig(times="skewed", p_mean=-0.5, p_std=0.7), 1.0)
    log_sigma = skewed.draw(200_000, torch.Generator().manual_seed(1)).log()
    assert float(log_sigma.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(log_sigma.std()) == pytest.approx(0.7, abs=0.01)


def test_flow_steps_are_even_in_time_and_edms_where_smooth():
    time = 1 / (1 + levels(FLOW, 20, count=22))
    assert torch.allclose(time[:21], torch.linspace(1 / 81, 1, 21, dtype=torch.float64))
    assert time[21] == 1
    assert torch.equal(levels(FLOW, 18, smooth=True), levels(EDM, 18))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("conditioner", [EDM, DDPM, FLOW], ids=["edm", "ddpm", "flow"])
@pytest.mark.parametrize("top", [0.07, 0.5, 3.0])
def test_a_run_may_start_at_any_level_and_falls_from_there(conditioner, smooth, top):
    sigma = levels_from(top, conditioner, 40, smooth=smooth)
    assert float(sigma[0]) == pytest.approx(top, rel=1e-12)
    assert (sigma.diff() <= 0).all()
    assert sigma[-1] == 0
    assert sigma[-2] > 0


@pytest.mark.parametrize(("timesteps", "beta_last"), [(100, 0.2), (1000, 0.2)])
def test_noise_beyond_float32_is_refused_with_what_to_lower(timesteps, beta_last):
    with pytest.raises(ConfigError, match=rf"{timesteps} times grows to .* Lower beta_last={beta_last}"):
        preconditioner(DdpmConfig(timesteps=timesteps, beta_last=beta_last), 0.5)


SHORT = Ddpm(DdpmConfig(timesteps=100))


@pytest.mark.parametrize("conditioner", [EDM, DDPM, SHORT, FLOW], ids=["edm", "ddpm", "short", "flow"])
def test_the_ends_are_those_of_a_smooth_run(conditioner):
    sigma = levels(conditioner, 18, smooth=True)
    assert conditioner.ends == pytest.approx((float(sigma[-2]), float(sigma[0])))
