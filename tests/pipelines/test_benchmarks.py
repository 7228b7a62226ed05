"""The scripts that measure: each loads, and what they ask of models is what the recipes' models take."""

import asyncio
import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from kinfolk import sampling
from kinfolk.checkpoint import Snapshot
from kinfolk.cluster import free_port
from kinfolk.contract import SamplerState
from kinfolk.data import catalogue
from kinfolk.errors import ConfigError, RegistryError
from kinfolk_pipelines import serving_measured
from kinfolk_pipelines.families import untrained
from kinfolk_pipelines.figures import Figures, check
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.train import InterruptedTrainingError

PIPELINES = Path(__file__).parents[2] / "pipelines"
SCRIPTS = sorted(path.stem for path in (PIPELINES / "benchmarks").glob("*.py"))
DIGITS = sorted((PIPELINES / "recipes" / "digits").glob("*.yaml"))
EXTRAS = {"diffusers", "normflows", "pythae", "schemathesis"}  # of ``bench``


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", PIPELINES / "benchmarks" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_loads_and_says_how_it_is_run(name):
    module = script(name)
    assert callable(module.main)
    assert f"pipelines/benchmarks/{name}.py" in module.__doc__


@pytest.mark.parametrize("path", DIGITS, ids=[path.stem for path in DIGITS])
def test_what_is_asked_of_a_model_is_what_it_takes(path):
    model = untrained(path, catalogue.entry("digits").spec)
    if "sample" not in model.tasks.starts:
        pytest.skip("it draws nothing")
    asked = script("same_seed").others(model)
    assert {} in asked
    states = [sampling.start(model.tasks, sampling.make_request(model, 2, options=options)) for options in asked]
    with torch.no_grad():
        model.tasks.advance(SamplerState.cat(states))
    if model.family.name == "diffusion":
        for options in script("solver_quality").runs_of(model).values():
            sampling.start(model.tasks, sampling.make_request(model, 1, options=options))


def test_solvers_are_compared_within_the_range_of_samples_but_not_of_latents():
    quality, spec = script("solver_quality"), catalogue.entry("digits").spec
    for name, clamped in (("edm", True), ("latent-diffusion", False)):
        runs = quality.runs_of(untrained(DIGITS[0].with_name(f"{name}.yaml"), spec))
        assert runs.keys() == quality.RUNS.keys()
        assert all(options.get("clamp", False) == clamped for options in runs.values())


def test_only_ratios_of_solvers_that_were_measured_are_told():
    quality = script("solver_quality")
    found = {name: quality.Run(fd_local, 1, 1.0) for name, fd_local in (("DDIM 20", 0.4), ("DPM-Solver++(2M) 10", 0.5))}
    (line,) = quality.bars(found)
    assert line == "| DPM-Solver++(2M) 10 / DDIM 20 | 1.25 | 1 | no |"


def test_a_worker_that_has_ended_is_not_killed_and_none_is_waited_for(monkeypatch):
    killer, killed = script("kill_and_resume"), []

    def ended():
        raise psutil.NoSuchProcess(1)

    gone = SimpleNamespace(cmdline=ended, kill=ended)
    alive = SimpleNamespace(cmdline=lambda: ["ray::", "RayTrainWorker"], kill=lambda: killed.append(1))
    other = SimpleNamespace(cmdline=lambda: ["ray::", "Mailbox"], kill=ended)
    children = [gone, other]
    process = SimpleNamespace(children=lambda recursive: children)
    monkeypatch.setattr(killer, "psutil", SimpleNamespace(Process=lambda: process, NoSuchProcess=psutil.NoSuchProcess))
    kill = killer.Killer(20)
    for seen in (10, 20, 30, 40):
        if seen == 30:
            children.append(alive)
        kill({"kind": "log", "samples_seen": seen})
    kill({"kind": "start", "samples_seen": 25})
    assert (killed, kill.killed_at, kill.resumed_at) == ([1], 30, 25)


def test_nothing_is_killed_before_its_moment():
    kill = script("kill_and_resume").Killer(20)
    kill({"kind": "log", "samples_seen": 10})
    kill({"kind": "start", "samples_seen": 10})
    assert (kill.killed_at, kill.resumed_at) == (-1, -1)


def test_a_consistency_model_and_its_teacher_can_have_what_is_asked_of_both():
    quality, spec = script("consistency_quality"), catalogue.entry("digits").spec
    for name, options in (("ect", {"sigmas": (0.8,)}), ("edm", quality.HEUN)):
        model = untrained(DIGITS[0].with_name(f"{name}.yaml"), spec)
        check(model, quality.evaluation_of(model, 12, options))


def test_a_mistake_ends_a_script_with_what_to_do(monkeypatch):
    def mistaken(name):
        raise ConfigError(f"no {name}: use another")

    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py"])
    with pytest.raises(SystemExit, match="speed: no vae: use another"):
        plain_mistakes(mistaken)("vae")


