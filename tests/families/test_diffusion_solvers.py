"""Solvers over closed-form denoisers: published update rules, orders of convergence, and moments that must come out."""

import math
from itertools import pairwise

import pytest
import torch

from kinfolk.contract import SampleRequest
from kinfolk.rng import row_normal
from kinfolk_families.diffusion.config import DdpmConfig, EdmConfig, FlowConfig, Options
from kinfolk_families.diffusion.preconditioning import Ddpm, Edm, Flow, ddpm_betas, ddpm_sigmas
from kinfolk_families.diffusion.sample import Sampler
from kinfolk_families.diffusion.solvers import CODES, SOLVERS, Settings, Stage, ddim, ddpm, dpmpp_2m, heun, stage

STD = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)  # of Gaussian data, one axis each
FINE = Edm(EdmConfig(sigma_min=1e-5, sigma_max=20.0), 1.0)  # so that the last step is exact to rounding
DDPM = Ddpm(DdpmConfig())
FLOW = Flow(FlowConfig(), 1.0)
FAR = torch.tensor(math.inf, dtype=torch.float64)  # start at the highest level there is
NEAR = torch.tensor(0.0, dtype=torch.float64)  # and end with the lowest
COSINE = Ddpm(DdpmConfig(schedule="cosine"))


def gaussian(x_t, sigma, label):
    """E[x | x_t] of data N(0, STD^2)."""
    return x_t * STD**2 / (STD**2 + sigma[:, None] ** 2)


def unit_gaussian(x_t, sigma, label):
    return x_t / (1 + sigma[:, None] ** 2)


def two_points(x_t, sigma, label):
    """E[x | x_t] of data that is -0.5 or 0.5."""
    return 0.5 * (0.5 * x_t / sigma[:, None] ** 2).tanh()


def request(rows, **options):
    return SampleRequest(torch.arange(rows), Options(**options))


def states(denoise, conditioner, rows=4, shape=(3,), **options):
    """Every state of a run, the start included."""
    sampler = Sampler(denoise, conditioner, shape)
    state = sampler.sample(request(rows, **options))
    found = [state]
    while not bool(state.done.all()):
        state = sampler.advance(state)
        found.append(state)
    return found


def finished(*args, **options):
    return states(*args, **options)[-1].x


def at(before, sigma, after, eta=0.0, large=False):
    rows = [torch.as_tensor(value, dtype=torch.float64).expand(len(sigma)) for value in (before, sigma, after, 0.0)]
    flags = torch.zeros(len(sigma), dtype=torch.bool)
    return Stage(*rows, flags, torch.full_like(rows[0], eta), torch.full_like(flags, large))


def measured_order(solver):
    """Errors against the probability flow's own solution, at 40, 80 and 160 steps."""
    errors = []
    for steps in (40, 80, 160):
        run = states(gaussian, FINE, solver=solver, steps=steps)
        exact = run[0].x * STD / (STD**2 + 20.0**2).sqrt()
        errors.append(float((run[-1].x - exact).abs().max()))
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_error_falls_by_two_to_the_order_when_steps_double(solver, order):
    for measured in measured_order(solver):
        assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    "conditioner", [Edm(EdmConfig(), 1.0), DDPM, COSINE, FLOW], ids=["edm", "ddpm", "cosine", "flow"]
)
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_second_order_comes_close_in_eighteen_steps_whatever_was_trained(solver, conditioner):
    run = states(gaussian, conditioner, solver=solver, steps=18)
    exact = run[0].x * STD / (STD**2 + 80.0**2).sqrt()
    assert ((run[-1].x - exact) / exact).abs().max() < 0.1


def ddpm_times():
    """sigma_t and sigma_{t-1}, abar_t and abar_{t-1}, beta_t for t = 1 to T."""
    sigma, beta = ddpm_sigmas(DDPM.config), ddpm_betas(DDPM.config)
    kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    return sigma[1:], sigma[:-1], kept[1:], kept[:-1], beta


