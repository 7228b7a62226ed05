"""What population based training may change, decided by what a training in progress can take over."""

import random

import pytest
from pydantic import TypeAdapter

from kinfolk.config import parse
from kinfolk.contract import DataSpec
from kinfolk.errors import ConfigError
from kinfolk.families import find_family
from kinfolk.training.state import build, prepare
from kinfolk.tuning.population import check_perturbed, explorer
from kinfolk.tuning.recipes import recipe_of
from kinfolk.tuning.space import Setting
from kinfolk.tuning.sweep import Pace, Pbt

BASE = {
    "name": "r",
    "family": "gan",
    "data": "digits",
    "model": {
        "penalties": [{"kind": "r1", "gamma": 1.0}],
        "generator": {"kind": "conv", "width": 8},
        "critic": {"kind": "conv", "width": 8},
    },
    "training": {"samples": 1000, "batch_size": 10, "ema_halflife_samples": 100},
}
SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17)
one = TypeAdapter(Setting).validate_python


def state(settings):
    recipe = recipe_of(BASE, settings, Pace(samples=500, report_every=50))
    family = find_family(recipe.family)
    return prepare(build(family, parse(family.config, recipe.model, "model"), SPEC, 0), recipe.training)


def check(**space):
    space = {key.replace("__", "."): one(setting) for key, setting in space.items()}
    pbt = Pbt(kind="pbt", perturb=tuple(space), every_samples=100)
    check_perturbed(pbt, space, state)


def test_rates_penalties_and_averages_may_change():
    check(
        model__generator_optimizer__lr={"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
        model__critic_optimizer__betas={"kind": "choice", "values": [[0.0, 0.9], [0.5, 0.99]]},
        model__penalties__0__gamma={"kind": "log_uniform", "low": 0.1, "high": 10},
        training__ema_halflife_samples={"kind": "int", "low": 10, "high": 1000},
        model__loss={"kind": "choice", "values": ["non_saturating", "relativistic"]},
    )


@pytest.mark.parametrize(
    ("key", "setting", "says"),
    [
        ("model.latent", {"kind": "int", "low": 2, "high": 4}, r"generator.network.project.weight is \(\d+, 2\)"),
        ("model.critic.kind", {"kind": "choice", "values": ["conv", "residual"]}, "critic.head.weight is"),
        ("training.ema_halflife_samples", {"kind": "int", "low": 0, "high": 10}, "missing at one end"),
        ("model.critic_optimizer.kind", {"kind": "choice", "values": ["adam", "sgd"]}, "it changes the optimiser"),
        ("training.batch_size", {"kind": "int", "low": 10, "high": 20}, "in which order"),
        ("training.precision", {"kind": "choice", "values": ["float32", "bfloat16"]}, "in which order"),
        ("seed", {"kind": "int", "low": 0, "high": 1}, "in which order"),
    ],
)
def test_what_the_copied_state_would_not_fit_is_refused(key, setting, says):
    with pytest.raises(ConfigError, match=rf"scheduler.perturb: {key} cannot change during training: .*{says}"):
        check(**{key.replace(".", "__"): setting})


@pytest.mark.parametrize("target", [None, 0.6])
def test_a_setting_may_change_unless_the_copied_state_holds_it(target):
    """How often augmentation transforms is the recipe's, unless training adapts it."""
    space = {
        "model.augmentation": one({"kind": "fixed", "value": {"transforms": ["cutout"], "target": target}}),
        "model.augmentation.probability": one({"kind": "uniform", "low": 0.25, "high": 0.75}),
    }
    pbt = Pbt(kind="pbt", perturb=("model.augmentation.probability",), every_samples=100)
    if target is None:
        check_perturbed(pbt, space, state)
        return
    with pytest.raises(ConfigError, match=r"starts at 0.25 or at 0.75, and training goes on from what it has become"):
        check_perturbed(pbt, space, state)


def test_the_refusal_names_what_may_change():
    with pytest.raises(ConfigError, match=r"Of scheduler\.perturb, model\.critic_optimizer\.lr may"):
        check(
            model__latent={"kind": "int", "low": 2, "high": 4},
            model__critic_optimizer__lr={"kind": "uniform", "low": 1e-4, "high": 1e-2},
        )


def test_a_key_is_tried_where_it_exists():
    """A weight of the penalty is none of a recipe without one."""
    space = {
        "model.penalties": one({"kind": "choice", "values": [[], [{"kind": "r1", "gamma": 1.0}]]}),
        "model.penalties.0.gamma": one(
            {"kind": "uniform", "low": 1, "high": 2, "when": {"model.penalties": [{"kind": "r1", "gamma": 1.0}]}}
        ),
    }
    check_perturbed(Pbt(kind="pbt", perturb=("model.penalties.0.gamma",), every_samples=1), space, state)


def test_exploring_changes_what_may_change_and_keeps_whose_state_it_is():
    space = {"lr": one({"kind": "uniform", "low": 0, "high": 1}), "width": one({"kind": "int", "low": 1, "high": 9})}
    pbt = Pbt(kind="pbt", perturb=("lr",), every_samples=1, resample=0.0, seed=random.randrange(100))
    donor = {"trial": {"id": "004", "settings": {"lr": 0.5, "width": 7}, "seed": None, "checkpoints": ["a"]}}
    explored = explorer(pbt, space)(donor)["trial"]
    assert explored["settings"]["lr"] in (0.4, 0.6)
    assert {**explored, "settings": None} == {**donor["trial"], "settings": None}
    assert explored["settings"]["width"] == 7
    assert donor["trial"]["settings"]["lr"] == 0.5
