"""A comparison as a list of trainings and a page; training and measuring are played."""

from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from kinfolk.config import Recipe
from kinfolk.contract import DataSpec
from kinfolk.errors import ConfigError
from kinfolk_pipelines import compare as module
from kinfolk_pipelines.compare import compare, plans, report, write_report
from kinfolk_pipelines.evaluate import Evaluated
from kinfolk_pipelines.figures import Figures
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.train import Trained

CLASSED = DataSpec(kind="vector", shape=(2,), classes=8)
PLAIN = DataSpec(kind="vector", shape=(2,))


def planned(name, data="ring", spec=CLASSED, draws=True, samples=2000, judge=None):
    training, evaluation = {"samples": 100 + len(name)}, {"samples": samples}
    recipe = Recipe(name=name, family="gaussian", data=data, training=training, evaluation=evaluation)
    dataset = SimpleNamespace(name=data, judge=judge or data, digest="d1", prepared=SimpleNamespace(spec=spec))
    family, model = SimpleNamespace(name=f"family of {name}"), f"{data}-{name}"
    return SimpleNamespace(recipe=recipe, family=family, data=dataset, model_name=model, draws=draws)


@pytest.fixture
def played(monkeypatch, tmp_path):
    """What was planned, trained and measured, in order."""
    done = []

    def plan(settings, recipe, sets=(), name=None):
        done.append(("plan", recipe, tuple(sets), name))
        data = dict(pair.split("=") for pair in sets).get("data", recipe.split("/")[0])
        each = planned(recipe.split("/")[1], data)
        return each if name is None else SimpleNamespace(**{**vars(each), "model_name": name})

    def train(settings, each, console, *, workers, use_gpu):
        done.append(("train", each.model_name, workers, use_gpu))
        version = SimpleNamespace(reference=f"{each.model_name}/3", metrics={"train_seconds": 7.5, "fd_local": 99.0})
        seconds = 7.5 if "vae" in each.model_name else None
        return Trained(version, version.metrics, seconds, True)

    def evaluate(settings, reference, *, samples):
        done.append(("evaluate", reference, samples))
        basis = {"data": "ring d1", "samples": str(samples or 2000), "features": "ring-features/3"}
        spec = CLASSED if "image" not in reference else PLAIN
        figures = Figures({"fd_local": float(len(reference))}, torch.randn(70, 2), basis)
        return Evaluated(SimpleNamespace(reference=reference), SimpleNamespace(spec=spec), figures)

    for name, stand_in in {"plan": plan, "train": train, "evaluate": evaluate}.items():
        monkeypatch.setattr(module, name, stand_in)
    return done


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "recipes" / "ring").mkdir(parents=True)
    return Settings(recipes=tmp_path / "recipes")


QUIET = Console(quiet=True)


def test_the_classifier_comes_first_and_everything_is_measured_alike(played, settings):
    two = [planned("vae"), planned("edm")]
    compared = compare(settings, two, QUIET, workers=3, samples=50, use_gpu=True)
    assert played == [
        ("plan", "digits/features", ("data=ring",), "ring-features"),
        ("train", "ring-features", 3, True),
        ("train", "ring-vae", 3, True),
        ("evaluate", "ring-vae/3", 50),
        ("train", "ring-edm", 3, True),
        ("evaluate", "ring-edm/3", 50),
    ]
    assert [each.plan for each in compared] == two


def test_data_with_a_classifier_recipe_of_its_own_uses_it(played, settings):
    (settings.recipe_folder / "ring" / "features.yaml").write_text("")
    compare(settings, [planned("vae")], QUIET)
    assert played[0] == ("plan", "ring/features", (), "ring-features")


def test_data_judged_by_the_classifier_of_other_data_has_that_one_trained(played, settings):
    compare(settings, [planned("vae", judge="digits")], QUIET)
    assert played[:2] == [
        ("plan", "digits/features", ("data=digits",), "digits-features"),
        ("train", "digits-features", 1, False),
    ]
    assert [name for _, name, *_ in played[2:]] == ["ring-vae", "ring-vae/3"]


def test_data_without_classes_needs_no_classifier(played, settings):
    compare(settings, [planned("vae", spec=PLAIN)], QUIET)
    assert [kind for kind, *_ in played] == ["train", "evaluate"]


def test_recipes_for_different_data_are_refused_and_settings_hold_for_all(played, settings):
    with pytest.raises(ConfigError, match=r"different data \(digits, ring\)"):
        plans(settings, ["ring/vae", "digits/vae"])
    found = plans(settings, ["ring/vae", "digits/vae"], ["data=cats"])
    assert [each.data.name for each in found] == ["cats", "cats"]
    assert [each.recipe.name for each in plans(settings, ["ring/vae", "ring/edm"])] == ["vae", "edm"]


def test_the_page_holds_each_model_with_its_own_figures(played, settings, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "render", lambda title, basis, entries: seen.extend([title, basis, entries]) or "page")
    compared = compare(settings, [planned("vae"), planned("ddpm")], QUIET, samples=50)
    write_report(tmp_path / "new" / "report.html", compared, workers=4)
    assert (tmp_path / "new" / "report.html").read_text() == "page"
    title, (data, how), (vae, ddpm) = seen
    assert title == "Comparison on ring"
    assert "ring (d1); averaged weights measured. Trained now with 4 workers: ring-vae/3." in data
    assert how.startswith("50 samples of each model; features of ring-features/3;")
    assert (vae.recipe, vae.family, vae.reference) == ("ring/vae", "family of vae", "ring-vae/3")
    assert vae.metrics == {"fd_local": 10.0}  # as measured now, not as registered earlier
    assert (vae.train_seconds, vae.train_samples) == (7.5, 103)
    assert (ddpm.recipe, ddpm.metrics, ddpm.train_samples) == ("ring/ddpm", {"fd_local": 11.0}, 104)
    assert vae.grid_png.startswith(b"\x89PNG")


def test_samples_are_as_many_as_the_fewest_of_those_that_draw(played, settings):
    three = [planned("vae"), planned("vq", draws=False, samples=8), planned("edm", samples=500)]
    compare(settings, three, QUIET)
    assert [count for kind, *_, count in played if kind == "evaluate"] == [500, None, 500]


def test_counts_that_differ_are_all_named(played, settings):
    compared = compare(settings, [planned("vae")], QUIET, samples=50)
    compared += compare(settings, [planned("edm")], QUIET)
    assert "2000 or 50 samples of each model" in report(compared, 1)
