"""Tasks beyond plain samples, on Gaussian data whose conditional distributions are known."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from kinfolk import sampling
from kinfolk.contract import Batch, DataSpec, Progress, RequestError, SampleRequest, SamplerState
from kinfolk.rng import generator, row_between
from kinfolk.serving.prices import Prices
from kinfolk.serving.scheduling import Speed
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig, UNetConfig
from kinfolk_families._shared.noise import noise_between, per_row
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import AdapterConfig, DdpmConfig, DiffusionConfig, EdmConfig, FlowConfig, Options
from kinfolk_families.diffusion.preconditioning import Edm
from kinfolk_families.diffusion.sample import Sampler
from kinfolk_families.diffusion.solvers import Settings, stage
from kinfolk_families.diffusion.tasks import ANOMALY_DRAWS

COVARIANCE = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.3], [0.5, 0.3, 0.8]], dtype=torch.float64)
VARIANCE, AXES = torch.linalg.eigh(COVARIANCE)
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
VECTOR = DataSpec(kind="vector", shape=(2,), classes=3, data_std=0.6)


def correlated(x_t, sigma, label):
    """E[x | x_t] of data N(0, COVARIANCE) along the last axis."""
    return (x_t @ AXES * (VARIANCE / (VARIANCE + per_row(sigma, x_t) ** 2))) @ AXES.T


EDM = Edm(EdmConfig(), 1.0)
SAMPLER = Sampler(correlated, EDM, (3,))
MANY = Sampler(correlated, EDM, (300, 3))  # each row is so many draws


def finish(state, sampler=SAMPLER):
    while not bool(state.done.all()):
        state = sampler.advance(state)
    return state


def completing(rows, first, shape=(3,), **options):
    """A request for rows whose first elements are ``first``; the others hold what nobody should look at."""
    x = torch.tensor([first, 99.0, -99.0]).expand(rows, *shape)
    mask = torch.tensor([1.0, 0.0, 0.0]).expand(rows, *shape)
    return SampleRequest(torch.arange(rows), Options(**options), x=x, mask=mask)


@pytest.mark.parametrize("solver", ["heun", "ddim", "dpmpp_2m", "ddpm"])
def test_given_elements_come_out_as_given_by_every_solver(solver):
    found = SAMPLER.render(finish(SAMPLER.inpaint(completing(4, 1.5, solver=solver, steps=5, resample=2))))
    assert torch.equal(found[:, 0], torch.full((4,), 1.5))
    assert found[:, 1:].abs().max() < 6


def test_what_stands_where_nothing_is_given_is_never_looked_at():
    asked = completing(4, 1.5, steps=4)
    other = replace(asked, x=torch.where(asked.mask.bool(), asked.x, math.nan))
    found, same = (finish(SAMPLER.inpaint(request)).x for request in (asked, other))
    assert torch.equal(found, same)


@pytest.mark.parametrize("solver", ["ddim", "heun", "ddpm"])
def test_on_the_way_given_elements_carry_noise_of_their_level(solver):
    """They are what is given plus noise of just the level the next call stands at, to 4 standard errors."""
    state = MANY.inpaint(completing(4, 0.7, (300, 3), solver=solver, steps=4, resample=2))
    while not bool(state.done.all()):
        settings = Settings(*(state.carry[name] for name in Settings._fields))
        level = float(stage(settings, state.call, EDM.level).evaluated[0])
        off = (state.x[..., 0] - 0.7) / level
        assert float(off.mean()) == pytest.approx(0, abs=4 / math.sqrt(1200))
        assert float(off.std()) == pytest.approx(1, abs=4 / math.sqrt(2400))
        state = MANY.advance(state)


@pytest.mark.parametrize(("solver", "steps"), [("heun", 18), ("dpmpp_2m", 60)])
def test_missing_elements_follow_their_distribution_given_the_known_one(solver, steps):
    """Mean C_uk C_kk^-1 x and spread are approached as steps are taken again; once each they are far off."""
    expected = COVARIANCE[1:, 0] / COVARIANCE[0, 0] * 1.5
    left = COVARIANCE[1:, 1:] - torch.outer(COVARIANCE[1:, 0], COVARIANCE[0, 1:]) / COVARIANCE[0, 0]
    once, often = (
        finish(MANY.inpaint(completing(2, 1.5, (300, 3), solver=solver, steps=steps, resample=resample)), MANY).x
        for resample in (1, 16)
    )
    once, often = (x.flatten(0, 1)[:, 1:] for x in (once, often))
    assert torch.allclose(often.mean(0), expected, atol=0.15)
    assert torch.allclose(often.std(0), left.diagonal().sqrt(), atol=0.12)
    assert float(torch.cov(often.T)[0, 1]) == pytest.approx(float(left[0, 1]), abs=0.08)
    assert float((once.mean(0) - expected).abs().max()) > 0.3


def test_rows_of_all_tasks_share_a_state_and_do_not_notice():
    weight = torch.tensor([0.3], dtype=torch.float64)
    plain = SampleRequest(torch.tensor([50]), Options(steps=6))
    between = replace(plain, seeds=torch.tensor([60]), seed_to=torch.tensor([61]), weight=weight)
    noisy = SampleRequest(torch.tensor([70]), Options(steps=9, noise_level=0.8), x=torch.tensor([[0.5, 1.0, -1.0]]))
    states = [
        SAMPLER.inpaint(completing(2, 0.4, steps=4, resample=3)),
        SAMPLER.sample(plain),
        SAMPLER.sample(between),
        SAMPLER.restore(noisy),
    ]
    alone = torch.cat([finish(state).x for state in states])
    state, found = SamplerState.cat(states), {}
    while len(state):
        state = SAMPLER.advance(state)
        done = state.select(state.done)
        found |= dict(zip(done.seed.tolist(), done.x, strict=True))
        state = state.select(~state.done)
    together = torch.stack([found[seed] for seed in (0, 1, 50, 60, 70)])
    assert torch.allclose(together, alone, rtol=1e-12, atol=1e-12)


def test_restored_samples_are_draws_of_what_a_noisy_one_may_have_been():
    """Of N(0, C) data seen with noise of 0.8: mean C (C + 0.64)^-1 x and the covariance left."""
    x = torch.tensor([1.0, -0.5, 0.4], dtype=torch.float64)
    options = Options(solver="ddpm", steps=100, noise_level=0.8)
    asked = SampleRequest(torch.arange(6), options, x=x.expand(6, 300, 3))
    found = finish(MANY.restore(asked), MANY).x.flatten(0, 1)
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + 0.64 * torch.eye(3, dtype=torch.float64))
    left = COVARIANCE - gain @ COVARIANCE
    assert torch.allclose(found.mean(0), gain @ x, atol=0.06)
    assert torch.allclose(torch.cov(found.T), left, atol=0.05)


def test_a_deterministic_restoration_follows_the_probability_flow():
    """Of data N(0, v) along each axis, x at noise s ends at x sqrt(v / (v + s^2))."""
    x = torch.tensor([[1.0, -0.5, 0.4]], dtype=torch.float64)
    state = SAMPLER.restore(SampleRequest(torch.tensor([3]), Options(steps=100, noise_level=0.8), x=x))
    assert torch.equal(state.x, x)
    exact = (x @ AXES * (VARIANCE / (VARIANCE + 0.64)).sqrt()) @ AXES.T
    assert torch.allclose(finish(state).x, exact, atol=1e-3)


def test_a_restoration_with_churn_starts_with_the_noise_that_is_missing():
    x, options = torch.zeros(4, 300, 3), Options(steps=10, noise_level=0.8, churn=3.0)
    state = MANY.restore(SampleRequest(torch.arange(4), options, x=x))
    assert float(state.x.std()) == pytest.approx(0.8 * math.sqrt(1.3**2 - 1), rel=0.05)


def way(weights, **options):
    """A request from seed 3 to seed 9 at ``weights``."""
    weight = torch.tensor(weights, dtype=torch.float64)
    seeds = torch.full((len(weights),), 3)
    return SampleRequest(seeds, Options(**options), seed_to=torch.full_like(seeds, 9), weight=weight)


STOCHASTIC = [
    {"solver": "ddpm"},
    {"solver": "ddim", "eta": 0.7},
    {"solver": "heun", "churn": 3.0},
    {"solver": "dpmpp_2m", "eta": 1.0},
]


@pytest.mark.parametrize("options", [{"solver": "heun"}, {"solver": "dpmpp_2m"}, *STOCHASTIC])
def test_the_ends_of_a_way_are_the_samples_of_its_seeds_by_every_solver(options):
    found = finish(SAMPLER.sample(way([0.0, 0.5, 1.0], steps=9, **options))).x
    plain = finish(SAMPLER.sample(SampleRequest(torch.tensor([3, 9]), Options(steps=9, **options)))).x
    assert torch.allclose(found[[0, 2]], plain, atol=1e-5)
    assert not torch.allclose(found[1], plain[0], atol=1e-2)


def test_the_first_noise_of_a_way_is_the_platforms():
    seeds, to = torch.arange(5), torch.arange(10, 15)
    weight = torch.linspace(0, 1, 5, dtype=torch.float64)
    ours = noise_between(seeds, to, weight, torch.zeros_like(seeds), (4, 4))
    assert torch.allclose(ours, row_between(seeds, to, weight, (4, 4)), atol=1e-6)


def test_on_a_deterministic_way_samples_change_little_by_little():
    found = finish(SAMPLER.sample(way(torch.linspace(0, 1, 41).tolist(), steps=12))).x
    steps = found.diff(dim=0).norm(dim=1)
    assert float(steps.max()) < 3 * float(steps.mean())


def model_of(spec=VECTOR, network=None, **config):
    network = network or MlpConfig(width=8, depth=1)
    return build(FAMILY, DiffusionConfig(network=network, **config), spec, seed=0)


def test_the_anomaly_score_is_the_loss_of_one_sample_by_itself():
    """A silent EDM denoises N(0, s^2); at each level its error weighs (sigma^2 x^2 / s^2 + s^2) / (sigma^2 + s^2)."""
    model, rows = model_of(), 1000
    model.module.requires_grad_(False)
    levels = model.module.preconditioner.draw(ANOMALY_DRAWS, generator("denoising error")).double()
    for x in (0.0, 1.8):
        batch = Batch(torch.full((rows, 2), x))
        score = model.tasks.anomaly_score(batch, torch.arange(rows))
        expected = ((levels**2 * x**2 / 0.36 + 0.36) / (levels**2 + 0.36)).mean()
        assert float(score.mean()) == pytest.approx(float(expected), abs=5 * float(score.std()) / math.sqrt(rows))


def test_the_anomaly_score_is_not_told_the_class_where_the_model_can_do_without():
    batch, other = (Batch(torch.ones(2, 2), torch.full((2,), label)) for label in (0, 2))
    for dropout, equal in ((0.1, True), (0.0, False)):
        model = model_of(conditional=True, label_dropout=dropout)
        noise = torch.Generator().manual_seed(0)
        for parameter in model.module.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)
        scores = [model.tasks.anomaly_score(b, torch.arange(2)) for b in (batch, other)]
        assert torch.equal(*scores) == equal


def row_tasks(model):
    """What a model answers for samples of its data, by task, given their labels or none."""
    x, seeds, (phase,) = torch.full((2, 2), 0.3), torch.arange(2), FAMILY.phases(model.module)
    progress = Progress(0, 0, torch.Generator().manual_seed(0))
    return {
        "log_prob": lambda label: model.tasks.log_prob.nats(Batch(x, label), seeds),
        "anomaly_score": lambda label: model.tasks.anomaly_score(Batch(x, label), seeds),
        "denoise": lambda label: model.tasks.denoise(x, torch.ones(2), label),
        "training": lambda label: phase.loss(Batch(x, label), progress).value,
    }


@pytest.mark.parametrize("task", ["log_prob", "anomaly_score", "denoise", "training"])
def test_a_model_that_always_learnt_with_labels_asks_for_them(task):
    """Without label dropout the embedding of "unknown" was never trained; with it, nothing is asked for."""
    always, sometimes = (model_of(conditional=True, label_dropout=dropout) for dropout in (0.0, 0.1))
    with pytest.raises(RequestError, match="give labels, 0 to 2") as caught:
        row_tasks(always)[task](None)
    assert caught.value.field == "label"
    assert row_tasks(always)[task](torch.tensor([0, 2])).isfinite().all()
    for model in (sometimes, model_of()):
        assert row_tasks(model)[task](None).isfinite().all()


def test_rows_of_a_model_that_always_learnt_with_labels_draw_theirs_from_their_seed():
    model = model_of(conditional=True, label_dropout=0.0)
    assert sampling.sample(model, 3, options={"steps": 2}).isfinite().all()
    with pytest.raises(RequestError, match="with and without labels"):
        sampling.sample(model, 3, options={"steps": 2, "guidance": 2.0})


@pytest.mark.parametrize("start", ["inpaint", "denoise"])
def test_rows_made_from_a_sample_draw_no_class(start):
    """Theirs is the sample's: told, unknown where that was learnt, or asked for."""
    given = SampleRequest(torch.arange(2), Options(steps=3), x=torch.ones(2, 2), mask=torch.zeros(2, 2))
    sometimes, always = (
        model_of(conditional=True, label_dropout=dropout).tasks.starts[start] for dropout in (0.1, 0.0)
    )
    told = replace(given, label=torch.tensor([2, 0]))
    assert sometimes(given).carry["label"].tolist() == [3, 3]
    assert sometimes(told).carry["label"].tolist() == always(told).carry["label"].tolist() == [2, 0]
    with pytest.raises(RequestError, match="A sample is given without its class") as caught:
        always(given)
    assert caught.value.field == "label"


