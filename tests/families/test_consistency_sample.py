"""Sampling with a known consistency function: noise put back, rows at different steps, ways between, holes filled."""

import pytest
import torch
from torch import nn

from kinfolk import sampling
from kinfolk.contract import DataSpec, SamplerState
from kinfolk.errors import RequestError
from kinfolk.rng import row_between, row_integers, row_normal, slerp
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig
from kinfolk_families.consistency import FAMILY
from kinfolk_families.consistency.config import ConsistencyConfig, ImprovedTrainingConfig

MIN, MAX, STD = 0.4, 20.0, 0.9  # a sigma_min that no test can overlook


class Gaussian(nn.Module):
    """E[x | x_t] turned so that f is the exact map of the probability flow of data N(0, STD^2)."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, sigma, label, generator=None):
        self.asked.append((x_t, sigma, label))
        keep = (MIN / sigma)[:, None]
        ends = x_t * ((STD**2 + MIN**2) / (STD**2 + sigma**2)).sqrt()[:, None]
        return (ends - keep * x_t) / (1 - keep).clamp(min=1e-12)


def model(shape=(3,), classes=None, exact=True, **config):
    objective = ImprovedTrainingConfig(
        network=MlpConfig(width=8, depth=1), curriculum_samples=100, conditional=classes is not None
    )
    spec = DataSpec(kind="vector", shape=shape, classes=classes)
    built = build(FAMILY, ConsistencyConfig(objective=objective, sigma_min=MIN, sigma_max=MAX, **config), spec, 0)
    if exact:
        width = built.module.denoiser
        built.module.denoiser = Gaussian()
        built.module.anchor = width.label_embedding or width  # keeps a parameter, so that the module has a device
    return built


def request(which, n=4, seed=0, **options):
    return sampling.make_request(which, n, seed, None, options)


def trajectory(which, task="sample", asked=None, **options):
    return [state.x for state in sampling.trajectory(which.tasks, asked or request(which, **options), task)]


def noise(call, n=4, shape=(3,)):
    return row_normal(torch.arange(n), torch.full((n,), call), shape).double()


def ends(x_t, sigma):
    """The exact f."""
    return x_t * ((STD**2 + MIN**2) / (STD**2 + sigma**2)) ** 0.5


def test_one_step_is_f_of_pure_noise():
    start, end = trajectory(model(), sigmas=[])
    assert torch.equal(start, torch.zeros(4, 3, dtype=torch.float64))
    assert torch.allclose(end, ends((MAX**2 - MIN**2) ** 0.5 * noise(0), MAX))


def test_two_steps_put_noise_back_up_to_the_level_between():
    """x <- f(x + sqrt(tau^2 - sigma_min^2) noise, tau)."""
    _, first, second = trajectory(model(), sigmas=[2.5])
    assert torch.allclose(second, ends(first + (2.5**2 - MIN**2) ** 0.5 * noise(1), 2.5))


def test_the_noise_put_back_has_the_variance_of_the_level_less_that_of_the_end():
    which = model(shape=(4000,))
    _, first, _ = trajectory(which, sigmas=[1.3])
    (x_t, _, _) = which.module.denoiser.asked[1]
    assert float((x_t - first).var()) == pytest.approx(1.3**2 - MIN**2, rel=0.02)


@pytest.mark.parametrize("sigmas", [[], [2.0], [9.0, 3.0, 0.8]])
def test_the_exact_map_samples_the_data_at_the_end_of_paths_in_any_number_of_steps(sigmas):
    """Variance STD^2 + sigma_min^2, kept by every further step; the first lacks sigma_min^2 of its noise."""
    x = trajectory(model(shape=(4000,)), sigmas=sigmas)[-1]
    assert float(x.var()) == pytest.approx(STD**2 + MIN**2, rel=0.03)


def test_every_call_is_at_its_own_level_and_the_rows_say_how_many_there_are():
    which = model()
    states = list(sampling.trajectory(which.tasks, request(which, sigmas=[5.0, 1.0])))
    assert [float(sigma[0]) for _, sigma, _ in which.module.denoiser.asked] == [MAX, 5.0, 1.0]
    assert states[0].calls.tolist() == [3] * 4
    assert states[0].cost.tolist() == [1] * 4


def test_the_most_levels_there_may_be_are_all_visited():
    which, sigmas = model(), [19.0 - 0.2 * i for i in range(63)]
    states = list(sampling.trajectory(which.tasks, request(which, sigmas=sigmas)))
    assert len(states) == 65
    assert [float(sigma[0]) for _, sigma, _ in which.module.denoiser.asked] == pytest.approx([MAX, *sigmas])
    assert torch.equal(which.tasks.advance(states[-1]).x, states[-1].x)


def test_rows_of_any_number_of_steps_and_any_task_share_a_state_and_do_not_notice():
    which = model()
    x, mask = torch.ones(1, 3), torch.tensor([1.0, 0.0, 0.0])
    way = sampling.interpolating(request(which, 2, 50, sigmas=[3.0, 1.0]), 60)
    hole = sampling.completing(request(which, 1, 70, sigmas=[4.0, 2.0, 1.0]), which.spec, x, mask)
    asked = [
        ("sample", request(which, 2, 10, sigmas=[])),
        ("sample", request(which, 1, 20, sigmas=[6.0, 3.0, 2.0, 1.0])),
    ]
    asked += [("interpolate", way), ("inpaint", hole)]
    alone = [x for task, each in asked for x in sampling.draw(which.tasks, each, task)]
    keys = [(number, row) for number, (_, each) in enumerate(asked) for row in range(len(each.seeds))]
    waiting = [sampling.start(which.tasks, each, task) for task, each in asked]
    state, pictures, names = waiting.pop(0), {}, keys[:2]
    while len(state) or waiting:
        state = which.tasks.advance(state) if len(state) else state
        done = state.done.tolist()
        rendered = which.tasks.render(state)
        pictures |= {name: rendered[i] for i, name in enumerate(names) if done[i]}
        state, names = state.select(~state.done), [name for name, over in zip(names, done, strict=True) if not over]
        if waiting:
            names += [key for key in keys if key[0] == len(asked) - len(waiting)]
            state = SamplerState.cat([state, waiting.pop(0)])
    for key, expected in zip(keys, alone, strict=True):
        assert torch.allclose(pictures[key], expected, atol=1e-6)


def test_a_way_starts_and_ends_at_samples_in_any_number_of_steps():
    which = model()
    for sigmas in ([], [3.0], [9.0, 2.0, 0.7]):
        way = sampling.draw(
            which.tasks, sampling.interpolating(request(which, 5, 7, sigmas=sigmas), 900), "interpolate"
        )
        for row, seed in ((0, 7), (4, 900)):
            alone = sampling.sample(which, 1, seed, options={"sigmas": sigmas})[0]
            assert torch.allclose(way[row], alone, atol=1e-6)


def test_half_way_all_noise_stands_on_the_arc_between():
    which = model()
    asked = sampling.interpolating(request(which, 3, 7, sigmas=[3.0]), 900)
    _, first, second = trajectory(which, "interpolate", asked)
    seed, seed_to, half = torch.tensor([7]), torch.tensor([900]), torch.tensor([0.5], dtype=torch.float64)
    started = row_between(seed, seed_to, half, (3,)).double()
    assert torch.allclose(first[1], ends((MAX**2 - MIN**2) ** 0.5 * started, MAX)[0], atol=1e-6)
    one = torch.ones(1, dtype=torch.int64)
    added = slerp(row_normal(seed, one, (3,)).double(), row_normal(seed_to, one, (3,)).double(), half)
    assert torch.allclose(second[1], ends(first[1] + (9 - MIN**2) ** 0.5 * added, 3.0)[0])


def filled(which, value, sigmas):
    """The middle of three elements, the outer two being given as ``value``."""
    x, mask = torch.full((64, 3), value), torch.tensor([1.0, 0.0, 1.0])
    asked = sampling.completing(request(which, 64, 3, sigmas=sigmas), which.spec, x, mask)
    return sampling.draw(which.tasks, asked, "inpaint")


class Copying(nn.Module):
    """A denoiser of data whose elements are all equal and spread far: their mean."""

    def forward(self, x_t, sigma, label, generator=None):
        return x_t.mean(1, keepdim=True).expand_as(x_t)


def test_given_elements_come_out_as_given_and_the_rest_follows_them():
    which = model()
    which.module.denoiser = Copying()
    levels = [10.0, 6.0, 4.0, 2.5, 1.6, 1.0, 0.8, 0.6, 0.5]
    for value in (-3.0, 5.0):
        x = filled(which, value, levels)
        assert torch.equal(x[:, ::2], torch.full((64, 2), value))
        assert float(x[:, 1].mean()) == pytest.approx(value, abs=0.5)


def test_filling_in_starts_from_what_is_given():
    """Algorithm 4: the first noise goes on top of it."""
    which = model()
    asked = sampling.completing(
        request(which, 4, sigmas=[2.0]), which.spec, torch.full((4, 3), 7.0), torch.tensor([0.0, 1.0, 0.0])
    )
    start, first, _ = trajectory(which, "inpaint", asked)
    given = torch.tensor([0.0, 7.0, 0.0], dtype=torch.float64).expand(4, 3)
    assert torch.equal(start, given)
    expected = ends(given + (MAX**2 - MIN**2) ** 0.5 * noise(0), MAX)
    assert torch.allclose(first[:, ::2], expected[:, ::2])
    assert torch.equal(first[:, 1], given[:, 1])


def test_filling_in_needs_something_given_and_a_second_step():
    which = model()
    with pytest.raises(RequestError, match="needs one for each row") as caught:
        sampling.start(which.tasks, request(which, sigmas=[2.0]), "inpaint")
    assert caught.value.field == "x"
    with pytest.raises(RequestError, match="sees nothing that is given") as caught:
        filled(which, 1.0, [])
    assert caught.value.field == "sigmas"


@pytest.mark.parametrize(
    ("options", "field", "named"),
    [
        ({"sigmas": [0.5, 3.0]}, "sigmas", "must fall"),
        ({"sigmas": [3.0, 3.0]}, "sigmas", "must fall"),
        ({"sigmas": [25.0]}, "sigmas", "between 0.4 and 20.0"),
        ({"sigmas": [1.0, 0.4]}, "sigmas", "between 0.4 and 20.0"),
        ({"sigmas": [-1.0]}, "sigmas", "greater than 0"),
        ({"sigmas": [19.0 - 0.1 * i for i in range(64)]}, "sigmas", "at most 63"),
        ({"sigmas": [float("nan")]}, "sigmas", "finite"),
        ({"sigma": [1.0]}, "sigma", "Did you mean 'sigmas'"),
    ],
)
def test_levels_a_model_cannot_step_through_are_refused(options, field, named):
    which = model()
    with pytest.raises(RequestError, match=named) as caught:
        sampling.sample(which, 1, options=options)
    assert caught.value.field == field


def test_the_models_own_levels_are_the_default():
    which = model(sampler={"sigmas": (3.0, 1.0)})
    assert len(trajectory(which)) == 4
    assert len(trajectory(which, sigmas=[])) == 2


def test_a_row_without_a_label_draws_its_class_from_its_seed_and_keeps_it():
    which = model(classes=5)
    trajectory(which, sigmas=[2.0])
    drawn = row_integers(torch.arange(4), 5)
    assert all(torch.equal(label, drawn) for _, _, label in which.module.denoiser.asked)
    which.module.denoiser.asked.clear()
    list(sampling.trajectory(which.tasks, sampling.make_request(which, 2, 0, [4, 1], {})))
    assert which.module.denoiser.asked[0][2].tolist() == [4, 1]


def test_rows_are_float64_inside_and_float32_outside():
    which = model(exact=False)
    states = list(sampling.trajectory(which.tasks, request(which, sigmas=[2.0])))
    assert {state.x.dtype for state in states} == {torch.float64}
    assert which.tasks.render(states[-1]).dtype == torch.float32
