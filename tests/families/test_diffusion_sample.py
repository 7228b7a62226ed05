"""Rows of every solver side by side, guidance, and requests a model cannot serve."""

import math

import pytest
import torch
from pydantic import ValidationError

from kinfolk import sampling
from kinfolk.contract import DataSpec, SampleRequest, SamplerState
from kinfolk.errors import RequestError
from kinfolk.rng import row_integers
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import DdpmConfig, DiffusionConfig, EdmConfig, Options
from kinfolk_families.diffusion.guidance import Guidance, clamped, guided
from kinfolk_families.diffusion.preconditioning import Ddpm, Edm
from kinfolk_families.diffusion.sample import Sampler

UNKNOWN = 3  # the index after classes 0, 1 and 2
VECTOR = DataSpec(kind="vector", shape=(2,), classes=3)


def centred(x_t, sigma, label):
    """E[x | x_t] of N(label, 1); where the class is unknown, of N(-1, 1)."""
    centre = torch.where(label == UNKNOWN, -1.0, label.double())[:, None]
    return centre + (x_t - centre) / (1 + sigma[:, None] ** 2)


class Counting:
    """A denoiser that remembers how many rows each of its calls had."""

    def __init__(self):
        self.rows = []

    def __call__(self, x_t, sigma, label):
        self.rows.append(len(x_t))
        return centred(x_t, sigma, label)


def sampler(denoise=centred, conditioner=None):
    return Sampler(denoise, conditioner or Edm(EdmConfig(), 1.0), (2,), UNKNOWN)


def request(seeds, label=None, **options):
    labels = None if label is None else torch.full((len(seeds),), label)
    return SampleRequest(torch.tensor(seeds), Options(**options), labels)


def finish(rows, state):
    while not bool(state.done.all()):
        state = rows.advance(state)
    return state.x


def inputs(rows=4):
    x_t, sigma = torch.randn(rows, 2, dtype=torch.float64), torch.rand(rows, dtype=torch.float64) + 0.5
    return x_t, sigma, torch.arange(rows) % 3


@pytest.mark.parametrize("conditioner", [Edm(EdmConfig(), 1.0), Ddpm(DdpmConfig())], ids=["edm", "ddpm"])
def test_rows_of_all_solvers_share_a_state_and_do_not_notice(conditioner):
    """They join at different calls, with other steps, guidance and noise, and leave when they are done."""
    rows = sampler(conditioner=conditioner)
    requests = [
        request([1, 2], 0, solver="heun", steps=6, guidance=2.5),
        request([3], 1, solver="heun", steps=9, churn=3.0, churn_low=0.1, churn_noise=1.01),
        request([4, 5], 2, solver="dpmpp_2m", steps=11),
        request([11], 2, solver="dpmpp_2m", steps=9, eta=1.0),
        request([12], 1, solver="heun", steps=6, eta=0.8),
        request([6], 0, solver="ddim", steps=7, eta=0.5, guidance=0.0),
        request([10], 0, solver="heun", steps=8, guidance=4.0, guidance_low=0.1, guidance_high=3.0),
        request([7, 8], 1, solver="ddpm", steps=12, variance="large"),
        request([9], 2, solver="ddpm", steps=5, clamp=True),
    ]
    alone = {int(seed): finish(rows, rows.sample(r))[i] for r in requests for i, seed in enumerate(r.seeds)}
    state, pictures = rows.sample(requests[0]), {}
    for waiting in [*requests[1:], *[None] * 20]:
        state = rows.advance(state)
        pictures |= dict(zip(state.seed[state.done].tolist(), state.x[state.done], strict=True))
        state = state.select(~state.done)
        if waiting is not None:
            state = SamplerState.cat([state, rows.sample(waiting)])
    assert pictures.keys() == alone.keys()
    for seed, x in pictures.items():
        assert torch.allclose(x, alone[seed], rtol=1e-12, atol=1e-12)


