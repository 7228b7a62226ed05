"""Sweeps that are refused before anything starts, each with what to do."""

from dataclasses import replace

import pytest
import yaml

from kinfolk.errors import ConfigError
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.sweep_figures import ON_FEATURES, ON_MODES
from kinfolk_pipelines.sweep_plan import as_sets, check_modes, plan_sweep, trial_plan

SWEEP = {
    "recipe": "ring/blob",
    "space": {"model.optimizer.lr": {"kind": "log_uniform", "low": 0.001, "high": 0.1}},
    "trials": 4,
    "report_every_samples": 32,
    "objective": {"metric": "log_prob_density_nats", "mode": "max"},
}
TWO_LOOKS = {"every_samples": 32, "alarm": {"grace_samples": 0, "looks": 2}}
BATCHES = {"training.batch_size": {"kind": "choice", "values": [32, 64]}}


def changing(**change):
    """A monitor that changes this after an alarm."""
    return {**TWO_LOOKS, "act": "change", "changes": [change]}


@pytest.fixture
def planned(settings, tmp_path):
    """The plan of a sweep file with these entries."""

    def plan(of_shipped=False, **changes):
        folder = tmp_path / "sweeps" / "ring"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rates.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}))
        recipes = None if of_shipped else settings.recipes
        return plan_sweep(settings.model_copy(update={"sweeps": tmp_path / "sweeps", "recipes": recipes}), "ring/rates")

    return plan


def space(**keys):
    return {key.replace("__", "."): setting for key, setting in keys.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"space": {"model.optimizer.lrr": {"kind": "int", "low": 1, "high": 2}}},
            r"lrr is not a key. Did you mean 'lr'\?",
        ),
        ({"space": {"modle.x": {"kind": "int", "low": 1, "high": 2}}}, r"modle is not a key. Did you mean 'model'\?"),
        ({"space": {"training.sampels": {"kind": "int", "low": 1, "high": 2}}}, r"Did you mean 'samples'\?"),
        ({"space": {"training.samples": {"kind": "int", "low": 64, "high": 99}}}, "budget.samples, equal for all"),
        ({"space": {"seed": {"kind": "int", "low": 1, "high": 2}}}, r"space.seed: a sweep searches keys of model.\*"),
        ({"space": {"model.optimizer.lr": {"kind": "uniform", "low": -1, "high": 1}}}, r"got -1.0.*lr=-1.0"),
        ({"fixed": {"model.optimiser.lr": 1}}, r"optimiser is not a key. Did you mean 'optimizer'\?"),
        ({"objective": {"metric": "log_prob_density_nat", "mode": "max"}}, r"Did you mean 'log_prob_density_nats'\?"),
        ({"constraints": ["alrm == 0"]}, r"alrm is no figure. Did you mean 'alarm'\?"),
        ({"constraints": ["alarm == 0"]}, r"ring/blob has no monitor .* Add fixed: \{monitor: \{\}\}"),
        ({"constraints": ["alarm == 0"], "fixed": {"monitor": {"every_samples": 32}}}, "could never be given"),
        ({"fixed": {"monitor": TWO_LOOKS}, "budget": {"samples": 32}}, r"never be given.* \(at model.optimizer.lr="),
        (
            {"fixed": {"monitor": TWO_LOOKS}, "budget": {"samples": 32}, "finish": "retrain"}
            | {"constraints": ["alarm == 0"]},
            "never be given",
        ),
        (
            {"fixed": {"monitor": {**TWO_LOOKS, "every_samples": None}}, "space": BATCHES, "finish": "retrain"},
            r"could never be given.* \(at training.batch_size=64\)",
        ),
        (
            {"fixed": {"monitor": changing(put={"training.accumulate": 64})}, "space": BATCHES},
            r"batch_size=32 does not divide .* accumulate=64.* \(at training.batch_size=32\)",
        ),
        (
            {
                "fixed": {"monitor": changing(put={"model.optimizer.eps": 1e-6})},
                "space": {"model.optimizer.kind": {"kind": "choice", "values": ["adamw", "sgd"]}},
            },
            r"optimizer: eps=1e-06 would have no effect.* \(at model.optimizer.kind=\"sgd\"\)",
        ),
        ({"budget": {"samples": 31}}, "ends before the first report, after 32 samples. Give at least 32"),
        ({"objective": {"metric": "gausian/log_prob", "mode": "max"}}, r"no phase gausian. Did you mean 'gaussian'\?"),
        ({"fixed": {"model": {"optimizer": {"kind": "sgd"}}}}, r"fixed.model would .* fixed: {model.optimizer.kind: "),
        ({"workers": 3}, r"batch_size=32 does not divide over 3 workers"),
        (
            {"space": {"training.accumulate": {"kind": "choice", "values": [1, 5]}}},
            r"batch_size=32 does not divide .* accumulate=5.* \(at training.accumulate=5\)",
        ),
        (
            {"space": {"training.checkpoint_every_samples": {"kind": "int", "low": 64, "high": 99}}},
            "report_every_samples, equal for all",
        ),
        ({"recipe": "ring/blop"}, r"No recipe file or recipe is called 'ring/blop'. Did you mean 'ring/blob'\?"),
    ],
)
def test_a_mistake_is_named_with_what_is_meant(planned, changes, says):
    with pytest.raises(ConfigError, match=says):
        planned(**changes)