@pytest.mark.parametrize("start", ["inpaint", "denoise"])
def test_guidance_of_what_is_given_needs_its_class(start):
    """Unknown is what guidance leads away from: led to it, a sample would be its unguided self at twice the cost."""
    given = SampleRequest(torch.arange(2), Options(steps=3, guidance=2.0), x=torch.ones(2, 2), mask=torch.zeros(2, 2))
    begin = model_of(conditional=True).tasks.starts[start]
    assert begin(replace(given, label=torch.tensor([2, 0]))).cost.tolist() == [2, 2]
    with pytest.raises(RequestError, match=r"guidance=2\.0 leads away from no class") as caught:
        begin(given)
    assert caught.value.field == "label"


@pytest.mark.parametrize("preconditioning", [EdmConfig(), DdpmConfig(), FlowConfig()], ids=["edm", "ddpm", "flow"])
def test_denoising_what_has_no_noise_returns_it(preconditioning):
    model, x_t = model_of(preconditioning=preconditioning), torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    found = model.tasks.denoise(x_t, torch.tensor([0.0, 1.0]), None)
    assert torch.equal(found[0], x_t[0])
    assert torch.equal(found[1], model.module(x_t, torch.ones(2))[1])


@pytest.mark.parametrize(("base", "adapter"), [(0.1, None), (0.1, 0.3), (0.1, 0.0), (0.0, None), (0.0, 0.0)])
def test_an_adapter_asks_for_labels_where_it_or_its_base_has_always_learnt_with_them(base, adapter):
    parent = model_of(conditional=True, label_dropout=base)
    config = DiffusionConfig(adapter=AdapterConfig(rank=1, label_dropout=adapter))
    denoise = build(FAMILY, config, VECTOR, seed=0, parents={"base": parent}).tasks.denoise
    x_t, sigma = torch.ones(2, 2), torch.ones(2)
    if base and adapter != 0:
        assert torch.equal(denoise(x_t, sigma, None), denoise(x_t, sigma, torch.tensor([3, 3])))
    else:
        with pytest.raises(RequestError, match="give labels"):
            denoise(x_t, sigma, None)


