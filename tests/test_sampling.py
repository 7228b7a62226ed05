"""Requests beyond plain samples: ways between two seeds, pictures to complete, options of which some are in vain."""

from dataclasses import replace
from typing import ClassVar

import kinfolk_toy
import pytest
import torch

from kinfolk import sampling
from kinfolk.contract import DataSpec, SamplerOptions, Tasks
from kinfolk.errors import RequestError
from kinfolk.rng import row_between, row_normal, slerp
from kinfolk.training.state import build


@pytest.fixture
def model(digits):
    return build(kinfolk_toy.FAMILY, kinfolk_toy.FAMILY.config(), digits.spec, seed=0)


def test_an_arc_keeps_its_angle_even_and_its_length_between_the_ends():
    a, b = torch.tensor([[3.0, 0.0]]).expand(5, 2), torch.tensor([[0.0, 1.0]]).expand(5, 2)
    weight = torch.linspace(0, 1, 5)
    way = slerp(a, b, weight)
    angle = torch.atan2(way[:, 1], way[:, 0])
    assert torch.allclose(angle, weight * torch.pi / 2, atol=1e-6)
    assert torch.allclose(way.norm(dim=1), 3 - 2 * weight, atol=1e-6)


def test_an_arc_between_parallel_vectors_is_the_straight_line():
    a = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(slerp(a, 3 * a, torch.tensor([0.25])), 1.5 * a, atol=1e-6)


def test_noise_on_the_way_is_as_long_as_noise():
    seeds, to = torch.arange(200), torch.arange(1000, 1200)
    middle = row_between(seeds, to, torch.full((200,), 0.5, dtype=torch.float64), (64,))
    assert float(middle.square().mean()) == pytest.approx(1, abs=0.05)
    ends = row_between(seeds, to, torch.ones(200, dtype=torch.float64), (64,))
    assert torch.allclose(ends, row_normal(to, torch.zeros_like(to), (64,)), atol=1e-6)


def test_a_way_holds_both_its_ends(model):
    way = sampling.interpolating(sampling.make_request(model, 5, seed=3), 9)
    assert way.seeds.tolist() == [3] * 5
    assert way.seed_to.tolist() == [9] * 5
    assert way.weight.tolist() == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("n", "seed_to", "field"), [(1, 9, "n"), (3, -1, "seed_to"), (3, 2**62, "seed_to")])
def test_a_way_without_two_ends_is_refused(model, n, seed_to, field):
    with pytest.raises(RequestError) as caught:
        sampling.interpolating(sampling.make_request(model, n), seed_to)
    assert caught.value.field == field


def test_one_mask_serves_every_row(model, digits):
    x, mask = digits.source("test").take(0, 2).x, torch.zeros(digits.spec.shape, dtype=torch.bool)
    mask[..., :3] = True
    request = sampling.completing(sampling.make_request(model, 2), digits.spec, x, mask)
    assert torch.equal(request.mask[0], request.mask[1])
    assert float(request.mask.sum()) == 2 * 8 * 3
    assert request.mask.untyped_storage().nbytes() == 8 * 8 * 4  # not yet one for each row: it may still be refused
    assert sampling.rows_of(request, slice(2)).mask.is_contiguous()
    part = sampling.rows_of(request, slice(1, 2))
    assert torch.equal(part.x, x[1:])
    assert part.seeds.tolist() == [1]
    assert part.mask.shape == (1, *digits.spec.shape)


def test_whether_a_model_takes_options_is_told_without_an_error(model):
    assert sampling.takes(model, {"steps": 2})
    assert not any(sampling.takes(model, options) for options in ({"steps": 99}, {"step": 2}))


@pytest.mark.parametrize(
    ("x", "mask", "field"),
    [
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8), "x"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(8, 8), "mask"),
        (torch.zeros(2, 1, 8, 8), torch.full((1, 8, 8), 0.5), "mask"),
    ],
)
def test_what_cannot_be_completed_is_refused(model, digits, x, mask, field):
    with pytest.raises(RequestError) as caught:
        sampling.completing(sampling.make_request(model, 2), digits.spec, x, mask)
    assert caught.value.field == field


def one_element(value):
    """Two samples of three elements, zero but for the last, and a mask of which that is given."""
    x = torch.zeros(2, 3)
    x[1, 2] = value
    return x, x != 0


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        ("vector", float("nan"), "not finite: give real numbers"),
        ("image", float("-inf"), "not finite"),
        ("tokens", -1, "whole numbers from 0 to 4"),
        ("tokens", 5, "whole numbers from 0 to 4"),
        ("tokens", 1.5, "whole numbers from 0 to 4"),
        ("tokens", float("nan"), "whole numbers from 0 to 4"),
    ],
)
def test_what_no_data_holds_is_refused_where_it_is_given_and_not_looked_at_elsewhere(model, kind, value, named):
    request, spec = sampling.make_request(model, 2), DataSpec(kind=kind, shape=(3,), levels=5)
    x, mask = one_element(value)
    for asked in (lambda: sampling.given(request, spec, x), lambda: sampling.completing(request, spec, x, mask)):
        with pytest.raises(RequestError, match=named) as caught:
            asked()
        assert caught.value.field == "x"
    assert sampling.completing(request, spec, x, ~mask).x is x


@pytest.mark.parametrize(("kind", "value"), [("vector", -7.5), ("tokens", 4)])
def test_data_may_be_given_to_its_limits(model, kind, value):
    request, spec = sampling.make_request(model, 2), DataSpec(kind=kind, shape=(3,), levels=5)
    x, mask = one_element(value)
    assert sampling.given(request, spec, x).x is x
    assert sampling.completing(request, spec, x.long(), mask).mask.sum() == 1


class Options(SamplerOptions):
    task_of: ClassVar = {"resample": "inpaint"}
    solver: str = "heun"
    resample: int = 4
    churn: float = 0.25

    def idle(self):
        return {} if self.solver == "heun" else {"churn": "solver heun"}


def resolved(own, task="sample", **given):
    family = replace(kinfolk_toy.FAMILY, options=Options)
    return sampling.resolve_options(family, Tasks(options=own), given, task)


def test_an_option_of_another_task_is_refused():
    assert resolved(Options(), "inpaint", resample=9).resample == 9
    with pytest.raises(RequestError, match="resample=9 would have no effect: it is for the task inpaint") as caught:
        resolved(Options(resample=7), resample=9)
    assert caught.value.field == "resample"


def test_an_option_given_in_vain_is_refused_and_one_of_the_model_is_not():
    assert resolved(Options(churn=1), solver="ddim") == Options(solver="ddim", churn=1)
    assert resolved(Options(solver="ddim"), solver="heun", churn=1).churn == 1
    for own, given in ((Options(), {"solver": "ddim", "churn": 1}), (Options(solver="ddim", churn=2), {"churn": 1})):
        with pytest.raises(RequestError, match=r"churn=1 would .*: it is for solver heun\. Leave") as caught:
            resolved(own, **given)
        assert caught.value.field == "churn"