TOGETHER = {
    "training.accumulate": {"kind": "choice", "values": [1, 2]},
    "training.batch_size": {"kind": "choice", "values": [32, 33]},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"space": TOGETHER},
            r"33 does not divide .* \(at training.accumulate=2, training.batch_size=33\)",
        ),
        (
            {
                "space": {"training.batch_size": {"kind": "int", "low": 32, "high": 132}},
                "fixed": {"training.accumulate": 4},
            },
            r"does not divide over 1 workers with accumulate=4",
        ),
        (
            {"space": {"model.packing": {"kind": "int", "low": 1, "high": 4}}, "fixed": {"model.conditional": False}},
            r"batch_size=64 does not divide .* groups of 3 .* \(at model.packing=3\)",
        ),
        (
            {
                "space": {
                    "model.packing": {"kind": "choice", "values": [1, 2]},
                    "model.conditional": {"kind": "choice", "values": [False, True]},
                }
            },
            r"packing=2 puts samples of several classes into one.* \(at model.conditional=true, model.packing=2\)",
        ),
    ],
)
def test_what_fits_at_the_ends_alone_is_refused(planned, changes, says):
    """Between the ends of a number, or of two settings together."""
    of_gan = any(key.startswith("model.") for key in changes["space"])
    objective = {"metric": "coverage", "mode": "max"}
    given = {"recipe": "digits/dcgan", "report_every_samples": 1000, "objective": objective} if of_gan else {}
    with pytest.raises(ConfigError, match=says):
        planned(of_shipped=of_gan, **{**given, **changes})


def test_a_population_may_change_a_rate_and_not_the_batch(planned):
    pbt = {"kind": "pbt", "every_samples": 32, "perturb": ["model.optimizer.lr"]}
    assert planned(scheduler=pbt).sweep.scheduler.perturb == ("model.optimizer.lr",)
    batch = {"training.batch_size": {"kind": "choice", "values": [16, 32]}}
    with pytest.raises(ConfigError, match=r"training.batch_size cannot change during training"):
        planned(space=batch, scheduler={**pbt, "perturb": ["training.batch_size"]})


def test_an_unknown_sweep_is_told_with_the_nearest(planned, settings, tmp_path):
    planned()
    with pytest.raises(ConfigError, match=r"No sweep file or sweep is called 'ring/rate'. Did you mean 'ring/rates'\?"):
        plan_sweep(settings.model_copy(update={"sweeps": tmp_path / "sweeps"}), "ring/rate")


def test_the_digest_changes_with_the_sweep_and_with_the_recipe(planned, settings, tmp_path):
    one = planned().digest
    assert planned().digest == one
    assert planned(trials=5).digest != one
    assert planned(fixed={"model.dequantise": 0.2}).digest != one
    recipe = tmp_path / "recipes" / "ring" / "blob.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 32", "batch_size: 16"))
    assert planned().digest != one


def test_a_trials_training_is_the_recipe_with_its_settings(planned, settings):
    made = planned(fixed={"model.dequantise": 0.2}, budget={"samples": 32})
    short, whole = (
        trial_plan(settings, made, {"model.optimizer.lr": 1e-05}, 7, whole=whole) for whole in (False, True)
    )
    assert (short.recipe.training.samples, whole.recipe.training.samples) == (32, 64)
    assert short.recipe.model["optimizer"]["lr"] == whole.recipe.model["optimizer"]["lr"] == 1e-05
    assert (short.recipe.seed, short.recipe.model["dequantise"]) == (7, 0.2)
    assert (short.sweep, short.model_name) == ("ring-rates", "ring-blob")


