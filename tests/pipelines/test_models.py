"""Registered models as the commands meet them: which version is meant, what is measured and drawn of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kinfolk import sampling
from kinfolk.bundle import save_bundle
from kinfolk.contract import DataSpec, Model
from kinfolk.data.catalogue import prepare
from kinfolk.data.modes import Stack
from kinfolk.data.prepared import Prepared
from kinfolk.errors import ConfigError, DataError, RegistryError, RequestError
from kinfolk.rng import seeded_initialisation
from kinfolk.tracking import registry
from kinfolk.tracking.aliases import set_alias
from kinfolk.tracking.connection import connect
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.runs import Tracker
from kinfolk_pipelines import evaluate as evaluation
from kinfolk_pipelines import sample as samples
from kinfolk_pipelines.datasets import Dataset, open_dataset
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.figures import Figures
from kinfolk_pipelines.models import load_model, rows, shown_metrics, version_number
from kinfolk_pipelines.promotion import promote_version
from kinfolk_pipelines.sample import Wanted, given_part, picture_scale, write_samples

PICTURES = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10)
CARD = {"recipe": {"keep_labels": [2, 5], "evaluation": {"samples": 12, "options": {"steps": 2, "temperature": 0.5}}}}


@pytest.fixture
def add(settings, toy, tmp_path):
    """Register an untrained toy model; returns it with its version."""
    tracker = Tracker(settings.tracking, "test", tmp_path / "spool")

    def register(name="blob", seed=0, spec=PICTURES, data="ring", digest="0", **metrics):
        with seeded_initialisation(seed):
            model = Model(toy, toy.config(class_shift=1.0), spec, toy.build(toy.config(class_shift=1.0), spec, {}))
        lineage = Lineage(family="gaussian", recipe="r", recipe_digest="1", data=data, data_digest=digest)
        save_bundle(model, folder := tmp_path / f"{name}-{seed}", CARD)
        run = tracker.start_run(name, {}, {})
        return model, registry.register(settings.tracking, folder, name, run.run_id, lineage, metrics)

    return register


def test_every_way_to_name_a_version(settings, add):
    models = [add(seed=seed)[0] for seed in range(3)]
    add("bl", seed=9)
    set_alias(settings.tracking, "blob", "champion", 2)
    wanted = {"blob": 1, "blob@champion": 1, "blob/1": 0, "blob/latest": 2}
    for reference, index in wanted.items():
        loaded = load_model(settings, reference)
        assert loaded.version.number == index + 1
        assert torch.equal(loaded.model.module.mean, models[index].module.mean)
    assert (version_number(settings, "blob", "latest"), version_number(settings, "bl", "latest")) == (3, 1)
    assert version_number(settings, "blob", "17") == 17


@pytest.mark.parametrize("version", ["newest", "", "-1", "1.0", "²"])
def test_a_version_is_a_number_or_latest(settings, version):
    with pytest.raises(ConfigError, match="VERSION is a number or 'latest'"):
        version_number(settings, "blob", version)


def test_latest_of_an_unknown_model_names_the_nearest(settings, add):
    add()
    with pytest.raises(RegistryError, match="Did you mean 'blob'"):
        load_model(settings, "blub/latest")


def test_the_listing_holds_each_version_with_alias_and_figures(settings, add):
    add(fd_local=3.0)
    add(seed=1, fd_local=2.0)
    set_alias(settings.tracking, "blob", "champion", 1)
    newest, first = rows(settings)
    assert (newest["model"], newest["aliases"], newest["metrics"]) == ("blob/2", [], {"fd_local": 2.0})
    assert (first["model"], first["aliases"], first["metrics"]) == ("blob/1", ["champion"], {"fd_local": 3.0})
    assert (first["family"], first["recipe"], first["data"]) == ("gaussian", "r", "ring")


def test_a_line_of_metrics_holds_the_ones_that_compare_models():
    found = shown_metrics({"vendi": 9.0, "samples_per_second": 12345.6, "fd_local": 0.123456, "class_accuracy": 1.0})
    assert found == "fd_local 0.1235  class_accuracy 1  samples_per_second 1.235e+04"


def test_a_lower_distance_promotes_and_a_higher_one_does_not(settings, add):
    for seed, distance in enumerate([2.0, 3.0, 1.0]):
        add(seed=seed, fd_local=distance)
    outcomes = [promote_version(settings, "blob", version).decision.promote for version in ("1", "2", "latest")]
    assert outcomes == [True, False, True]
    assert load_model(settings, "blob@champion").version.number == 3
    assert promote_version(settings, "blob", "2", "a customer wants it").forced


def test_a_version_of_other_classes_is_no_rival(settings, add):
    for seed, classes in enumerate(["all", "2, 5"]):
        _, version = add(seed=seed, fd_local=2.0 - seed)
        registry.log_model_metrics(settings.tracking, version, {}, basis={"classes": classes})
    outcomes = [promote_version(settings, "blob", version).decision for version in ("1", "2")]
    assert [outcome.promote for outcome in outcomes] == [True, False]
    assert "classes: 2, 5, the champion's on all" in outcomes[1].reason


@pytest.fixture
def measured(monkeypatch):
    """What ``measure`` is asked; its own numbers are tested with the figures."""
    asked = []

    def measure(model, data, evaluation, features=None, *, learned=(), against=None, modes=None):
        asked.append((evaluation.model_dump(exclude_defaults=True), features, learned, against and len(against)))
        metrics = {"fd_local": 0.5, "nfe": 1.0, "likelihood_rows": float(evaluation.likelihood_samples or 300)}
        draws = {"importance_draws": 5.0} if evaluation.importance_draws else {}
        return Figures(metrics | draws, torch.zeros(2))

    monkeypatch.setattr(evaluation, "measure", measure)
    return asked


def test_figures_are_measured_as_the_recipe_says_and_kept_with_the_version(settings, add, measured):
    digest = open_dataset(settings, "ring").digest
    add(digest=digest)
    done = evaluate(settings, "blob")
    assert measured[0][0] == CARD["recipe"]["evaluation"]
    assert measured[0][2:] == ([2, 5], None)
    assert registry.find(settings.tracking, "blob/1").metrics == done.figures.metrics
    assert done.figures.metrics == {"fd_local": 0.5, "nfe": 1, "likelihood_rows": 300}
    assert done.figures.basis["data"] == f"ring {digest}"
    assert done.figures.basis["samples"] == "12"
    assert torch.equal(done.figures.samples, torch.zeros(2))


def test_what_is_given_lies_over_what_the_recipe_says(settings, add, measured):
    add(digest=open_dataset(settings, "ring").digest)
    assert evaluate(settings, "blob", samples=40, options={"steps": 3}).figures.basis["samples"] == "40"
    assert measured[0][0] == {"samples": 40, "options": {"steps": 3, "temperature": 0.5}}
    with pytest.raises(ConfigError, match="samples"):
        evaluate(settings, "blob", samples=0)


def kept_basis(settings):
    tags = connect(settings.tracking).get_model_version("blob", "1").tags
    return {key.removeprefix("basis."): said for key, said in tags.items() if key.startswith("basis.")}


def test_what_figures_rest_on_is_told(settings, add, measured):
    digest = open_dataset(settings, "ring").digest
    add(digest=digest)
    given = {"likelihood_samples": 30, "importance_draws": 5, "against": "ring"}
    basis = evaluate(settings, "blob", **given).figures.basis
    assert measured[0][0].items() >= given.items()
    assert measured[0][3] == len(open_dataset(settings, "ring").prepared.source("test"))
    assert basis["likelihood"] == "the first 30 test samples, given their classes"
    assert basis["importance_bound"] == "5 draws a sample, the first 30 test samples, given their classes"
    assert basis["options"] == "steps=2, temperature=0.5"
    assert basis["classes"] == "2, 5"
    assert basis["against"] == f"ring {digest}"
    assert kept_basis(settings) == {key: said for key, said in basis.items() if key != "features"}
    later = evaluate(settings, "blob", options={"steps": 1}) and kept_basis(settings)
    assert later["likelihood"] == "the first 300 test samples, given their classes"
    assert later["options"] == "steps=1, temperature=0.5"
    kept = ("importance_bound", "against")  # as their figures, which were not measured again
    assert [later[key] for key in kept] == [basis[key] for key in kept]


def test_a_model_that_draws_nothing_rests_on_no_samples(settings, add, monkeypatch):
    add(digest=open_dataset(settings, "ring").digest)
    monkeypatch.setattr(evaluation, "measure", lambda *_, **__: Figures({"reconstruction_mse": 0.1}, None))
    assert evaluate(settings, "blob").figures.basis.keys() == {"data", "classes", "features"}


def test_figures_on_features_rest_on_the_classifier_of_the_same_data(settings, add, measured):
    digest = open_dataset(settings, "ring").digest
    add(digest=digest)
    missing = evaluate(settings, "blob").figures.basis["features"]
    assert measured[0][1] is None
    assert "train ring-features" in missing
    judge, _ = add("ring-features", seed=5)
    assert evaluate(settings, "blob").figures.basis["features"] == "ring-features/1"
    assert kept_basis(settings)["features"] == "ring-features/1"
    assert torch.equal(measured[1][1].module.mean, judge.module.mean)
    add("plain", digest=digest, spec=PICTURES.model_copy(update={"classes": None}))
    assert evaluate(settings, "plain").figures.basis["features"] == "not needed"
    assert measured[2][1] is None


def test_modes_are_counted_as_the_data_set_says_and_the_rule_is_told(settings, add, measured, monkeypatch):
    digest = open_dataset(settings, "ring").digest
    add(digest=digest)
    counted = []

    def measure(*_, modes, **__):
        counted.append(modes)
        return Figures({"nfe": 1.0, "modes": 8.0}, None)

    assert "mode_rule" not in evaluate(settings, "blob").figures.basis  # none was counted
    monkeypatch.setattr(evaluation, "measure", measure)
    assert evaluate(settings, "blob").figures.basis["mode_rule"].startswith("2,500 samples;")
    assert kept_basis(settings)["mode_rule"].startswith("2,500 samples;")
    assert counted == [open_dataset(settings, "ring").prepared.record.modes]


def test_stacks_are_judged_by_the_classifier_of_what_a_channel_holds(settings, add, measured, monkeypatch):
    ring = open_dataset(settings, "ring")
    spec = PICTURES.model_copy(update={"shape": (2, 8, 8), "classes": 100})
    record = ring.prepared.record.model_copy(update={"modes": Stack(judge="ring"), "spec": spec})
    stacks = Dataset("stacks", Prepared(ring.prepared.path, record), "d1")
    monkeypatch.setattr(evaluation, "open_dataset", lambda settings, name: {"stacks": stacks}[name])
    add(data="stacks", digest="d1", spec=spec)
    assert "train ring-features for" in evaluate(settings, "blob").figures.basis["features"]
    add("ring-features", seed=5)
    assert evaluate(settings, "blob").figures.basis["features"] == "ring-features/1 on each channel"
    assert measured[1][1].spec.shape == (2, 8, 8)


def test_a_model_is_not_measured_on_data_it_has_not_learned(settings, add, measured):
    add(digest="0" * 32)
    with pytest.raises(DataError, match=r"blob/1 learned ring 0{32}; what is prepared now is .*Prepare the earlier"):
        evaluate(settings, "blob")
    assert not measured
    assert not registry.find(settings.tracking, "blob/1").metrics


def test_samples_in_a_file_are_those_of_the_sampler(settings, add, tmp_path):
    model, _ = add()
    out = tmp_path / "new" / "x.npy"
    assert write_samples(settings, "blob", out, Wanted(5, 7, 3), ["steps=2"]) == "blob/1"
    expected = sampling.sample(model, 5, 7, 3, {"steps": 2})
    assert np.array_equal(np.load(out), expected.numpy())
    write_samples(settings, "blob", tmp_path / "x.png", Wanted(4, 7), [])
    picture = Image.open(tmp_path / "x.png")
    scale = picture_scale(8, 2)
    assert picture.size == ((2 * 8 + 2) * scale, (2 * 8 + 2) * scale)
    shade = PICTURES.to_uint8(sampling.sample(model, 4, 7))[:, 0]
    assert picture.getpixel((10 * scale, 0)) == shade[1, 0, 0]


def test_samples_that_cannot_be_drawn_leave_no_file(settings, add, tmp_path):
    add()
    (tmp_path / "folder.png").mkdir()
    for out, wanted, error, said in [
        ("x.gif", Wanted(1), ConfigError, "use .png"),
        ("there/x", Wanted(1), ConfigError, "ends in 'nothing'"),
        ("folder.png", Wanted(1), ConfigError, "is a folder"),
        ("there/x.png", Wanted(1, label=10), RequestError, "label 10"),
        ("there/x.png", Wanted(1, task="smaple"), RequestError, "Did you mean 'sample'"),
        ("there/x.png", Wanted(2, task="interpolate"), RequestError, "cannot 'interpolate'. Its tasks: sample"),
        ("there/x.png", Wanted(2, task="inpiant", given="upper"), RequestError, "cannot 'inpiant'"),
        ("there/x.png", Wanted(2, seed_to=3), ConfigError, "--seed-to 3 would have .* it is for --task interpolate"),
        ("there/x.png", Wanted(2, given="upper"), ConfigError, "--given upper would have .* it is for --task inpaint"),
        ("there/x.png", Wanted(2, task="denoise"), ConfigError, "use `kinfolk transform blob --task denoise`"),
    ]:
        with pytest.raises(error, match=said):
            write_samples(settings, "blob", tmp_path / out, wanted, [])
    assert not (tmp_path / "there").exists()


def test_what_a_task_needs_reaches_the_sampler(settings, add, tmp_path, monkeypatch):
    add(data="digits")
    asked = []
    monkeypatch.setattr(
        sampling, "draw", lambda tasks, request, task: asked.append((task, request)) or torch.zeros(3, 1, 8, 8)
    )
    monkeypatch.setattr(
        samples, "open_dataset", lambda _, name: SimpleNamespace(prepared=Prepared.open(tmp_path / name))
    )
    prepare("digits", tmp_path / "digits")
    monkeypatch.setattr(sampling, "check_task", lambda tasks, task: None)  # this model only samples
    write_samples(settings, "blob", tmp_path / "x.npy", Wanted(3, 5, task="interpolate", seed_to=9), [])
    write_samples(settings, "blob", tmp_path / "x.npy", Wanted(3, 5, task="inpaint", given="left"), [])
    write_samples(settings, "blob", tmp_path / "x.npy", Wanted(3, 5, 7, task="inpaint", given="left"), [])
    (first, way), (second, hole), (_, told) = asked
    assert (first, second) == ("interpolate", "inpaint")
    assert (way.seeds[0], way.seed_to[0], way.weight.tolist()) == (5, 9, [0, 0.5, 1])
    pictures = Prepared.open(tmp_path / "digits").source("test").take(0, 3)
    assert torch.equal(hole.x, pictures.x)
    assert torch.equal(hole.label, pictures.label)
    assert told.label.tolist() == [7, 7, 7]
    assert torch.equal(hole.mask[1], given_part("left", (1, 8, 8)))
    for wanted, said in [
        (Wanted(2, task="interpolate"), "needs --seed-to"),
        (Wanted(2, task="inpaint"), "needs pictures and --given"),
        (Wanted(2, task="inpaint", given="uper"), "Did you mean 'upper'"),
        (Wanted(2, task="inpaint", given="upper", seed_to=3), "--seed-to 3 would have"),
    ]:
        with pytest.raises(ConfigError, match=said):
            write_samples(settings, "blob", tmp_path / "x.npy", wanted, [])


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("upper", ["1111", "1111", "0000", "0000"]),
        ("lower", ["0000", "0000", "1111", "1111"]),
        ("left", ["1100"] * 4),
        ("right", ["0011"] * 4),
        ("border", ["1111", "1001", "1001", "1111"]),
    ],
)
def test_the_given_part_is_1_where_it_is_given(part, rows):
    wanted = torch.tensor([[float(each) for each in row] for row in rows])
    assert torch.equal(given_part(part, (2, 4, 4)), wanted.expand(2, 4, 4))


@pytest.mark.parametrize(("height", "rows", "scale"), [(8, 8, 10), (8, 1, 80), (28, 10, 2), (512, 8, 1)])
def test_a_grid_fills_about_a_screen(height, rows, scale):
    assert picture_scale(height, rows) == scale