@pytest.mark.parametrize("preconditioning", [EdmConfig(), DdpmConfig(), FlowConfig()], ids=["edm", "ddpm", "flow"])
def test_every_preconditioning_has_every_task(preconditioning):
    model = model_of(IMAGE, UNetConfig(channels=8, multipliers=(1, 1), heads=1), preconditioning=preconditioning)
    tasks, x = model.tasks, torch.zeros(2, 1, 8, 8)
    request = sampling.make_request(model, 2, options={"steps": 3})
    mask = torch.zeros(1, 8, 8)
    requests = {
        "sample": request,
        "interpolate": sampling.interpolating(request, 7),
        "inpaint": sampling.completing(request, IMAGE, x, mask),
        "denoise": replace(request, x=x),
    }
    assert set(requests) == set(tasks.starts)
    for task, asked in requests.items():
        found = sampling.draw(tasks, asked, task)
        assert found.shape == (2, 1, 8, 8)
        assert found.isfinite().all()


def test_denoise_is_differentiable_in_a_trainable_copy():
    """What a consistency model needs of its teacher, and of the student made from it."""
    model = model_of()
    model.module.requires_grad_(False)
    x_t = torch.ones(3, 2, requires_grad=True)
    model.tasks.denoise(x_t, torch.ones(3), None).sum().backward()
    assert (x_t.grad != 0).all()
    student = copy.deepcopy(model.module).requires_grad_(True)
    student(torch.ones(3, 2), torch.ones(3)).sum().backward()
    assert any(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    ("task", "changes", "field"),
    [
        ("inpaint", {}, "x"),
        ("inpaint", {"x": torch.zeros(1, 2)}, "mask"),
        ("inpaint", {"x": torch.zeros(1, 3), "mask": torch.zeros(1, 2)}, "x"),
        ("denoise", {}, "x"),
        ("denoise", {"x": torch.zeros(1, 2), "options": Options(noise_level=81.0)}, "noise_level"),
        ("denoise", {"x": torch.zeros(1, 2), "options": Options(noise_level=0.002)}, "noise_level"),
        ("denoise", {"x": torch.zeros(1, 2), "options": Options(noise_level=0.5, sigma_min=0.5)}, "noise_level"),
        ("sample", {"options": Options(sigma_min=0.001)}, "sigma_min"),
        ("sample", {"options": Options(sigma_min=79.99)}, "sigma_min"),
        ("interpolate", {}, "seed_to"),
        ("interpolate", {"seed_to": torch.tensor([4])}, "weight"),
    ],
)
def test_a_request_that_lacks_what_its_task_needs_is_refused(task, changes, field):
    model = model_of()
    request = replace(sampling.make_request(model, 1), **changes)
    with pytest.raises(RequestError) as caught:
        model.tasks.starts[task](request)
    assert caught.value.field == field


@pytest.mark.parametrize("start", ["sample", "inpaint", "denoise"])
def test_a_row_guided_in_an_interval_makes_the_evaluations_it_promised(start):
    options = Options(steps=6, guidance=2.0, guidance_low=0.5, guidance_high=20.0, noise_level=40.0, resample=2)
    given = SampleRequest(
        torch.arange(2), options, torch.tensor([2, 0]), x=torch.ones(2, 2), mask=torch.tensor([[1.0, 0.0]] * 2)
    )
    tasks = model_of(conditional=True).tasks
    *calls, _ = sampling.trajectory(tasks, given, start)
    made = [int(state.cost.sum()) for state in calls]
    assert sampling.evaluations(tasks, given, start) == sum(made)
    assert Prices(tasks, Speed(8)).of(given, start) == sum(made) / 2  # what admission is told of each row
    assert set(made) == {2, 4}