def strength(weight, low=0.0, high=math.inf):
    """Guidance of rows that differ in weight alone."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    return Guidance(weight, torch.full_like(weight, low), torch.full_like(weight, high))


def test_guidance_moves_from_the_unknown_estimate_through_the_conditional_one():
    x_t, sigma, label = inputs()
    with_label, without = centred(x_t, sigma, label), centred(x_t, sigma, torch.full_like(label, UNKNOWN))
    weight = torch.tensor([0.0, 1.0, 2.0, 3.5], dtype=torch.float64)
    expected = without + weight[:, None] * (with_label - without)
    assert torch.allclose(guided(centred, strength(weight), UNKNOWN)(x_t, sigma, label), expected)


def test_guidance_of_one_is_the_plain_denoiser_at_its_cost():
    counting, (x_t, sigma, label) = Counting(), inputs()
    found = guided(counting, strength([1.0] * 4), UNKNOWN)(x_t, sigma, label)
    assert torch.equal(found, centred(x_t, sigma, label))
    assert counting.rows == [4]


def test_outside_its_interval_guidance_is_the_plain_denoiser_at_its_cost():
    """Guided above the lower level and up to the higher one."""
    counting, (x_t, _, label) = Counting(), inputs(5)
    sigma = torch.tensor([0.4, 0.5, 0.6, 2.0, 2.1], dtype=torch.float64)
    found = guided(counting, strength([3.0] * 5, low=0.5, high=2.0), UNKNOWN)(x_t, sigma, label)
    everywhere = guided(centred, strength([3.0] * 5), UNKNOWN)(x_t, sigma, label)
    inside = torch.tensor([False, False, True, True, False])
    assert torch.equal(found[inside], everywhere[inside])
    assert torch.equal(found[~inside], centred(x_t, sigma, label)[~inside])
    assert counting.rows == [7]


@pytest.mark.parametrize("interval", [{"guidance_low": 0.3, "guidance_high": 5.0}, {"guidance_low": 5.0}])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_the_cost_of_a_call_is_what_the_denoiser_is_asked(solver, interval):
    """Two evaluations a guided row inside the interval, one outside it, one for every other row."""
    counting = Counting()
    rows = sampler(counting)
    apart = request([1, 2], 0, solver=solver, steps=9, guidance=2.0, **interval)
    state = SamplerState.cat([rows.sample(apart), rows.sample(request([3], 1, solver=solver, steps=9))])
    first, second, alone = rows.evaluations(state).tolist()
    promised = []
    while not bool(state.done.all()):
        promised.append(int(state.cost.sum()))
        state = rows.advance(state)
    assert counting.rows == promised
    assert set(promised) == {3, 5}
    assert first == second
    assert [first + second, alone] == [sum(promised) - len(promised), len(promised)]


def test_only_guided_rows_are_evaluated_twice_and_in_the_same_call():
    counting = Counting()
    rows = sampler(counting)
    state = SamplerState.cat([rows.sample(request([1, 2, 3], 0)), rows.sample(request([4, 5], 1, guidance=2.0))])
    assert state.cost.tolist() == [1, 1, 1, 2, 2]
    rows.advance(state)
    assert counting.rows == [7]


def test_guided_samples_of_gaussian_classes_land_where_guidance_points():
    """D_w is the estimate of N(centre_w, 1) with centre_w = -1 + w (label + 1)."""
    rows = sampler()
    plain = finish(rows, rows.sample(request([1, 2], 0, steps=40)))
    pushed = finish(rows, rows.sample(request([1, 2], 0, steps=40, guidance=3.0)))
    assert torch.allclose(pushed - plain, torch.full_like(plain, 2.0), atol=0.05)


def test_only_rows_that_ask_for_it_are_clamped():
    x_t, sigma, label = inputs()
    far = 10 * x_t.sign()
    found = clamped(centred, torch.tensor([True, False, True, False]))(far, sigma, label)
    assert torch.equal(found[1::2], centred(far, sigma, label)[1::2])
    assert torch.equal(found[0::2], centred(far, sigma, label)[0::2].clamp(-1, 1))
    assert not torch.equal(found[0::2], centred(far, sigma, label)[0::2])


def test_a_row_without_a_label_draws_its_class_from_its_seed():
    rows, seeds = sampler(), torch.arange(30)
    drawn = rows.sample(SampleRequest(seeds, Options())).carry["label"]
    assert torch.equal(drawn, row_integers(seeds, 3))
    assert drawn.unique().tolist() == [0, 1, 2]


def test_a_preview_is_the_latest_estimate():
    rows = sampler()
    state = rows.sample(request([1], 2))
    assert rows.render(state).tolist() == [[0, 0]]
    expected = centred(state.x, torch.tensor([80.0]), torch.tensor([2]))
    assert torch.allclose(rows.render(rows.advance(state)), expected.float())


def test_a_sampled_pixel_model_never_leaves_float32_outside():
    rows = sampler()
    state = rows.sample(request([1], 2))
    assert state.x.dtype == torch.float64
    assert rows.render(state).dtype == torch.float32


def model_of(spec=VECTOR, **config):
    return build(FAMILY, DiffusionConfig(network=MlpConfig(width=8, depth=1), **config), spec, seed=0)


@pytest.mark.parametrize(
    ("config", "options", "field", "named"),
    [
        ({"conditional": True}, {"steps": 0}, "steps", "greater than or equal to 1"),
        ({"conditional": True}, {"steps": 1001}, "steps", "less than or equal to 1000"),
        ({"conditional": True}, {"solver": "hein"}, "solver", "'heun'"),
        ({"conditional": True}, {"eta": 1.5}, "eta", "less than or equal to 1"),
        ({"conditional": True}, {"guidance_low": 2.0, "guidance_high": 1.0}, "options", "must be below guidance_high"),
        ({"conditional": True}, {"stps": 10}, "stps", "Did you mean 'steps'"),
        ({"conditional": True}, {"clamp": True}, "clamp", "no range"),
        ({"conditional": True, "label_dropout": 0.0}, {"guidance": 2.0}, "guidance", "with and without labels"),
        ({}, {"guidance": 2.0}, "guidance", "with and without labels"),
        ({"preconditioning": DdpmConfig(timesteps=20)}, {"steps": 21}, "steps", "Use 1 to 20"),
        (
            {},
            {"solver": "ddpm", "eta": 0.5},
            "eta",
            "eta=0.5 would have no effect: it is for solver=ddim or heun or dpm",
        ),
        ({}, {"solver": "ddim", "churn": 40}, "churn", "it is for solver=heun"),
        ({"conditional": True}, {"guidance_low": 0.5}, "guidance_low", "it is for guidance other than 1"),
        ({}, {"solver": "dpmpp_2m", "variance": "large"}, "variance", "it is for solver=ddpm"),
        ({}, {"churn_low": 0.05}, "churn_low", "it is for churn above 0"),
        ({}, {"solver": "ddim", "churn_noise": 1.007}, "churn_noise", "it is for churn above 0"),
        ({}, {"churn": 4.0, "churn_low": 2.0, "churn_high": 1.0}, "options", "must be below churn_high"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(config, options, field, named):
    with pytest.raises(RequestError, match=named) as caught:
        sampling.sample(model_of(**config), 1, options=options)
    assert caught.value.field == field


def test_a_solver_may_be_changed_where_the_recipe_has_settings_of_its_own():
    tasks = model_of(sampler=Options(solver="ddim", eta=1.0)).tasks
    assert sampling.resolve_options(FAMILY, tasks, {"solver": "ddpm"}).solver == "ddpm"
    assert sampling.resolve_options(FAMILY, tasks, {"solver": "heun", "eta": 0}).eta == 0
    assert sampling.resolve_options(FAMILY, tasks, {"solver": "ddim", "eta": 0.5}).eta == 0.5


@pytest.mark.parametrize(
    "given", [{"solver": "ddpm", "eta": 0.5}, {"solver": "ddim", "churn": 40}, {"variance": "large"}]
)
def test_a_recipe_with_settings_of_another_solver_is_refused(given):
    with pytest.raises(ValidationError, match="would have no effect: it is for solver="):
        DiffusionConfig(sampler=Options(**given))


def test_an_unconditional_model_takes_no_label():
    assert model_of().tasks.conditions == frozenset()
    assert model_of(conditional=True).tasks.conditions == {"label"}
    with pytest.raises(RequestError, match="not class-conditional"):
        sampling.sample(model_of(), 1, label=1)


def test_the_models_own_options_are_the_default():
    tasks = model_of(sampler=Options(solver="ddim", steps=5)).tasks
    assert sampling.make_request(model_of(sampler=Options(solver="ddim", steps=5)), 1).options == tasks.options
    assert tasks.options == Options(solver="ddim", steps=5)
