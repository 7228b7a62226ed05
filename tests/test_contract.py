"""Settings that would have no effect, on records of a toy's own; and what the contract offers."""

import inspect

import pytest

from kinfolk import contract
from kinfolk.config import parse
from kinfolk.contract import Config, SamplerOptions
from kinfolk.errors import ConfigError


def idle(self):
    return {} if self.solver == "heun" else {"churn": "solver heun"}


class Sampler(Config):
    solver: str = "heun"
    churn: float = 0.25
    idle = idle


class Options(SamplerOptions):
    solver: str = "heun"
    churn: float = 0.25
    idle = idle


class Recipe(Config):
    sampler: Sampler = Sampler()


def test_what_is_in_vain_is_idle_and_not_at_its_default():
    assert Options(solver="ddim", churn=1).in_vain() == {"churn": "solver heun"}
    for options in (Options(), Options(churn=1), Options(solver="ddim"), Options(solver="ddim", churn=0.25)):
        assert options.in_vain() == {}


def test_a_record_refuses_what_would_have_no_effect_with_what_it_is_for():
    assert Recipe(sampler={"churn": 1}).sampler.churn == 1
    assert Recipe(sampler={"solver": "ddim"}).sampler.solver == "ddim"
    with pytest.raises(ConfigError, match=r"sampler: churn=1\.0 would have no effect: it is for solver heun"):
        parse(Recipe, {"sampler": {"solver": "ddim", "churn": 1}}, "recipe")


def test_options_of_a_model_may_hold_what_the_request_leaves_idle():
    assert parse(Options, {"solver": "ddim", "churn": 1}, "options").churn == 1


def test_everything_public_is_offered():
    own = {
        name
        for name, value in vars(contract).items()
        if inspect.isclass(value) and value.__module__ == contract.__name__ and not name.startswith("_")
    }
    assert own <= set(contract.__all__)