@pytest.mark.parametrize("large", [False, True])
def test_ancestral_factors_are_the_posterior_of_ddpm(large):
    """DDPM eq. 7 speaks of sqrt(abar) x_t; no noise is added at t = 1."""
    sigma, after, kept, kept_after, beta = ddpm_times()
    rule = ddpm(at(math.inf, sigma, after, large=large))
    on_x = (1 - beta).sqrt() * (1 - kept_after) / (1 - kept) * kept.sqrt() / kept_after.sqrt()
    on_denoised = beta / (1 - kept)
    variance = (beta if large else (1 - kept_after) / (1 - kept) * beta) / kept_after
    variance[0] = 0
    for got, expected in zip(rule, (on_x, on_denoised, torch.zeros_like(beta), variance.sqrt()), strict=True):
        assert torch.allclose(got, expected, rtol=1e-8, atol=1e-14)


def test_ddim_factors_are_those_of_its_paper():
    """DDIM eq. 12 and 16 speak of sqrt(abar) x_t; here over strides of 10 times."""
    sigma, kept = ddpm_sigmas(DDPM.config)[10::10], (1 / (1 + ddpm_sigmas(DDPM.config).square()))[10::10]
    after, kept_after = ddpm_sigmas(DDPM.config)[:-10:10], (1 / (1 + ddpm_sigmas(DDPM.config).square()))[:-10:10]
    eta = 0.6
    rule = ddim(at(math.inf, sigma, after, eta=eta))
    noise = eta * ((1 - kept_after) / (1 - kept)).sqrt() * (1 - kept / kept_after).sqrt()
    x, denoised = torch.randn(2, len(sigma), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    predicted_noise = (kept.sqrt() * x - kept.sqrt() * denoised) / (1 - kept).sqrt()
    expected = kept_after.sqrt() * denoised + (1 - kept_after - noise**2).clamp(min=0).sqrt() * predicted_noise
    assert torch.allclose(rule.x * x + rule.denoised * denoised, expected / kept_after.sqrt(), rtol=1e-8)
    assert torch.allclose(rule.noise, noise / kept_after.sqrt(), rtol=1e-8)


def test_dpmpp_2m_factors_are_those_of_its_paper():
    """Algorithm 2 with alpha = 1 and lambda = -ln(sigma)."""
    before, sigma, after = (torch.tensor(value, dtype=torch.float64) for value in ([9.0], [5.0], [2.0]))
    h, h_before = math.log(5 / 2), math.log(9 / 5)
    r = h_before / h
    rule = dpmpp_2m(at(before, sigma, after))
    assert rule.x.item() == pytest.approx(2 / 5)
    assert rule.denoised.item() == pytest.approx(-math.expm1(-h) * (1 + 1 / (2 * r)))
    assert rule.previous.item() == pytest.approx(math.expm1(-h) / (2 * r))


def test_dpmpp_2m_with_eta_one_is_the_sde_solver_of_its_paper():
    """SDE-DPM-Solver++(2M) with alpha = 1: x_t e^-2h, estimates by 1 - e^-2h, noise sigma sqrt(1 - e^-2h)."""
    before, sigma, after = (torch.tensor(value, dtype=torch.float64) for value in ([9.0], [5.0], [2.0]))
    h, h_before = math.log(5 / 2), math.log(9 / 5)
    r, share = h_before / h, -math.expm1(-2 * h)
    rule = dpmpp_2m(at(before, sigma, after, eta=1.0))
    assert rule.x.item() == pytest.approx(math.exp(-2 * h))
    assert rule.denoised.item() == pytest.approx(share * (1 + 1 / (2 * r)))
    assert rule.previous.item() == pytest.approx(-share / (2 * r))
    assert rule.noise.item() == pytest.approx(2.0 * math.sqrt(share))


@pytest.mark.parametrize(("before", "after"), [(math.inf, 2.0), (9.0, 0.0)], ids=["first", "last"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpmpp_2m_begins_and_ends_with_first_order(before, after, eta):
    sigma = torch.tensor([5.0], dtype=torch.float64)
    multistep, euler = dpmpp_2m(at(before, sigma, after, eta=eta)), ddim(at(before, sigma, after, eta=eta))
    assert torch.equal(torch.stack(multistep), torch.stack(euler))


def drawn(call, rows=4, shape=(3,)):
    """The sampler's own noise of x_t at ``call``."""
    return row_normal(torch.arange(rows), torch.full((rows,), call), shape).double()


@pytest.mark.parametrize(
    "churn",
    [
        {},
        {"churn": 4.0},
        {"churn": 40.0},
        {"churn": 4.0, "churn_low": 0.05, "churn_high": 5.0, "churn_noise": 1.007},
        {"churn": 4.0, "churn_low": 0.05},
    ],
)
def test_heun_is_algorithm_2_of_edm(churn):
    """The paper's loop written out, with the sampler's own noise. Both calls of a step share what it starts from.

    What churn adds at the start is part of its noise, so S_noise begins with the second step.
    """
    steps, s_noise = 9, churn.get("churn_noise", 1.0)
    sigma = FINE.level(torch.arange(steps + 1), torch.tensor(steps), torch.tensor(True), FAR, NEAR)
    most = min(churn.get("churn", 0.0) / steps, math.sqrt(2) - 1)
    gamma = [most if churn.get("churn_low", 0) <= s <= churn.get("churn_high", math.inf) else 0 for s in sigma.tolist()]
    x = states(gaussian, FINE, solver="heun", steps=steps, **churn)[0].x
    assert torch.allclose(x, sigma[0] * (1 + gamma[0]) * drawn(0))
    for i in range(steps):
        lifted = sigma[i] * (1 + gamma[i])
        if i:
            x = x + (lifted**2 - sigma[i] ** 2).sqrt() * s_noise * drawn(2 * i)
        slope = (x - gaussian(x, lifted.expand(4), None)) / lifted
        euler = x + (sigma[i + 1] - lifted) * slope
        if i < steps - 1:
            slope = (slope + (euler - gaussian(euler, sigma[i + 1].expand(4), None)) / sigma[i + 1]) / 2
        x = x + (sigma[i + 1] - lifted) * slope
    assert torch.allclose(finished(gaussian, FINE, solver="heun", steps=steps, **churn), x, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_heun_with_eta_mends_a_step_of_ddim_by_an_estimate_that_changes_evenly_in_ln_sigma(eta):
    """x_next = keep x_t + noise + integral of e^-(t - s) D(s) over s to t = -ln(keep), D straight between its ends."""
    steps = 9
    sigma = FINE.level(torch.arange(steps + 1), torch.tensor(steps), torch.tensor(True), FAR, NEAR)
    x = sigma[0] * drawn(0)
    for i in range(steps - 1):
        rule = ddim(at(math.inf, sigma[i : i + 1], sigma[i + 1 : i + 2], eta=eta))
        first = gaussian(x, sigma[i].expand(4), None)
        noisy = rule.x * x + rule.noise * drawn(2 * i + 1)
        second = gaussian(noisy + rule.denoised * first, sigma[i + 1].expand(4), None)
        t = -rule.x.log()
        s = t * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        weights = torch.stack([1 - s / t, s / t]) * (s - t).exp() * t / 2000
        x = noisy + weights[0].sum() * first + weights[1].sum() * second
    x = gaussian(x, sigma[-2].expand(4), None)
    assert torch.allclose(finished(gaussian, FINE, solver="heun", steps=steps, eta=eta), x, rtol=1e-5)


def std_of_heun(steps, eta):
    """Standard deviation of samples of data N(0, 1), from the factors alone."""
    level = FINE.level(torch.arange(steps + 1), torch.tensor(steps), torch.tensor(True), FAR, NEAR)
    stage = at(math.inf, level[:-1], level[1:], eta=eta)
    first, second = heun(stage), heun(stage._replace(correcting=torch.ones_like(stage.correcting)))
    denoised, denoised_next = 1 / (1 + stage.sigma**2), 1 / (1 + stage.after**2)
    scale, noise, mend = first.x + first.denoised * denoised, first.noise, 1 + second.denoised * denoised_next
    variance = float(1 + level[0] ** 2)
    for kept, new in zip((mend * scale + second.previous * denoised)[:-1], (mend * noise)[:-1], strict=True):
        variance = float(kept**2 * variance + new**2)
    return math.sqrt(variance) * float(denoised[-1])


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_spread_of_heun_with_eta_is_right_to_second_order(eta):
    errors = [abs(std_of_heun(steps, eta) - 1) for steps in (40, 80, 160)]
    assert errors[0] < 0.03
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("conditioner", [Edm(EdmConfig(), 1.0), DDPM, FLOW], ids=["edm", "ddpm", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_heun_with_eta_calls_the_network_at_its_own_levels_alone(conditioner, steps):
    levels = conditioner.level(torch.arange(steps), torch.tensor(steps), torch.tensor(True), FAR, NEAR)
    visited = walked("heun", steps, 1, eta=1.0, level=conditioner.level).evaluated
    assert set(visited.tolist()) == set(levels.tolist())


@pytest.mark.parametrize("conditioner", [Edm(EdmConfig(), 1.0), DDPM, FLOW], ids=["edm", "ddpm", "flow"])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_a_run_visits_no_level_below_the_sigma_min_asked_for(solver, conditioner):
    visited = []

    def denoise(x_t, sigma, label):
        visited.append(float(sigma[0]))
        return unit_gaussian(x_t, sigma, label)

    finished(denoise, conditioner, solver=solver, steps=9, sigma_min=0.05)
    assert min(visited) == pytest.approx(0.05)
    assert len(set(visited)) == 9


def test_ddim_with_eta_one_is_ancestral_sampling():
    ancestral = finished(gaussian, DDPM, solver="ddpm", steps=30)
    assert torch.allclose(finished(gaussian, DDPM, solver="ddim", eta=1.0, steps=30), ancestral, rtol=1e-9)
    assert not torch.allclose(finished(gaussian, DDPM, solver="ddim", eta=0.9, steps=30), ancestral, rtol=1e-2)


@pytest.mark.parametrize("timesteps", [20, 100, 1000])
def test_linear_noise_hides_the_mean_whatever_the_number_of_times(timesteps):
    """Of N(3, 1), whose samples would keep the prior's mean, 0, where noise at the first step did not hide theirs."""
    short = Ddpm(DdpmConfig(timesteps=timesteps))
    x = finished(lambda x_t, sigma, _: 3 + unit_gaussian(x_t - 3, sigma, _), short, 200, (50,), solver="ddim", steps=20)
    assert x.mean() == pytest.approx(3.0, abs=0.1)


def sampled_std(steps, large):
    """Standard deviation of ancestral samples of data N(0, 1), from the factors alone."""
    level = DDPM.level(torch.arange(steps + 1), torch.tensor(steps), torch.tensor(False), FAR, NEAR)
    sigma, after = level[:-1], level[1:]
    rule = ddpm(at(math.inf, sigma, after, large=large))
    factor, variance = rule.x + rule.denoised / (1 + sigma**2), float(1 + sigma[0] ** 2)
    for scale, noise in zip(factor.tolist(), rule.noise.tolist(), strict=True):
        variance = scale**2 * variance + noise**2
    return math.sqrt(variance)


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_large_variance_is_exact_for_unit_data_at_any_number_of_steps(steps):
    """But for the last step, which leaves out the noise of the smallest level, 0.01."""
    assert sampled_std(steps, large=True) ** 2 == pytest.approx(1 / (1 + ddpm_sigmas(DDPM.config)[1].item() ** 2))


def test_small_variance_becomes_right_as_steps_grow():
    short = [1 - sampled_std(steps, large=False) for steps in (10, 100, 1000)]
    assert short[0] > 4 * short[1] > 16 * short[2] > 0
    assert short[2] < 0.005


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "ddpm", "variance": "large", "steps": 10},
        {"solver": "dpmpp_2m", "eta": 1.0, "steps": 60},
        {"solver": "dpmpp_2m", "eta": 0.5, "steps": 60},
        {"solver": "heun", "eta": 1.0, "steps": 60},
        {"solver": "heun", "eta": 0.5, "churn": 10.0, "steps": 90},
    ],
    ids=["ddpm", "sde", "halfway", "heun", "heun-churned"],
)
def test_samples_with_noise_have_the_moments_of_the_data(options):
    """200 rows of 100 values, to 3 standard errors."""
    x = finished(unit_gaussian, DDPM, 200, (100,), **options)
    assert abs(float(x.mean())) < 3 / math.sqrt(x.numel())
    assert abs(float(x.std()) - 1) < 3 / math.sqrt(2 * x.numel())


@pytest.mark.parametrize(
    "conditioner", [Edm(EdmConfig(), 0.5), DDPM, COSINE, FLOW], ids=["edm", "ddpm", "cosine", "flow"]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_two_points_are_found_half_and_half(solver, conditioner):
    x = finished(two_points, conditioner, 200, (1,), solver=solver, steps=30)
    assert torch.allclose(x.abs(), torch.full_like(x, 0.5), atol=1e-3)
    assert abs(float((x > 0).double().mean()) - 0.5) < 3 * 0.5 / math.sqrt(200)


@pytest.mark.parametrize(("solver", "calls"), [("ddpm", 18), ("ddim", 18), ("heun", 35), ("dpmpp_2m", 18)])
def test_a_run_takes_its_calls_and_ends_on_the_last_estimate(solver, calls):
    run = states(gaussian, FINE, solver=solver, steps=18)
    assert len(run) == calls + 1
    assert torch.allclose(run[-1].x, run[-1].carry["denoised"], rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_the_estimate_from_pure_noise(solver):
    (start, end) = states(gaussian, FINE, solver=solver, steps=1)
    assert torch.allclose(end.x, gaussian(start.x, torch.full((4,), 20.0), None), rtol=1e-12)


def test_ddim_is_eulers_method_on_the_velocity_of_flow_matching():
    """The paper's state t x_t moves by its velocity (D - t x_t) / (1 - t), at times evenly spaced."""
    steps = 7
    x = states(gaussian, FLOW, solver="ddim", steps=steps)[0].x
    times = torch.linspace(1 / 81, 1, steps + 1, dtype=torch.float64)
    state = times[0] * x
    for time, following in pairwise(times):
        denoised = gaussian(state / time, ((1 - time) / time).expand(4), None)
        state = state + (following - time) * (denoised - state) / (1 - time)
    assert torch.allclose(finished(gaussian, FLOW, solver="ddim", steps=steps), state, rtol=1e-9)


def walked(solver, steps, resample, level=FINE.level, **more):
    """The stage of every call of a run that takes each step but the last ``resample`` times."""
    calls = SOLVERS[solver].calls(steps, resample)
    numbers = {"solver": CODES[solver], "steps": steps, "resample": resample, "churn_noise": 1.0}
    numbers |= {"top": math.inf, "bottom": 0.0, "churn_high": math.inf, **more}
    double = torch.float64
    columns = {name: torch.full((calls,), value, dtype=double) for name, value in numbers.items()}
    zeros = torch.zeros(calls, dtype=torch.int64)
    row = Settings(*(columns.get(name, zeros) for name in Settings._fields))
    row = row._replace(solver=row.solver.long(), steps=row.steps.long(), resample=row.resample.long())
    return stage(row, torch.arange(calls), level)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_taken_again_goes_back_to_where_it_started(solver, resample, eta):
    """Variance: what a call ends at plus what is put back is where the next call stands, from first call to last."""
    at = walked(solver, 5, resample, churn=1.5, eta=eta)
    per_step = SOLVERS[solver].calls_per_step
    ends = torch.arange(len(at.sigma) - 1) % per_step == per_step - 1
    reached = torch.where(ends, (at.after.square() + at.lift.square()).sqrt()[:-1], at.after[:-1])
    assert torch.allclose(reached, at.evaluated[1:], rtol=1e-9)
    visits = [resample * per_step] * 4 + [1]
    assert at.sigma.unique_consecutive(return_counts=True)[1].tolist() == visits
    assert at.after[-1] == 0
    assert at.lift[-1] == 0


def test_a_step_taken_again_forgets_the_estimate_of_the_level_before():
    at = walked("dpmpp_2m", 4, 2)
    assert at.before.isinf().tolist() == [True, True, False, True, False, True, False]
    assert torch.equal(at.before[2::2], at.sigma[:-1:2])


@pytest.mark.parametrize("options", [{"solver": "heun"}, {"solver": "ddpm", "variance": "large"}], ids=["heun", "ddpm"])
def test_noise_put_back_and_taken_away_again_leaves_the_distribution(options):
    """Rows of N(0, 1) data with every step taken three times are still N(0, 1), to 4 standard errors and 1 %."""
    sampler, nothing = Sampler(unit_gaussian, Edm(EdmConfig(), 1.0), (100,)), torch.zeros(60, 100)
    asked = SampleRequest(torch.arange(60), Options(steps=40, resample=3, **options), x=nothing, mask=nothing)
    state = sampler.inpaint(asked)
    while not bool(state.done.all()):
        state = sampler.advance(state)
    assert float(state.x.std()) == pytest.approx(1, abs=0.01 + 4 / math.sqrt(2 * state.x.numel()))