def test_settings_survive_the_way_through_set():
    from kinfolk.config import override

    settings = {
        "a": 1e-05,
        "b.c": [0.0, 0.99],
        "b.d": "yes",
        "e": None,
        "f": {"x": 1},
        "g": "1e3",
        "h": True,
    }
    assert override({}, as_sets(settings)) == {
        "a": 1e-05, "b": {"c": [0.0, 0.99], "d": "yes"}, "e": None, "f": {"x": 1}, "g": "1e3", "h": True
    }  # fmt: skip


def test_the_figures_that_want_a_classifier_are_those_it_gives(digits):
    from kinfolk.families import find_family
    from kinfolk.training.state import build
    from kinfolk_pipelines.figures_on_samples import on_features

    family = find_family("classifier")
    model = build(family, family.config(), digits.spec, 0)
    test = digits.source("test")
    x = test.take(0, 50).x
    told = on_features(model, digits.source("train"), test, x, None).keys()
    told |= on_features(model, digits.source("train"), test, x, [0, 1] * 25).keys()
    assert told == ON_FEATURES


def test_the_figures_that_count_modes_are_those_of_data_with_known_modes():
    import torch

    from kinfolk.contract import DataSpec
    from kinfolk.data.modes import Mixture
    from kinfolk_pipelines.figures_on_modes import on_modes

    known = Mixture(centres=((0.0, 0.0), (1.0, 1.0)), std=0.1, samples=8)
    samples = torch.tensor([[0.0, 0.05], [1.0, 1.05]]).repeat(4, 1)
    assert on_modes(known, lambda n: samples[:n], DataSpec(kind="vector", shape=(2,)), None).keys() == ON_MODES


def test_a_sweep_by_modes_needs_data_whose_modes_are_known(planned):
    made = planned(objective={"metric": "modes", "mode": "max"})
    assert made.sweep.judged == ["modes"]
    prepared = made.base.data.prepared
    without = replace(prepared, record=prepared.record.model_copy(update={"modes": None}))
    data = replace(made.base.data, prepared=without)
    with pytest.raises(ConfigError, match="judged by modes, and nothing is known of the modes of ring"):
        check_modes(replace(made, base=replace(made.base, data=data)))


def test_shipped_sweeps_are_sound(tmp_path, prepared_folder):
    shipped = Settings(state=tmp_path / "state", data=tmp_path / "data")
    names = sorted(p.relative_to(shipped.sweep_folder).with_suffix("") for p in shipped.sweep_folder.glob("*/*.yaml"))
    assert names
    for name in names:
        assert plan_sweep(shipped, str(name)).sweep.trials > 1


def test_a_monitor_that_fits_every_trial_is_taken_as_it_is(planned):
    """A factor may be of a default; a training for registration alone may be long enough for an alarm."""
    made = planned(fixed={"monitor": changing(multiply={"model.dequantise": 2.0})})
    assert made.base.recipe.after(1).model["dequantise"] == 0.1
    assert planned(fixed={"monitor": TWO_LOOKS}, budget={"samples": 32}, finish="retrain").pace.samples == 32


def test_penalties_that_some_trials_have_are_multiplied_in_none_that_lacks_them(tmp_path, prepared_folder):
    shipped = Settings(state=tmp_path / "state", data=prepared_folder)
    changes = [{"multiply": {"model.penalties.0.gamma": 3}}]
    given = {
        **SWEEP,
        "recipe": "ring/r3gan",
        "fixed": {"monitor": {"act": "change", "changes": changes}},
        "space": {"model.penalties": {"kind": "choice", "values": [[{"kind": "r1", "gamma": 1.0}], []]}},
        "report_every_samples": None,
        "objective": {"metric": "kl_to_uniform", "mode": "min"},
    }
    (tmp_path / "penalties.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError, match=r"no position in a list of 0.*\(at model.penalties=\[\]\)"):
        plan_sweep(shipped, str(tmp_path / "penalties.yaml"))