def test_what_did_not_happen_ends_a_script_with_what_it_was(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/scale.py"])
    monkeypatch.setattr(serving_measured, "READY_S", 0)
    url = f"http://127.0.0.1:{free_port()}/sample"
    for waits, told in (
        (lambda: serving_measured.wait_until("replicas are 2", lambda: False, 0), "within 0 s: replicas are 2."),
        (lambda: asyncio.run(serving_measured.answering(url)), f"{url} did not answer within 0 s."),
    ):
        with pytest.raises(SystemExit, match=f"^scale: .*{re.escape(told)}$"):
            plain_mistakes(waits)()


def test_linear_denoising_is_the_best_straight_line():
    """For a Gaussian pixel that is the posterior's mean: of variance 4 and noise 1, four fifths of the way."""
    known = 3 + 2 * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    found = script("denoising").linear(torch.tensor([[8.0]]), known, 1.0)
    assert float(found) == pytest.approx(3 + 0.8 * 5, abs=0.05)


def test_what_one_checkpoint_lacks_differs():
    a = Snapshot({"x": torch.ones(2), "y": torch.ones(2), "a": torch.ones(1)}, {"step": 1})
    b = Snapshot({"x": torch.ones(2), "y": torch.zeros(2), "b": torch.ones(1)}, {"step": 2})
    differing = script("kill_and_resume").differing
    assert differing(a, b) == ["a", "b", "y", "counters"]
    assert differing(a, a) == []


@pytest.fixture
def zoo(tmp_path):
    """The script, with three recipes of which each is built on the next."""
    (tmp_path / "digits").mkdir()
    for name, parent in (("c", "{role: digits-b/3}"), ("b", "{role: digits-a@champion}"), ("a", "{}"), ("g-gpu", "{}")):
        text = f"family: gan\ndata: digits\nparents: {parent}\ntraining: {{samples: 64, batch_size: 32}}\n"
        (tmp_path / "digits" / f"{name}.yaml").write_text(text)
    return script("zoo")


def test_the_zoo_trains_parents_first_and_knows_its_recipes(zoo, tmp_path):
    folder = tmp_path / "digits"
    assert list(zoo.ordered(folder, ["c", "a"])) == ["a", "b", "c"]
    assert zoo.chosen(folder, []) == ["a", "b", "c"]
    (folder / "b.yaml").write_text("family: [")
    assert list(zoo.ordered(folder, ["c", "a"])) == ["b", "c", "a"]  # what is wrong with it is for its row to say
    assert zoo.chosen(folder, ["c", "g-gpu"]) == ["c", "g-gpu"]
    with pytest.raises(ConfigError, match="Did you mean 'digits/g-gpu'"):
        zoo.chosen(folder, ["a", "g-gpus"])
    with pytest.raises(ConfigError, match="Recipes: digits/a"):
        zoo.chosen(tmp_path / "digts", [])


def test_a_stop_ends_the_table_and_a_mistake_is_a_row(zoo, monkeypatch):
    def fail(error):
        def train(*_):
            raise error

        monkeypatch.setattr(zoo, "plan", lambda *_: None)
        monkeypatch.setattr(zoo, "train", train)

    fail(InterruptedTrainingError("stopped"))
    with pytest.raises(InterruptedTrainingError):
        zoo.system(None, "digits/a", None)
    fail(RegistryError("no parent"))
    assert zoo.system(None, "digits/a", None) == "| digits/a | no parent |"


def test_what_a_system_can_do_by_rows_and_at_once_is_named_once(zoo):
    model = untrained(DIGITS[0].with_name("edm.yaml"), catalogue.entry("digits").spec)
    words = zoo.ability(SimpleNamespace(model=model)).split(", ")
    assert words.count("denoise") == 1
    assert words[-1] == "log_prob (ode of levels); told its label"


def test_a_row_holds_every_figure_that_compares_models_and_its_basis(zoo):
    model = untrained(DIGITS[0].with_name("vae.yaml"), catalogue.entry("digits").spec)
    compared = {"auroc_rest": 0.9, "elbo_density_nats": -3.0, "importance_bound_bits_per_dim": 2.5, "recall": 0.25}
    metrics = {"parameters": 1234.0, "samples_per_second": 50.0, "nfe": 18.0, "likelihood_rows": 300.0, **compared}
    figures = Figures(metrics, None, {"data": "digits 0", "samples": "12"})
    evaluated = SimpleNamespace(model=model, figures=figures, version=SimpleNamespace(metrics={"train_seconds": 9.0}))
    assert zoo.ability(evaluated).startswith("interpolate, sample, encode, decode")
    cells = zoo.line("digits/vae", 64, evaluated).strip("| ").split(" | ")
    assert len(cells) == len(zoo.TITLE)
    assert cells[2:7] == ["1,234", "64", "9", "50", "18"]
    assert set(cells[7].split(", ")) == {f"{name} {value:.4g}" for name, value in compared.items()}
    assert cells[8] == "data: digits 0; samples: 12"
