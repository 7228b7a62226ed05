"""Mistakes a user makes, each answered with one paragraph, the right exit code, and nothing changed."""

import json
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import kinfolk_families.gan
import kinfolk_pipelines.compare
import kinfolk_pipelines.families
import kinfolk_pipelines.serve
import kinfolk_pipelines.transform
from kinfolk.errors import ConfigError, DataError, DivergenceError, IntegrityError, RegistryError, RequestError
from kinfolk.tracking import runs
from kinfolk_pipelines import cli
from kinfolk_pipelines.train import InterruptedTrainingError


@pytest.fixture
def kinfolk(tmp_path, monkeypatch, capsys, empty_store):
    """Run the command line in a folder with an empty MLflow store; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kinfolk").mkdir()
    shutil.copy(empty_store, tmp_path / ".kinfolk" / "mlflow.db")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kinfolk", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits/vea"], "Did you mean 'digits/vae'?"),
        (["train", "digits/vae", "--set", "training.batchsize=3"], "Did you mean 'batch_size'?"),
        (["train", "digits/vae", "--set", "model.latnt=3"], "model: latnt is not a key. Did you mean 'latent'?"),
        (["train", "digits/vae", "--set", "training.batch_size=0"], "greater than 0 (got 0)"),
        (["train", "digits/vae", "--set", "training"], "--set takes key=value"),
        (["train", "digits/edm", "--set", "data=ring"], "vector"),
        (["train", "digits/vae", "--set", "family=vaes"], "No family is called 'vaes'"),
        (["train", "digits/vae", "--set", "data=cats"], "No prepared data set"),
        (["train", "digits/vae", "--workers", "3"], "does not divide over 3 workers"),
        (["train", "digits/pacgan", "--set", "training.batch_size=33"], "in groups of 2 samples that the loss judges"),
        (["train", "digits/vae", "--name", "../x"], "../x"),
        (["sample", "digits-edm"], "No registered model is called 'digits-edm'"),
        (["sample", "digits-edm", "-o", "x.gif"], "use .png"),
        (["evaluate", "a b"], "a b"),
        (["promote", "digits-edm", "newest"], "VERSION is a number or 'latest'"),
        (["rollback", "digits-edm"], "No registered model is called 'digits-edm'"),
        (["data", "prepare", "mnits"], "Did you mean 'mnist'?"),
        (["data", "prepare", "folder"], "your own files"),
        (["data", "show", "cats"], "kinfolk data prepare"),
        (["serve"], "serve.yaml"),
        (["compare", "digits/vae", "mnist/vae"], "different data"),
        (["compare", "digits/vae", "-o", "/dev"], "/dev is a folder"),
        (["tune", "digits/gan-asha", "-o", "/dev/null/sweep.html"], "/dev/null is no folder to write in"),
    ],
)
def test_a_mistake_ends_with_2_and_a_paragraph(kinfolk, words, said, monkeypatch, tmp_path):
    if "mnist/vae" in words:
        from kinfolk.data.catalogue import prepare

        prepare("digits", tmp_path / "data" / "mnist", name="mnist")
        words = [*words, "--set", "model.network={kind: mlp}"]
    code, out, err = kinfolk(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.glob(".kinfolk/runs/*"))


def test_mlflow_out_of_reach_is_refused_before_training(kinfolk, monkeypatch):
    monkeypatch.setenv("KINFOLK_TRACKING_URI", "http://127.0.0.1:9")
    code, _, err = kinfolk("train", "digits/vae")
    assert code == 2
    assert "MLflow is out of reach at http://127.0.0.1:9" in err


def test_a_setting_that_does_not_exist_is_refused(kinfolk, tmp_path):
    (tmp_path / "kinfolk.yaml").write_text("traking_uri: x\n")
    code, _, err = kinfolk("models")
    assert code == 2
    assert "traking_uri" in err
    assert "tracking_uri" in err


def test_bad_pictures_are_named_and_can_be_left_out(kinfolk, tmp_path):
    folder = tmp_path / "cats"
    folder.mkdir()
    for index in range(60):
        Image.new("RGB", (9, 7), (4 * index, 0, 0)).save(folder / f"{index}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "torn.png").write_bytes((folder / "3.png").read_bytes()[:40])
    code, _, err = kinfolk("data", "prepare", "folder", folder, "--name", "cats", "--set", "size=8")
    assert code == 2
    assert "empty.png" in err
    assert "torn.png" in err
    assert "2" in err
    assert not (tmp_path / "data" / "cats").exists()
    code, out, _ = kinfolk(
        "data", "prepare", "folder", folder, "--name", "cats", "--set", "size=8", "--skip-bad", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert found["skipped"] == 2
    assert sum(found["splits"].values()) == 60


def test_an_altered_shard_is_named(kinfolk, tmp_path):
    assert kinfolk("data", "prepare", "digits")[0] == 0
    shard = next((tmp_path / "data" / "digits").glob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, _, err = kinfolk("train", "digits/vae")
    assert code == 1
    assert shard.name in err
    assert "sha256" in err


def test_a_port_in_use_is_told_before_anything_starts(kinfolk, tmp_path, ray_cluster):
    (tmp_path / "serve.yaml").write_text("models: [{name: digits-edm}]\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = kinfolk("serve", "--config", "serve.yaml", "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port}" in err


def test_families_and_data_sets_are_listed_for_programs(kinfolk):
    code, out, _ = kinfolk("families", "--json")
    assert code == 0
    found = {row["name"]: row for row in json.loads(out)}
    assert {"autoencoder", "diffusion", "gan"} <= found.keys()
    assert "digits/dcgan" in found["gan"]["recipes"]
    assert "image" in found["gan"]["kinds"]
    assert "digits/dcgan" in {system["recipe"] for system in found["gan"]["systems"]}
    able = {system["recipe"]: system["tasks"] for system in found["energy"]["systems"]}
    assert "complete" in able["digits/energy-transformer"]
    assert "complete" not in able["digits/energy"]
    assert kinfolk_families.gan.__doc__.replace("\n", " ").startswith(found["gan"]["summary"])
    assert all(row["summary"] for row in found.values())
    code, out, _ = kinfolk("data", "list", "--json")
    assert {"digits", "mnist", "ring", "grid", "folder"} <= {row["name"] for row in json.loads(out)}


def test_doctor_says_what_is_wrong(kinfolk, monkeypatch):
    assert kinfolk("doctor")[0] == 0
    monkeypatch.setenv("KINFOLK_TRACKING_URI", "http://127.0.0.1:9")
    code, out, _ = kinfolk("doctor", "--json")
    assert code == 1
    bad = [check["what"] for check in json.loads(out) if not check["good"]]
    assert bad == ["mlflow"]


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "No Ray cluster answers at 127.0.0.1:9"), ("head", "is no address"), ("h:99999999", "h:99999999")],
)
def test_a_cluster_out_of_reach_is_told_without_waiting_for_ray(kinfolk, monkeypatch, address, said):
    monkeypatch.setenv("KINFOLK_RAY_ADDRESS", address)
    code, out, _ = kinfolk("doctor", "--json")
    assert code == 1
    (bad,) = [check for check in json.loads(out) if not check["good"]]
    assert bad["what"] == "ray"
    assert said in bad["found"]


def test_doctor_finishes_its_round_whatever_it_meets(kinfolk, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file where the folder should be")
    monkeypatch.setenv("KINFOLK_STATE", "state")
    (tmp_path / "recipes").mkdir()
    monkeypatch.setenv("KINFOLK_RECIPES", "recipes")
    code, out, _ = kinfolk("doctor", "--json")
    assert code == 1
    checks = {check["what"]: check for check in json.loads(out)}
    assert {what for what, check in checks.items() if not check["good"]} == {"disk", "recipes", "mlflow"}
    assert "No recipe DATA/NAME.yaml in recipes" in checks["recipes"]["found"]
    assert "File exists" in checks["disk"]["found"]
    recipe = tmp_path / "recipes" / "x"
    recipe.mkdir()
    (recipe / "a.yaml").write_text("famly: gan\n")
    shown = kinfolk("doctor")[1]
    assert "Did you mean 'family'" in shown
    assert "BAD" in shown


def test_doctor_looks_at_space_and_at_every_prepared_byte(kinfolk, tmp_path, monkeypatch):
    from kinfolk_pipelines import doctor

    assert kinfolk("data", "prepare", "ring")[0] == 0
    assert "ring" in kinfolk("doctor")[1]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=4.9 * 2**30))
    shard = next((tmp_path / "data" / "ring").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = kinfolk("doctor", "--json")
    bad = {check["what"]: check["found"] for check in json.loads(out) if not check["good"]}
    assert (code, bad.keys()) == (1, {"disk", "data sets"})
    assert "4.9 GiB free" in bad["disk"]
    assert shard.name in bad["data sets"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("told"), 2),
        (DataError("told"), 2),
        (RegistryError("told"), 2),
        (RequestError("n", "told"), 2),
        (IntegrityError("told"), 1),
        (DivergenceError("told"), 1),
        (InterruptedTrainingError("told"), 130),
        (PermissionError(13, "told", "/root/x"), 1),
        (OSError("told"), 1),
    ],
)
def test_each_kind_of_end_has_its_exit_code(kinfolk, monkeypatch, error, code):
    def fail(_):
        raise error

    monkeypatch.setattr(kinfolk_pipelines.families, "rows", fail)
    ended, out, err = kinfolk("families")
    assert (ended, out) == (code, "")
    assert err.startswith("kinfolk: ")
    assert "told" in err
    assert ("/root/x" in err) == (getattr(error, "filename", None) is not None)


@pytest.fixture
def project(tmp_path, settings, ray, monkeypatch):
    """A folder with settings, the recipe ``ring/blob`` and a Ray that is played."""
    (tmp_path / "kinfolk.yaml").write_text(f"state: state\ndata: {settings.data}\nrecipes: recipes\n")
    return tmp_path


def test_from_training_to_a_champion_and_back(kinfolk, project, ray, settings):
    code, out, err = kinfolk("train", "ring/blob", "--set", "seed=3", "--workers", 2, "--gpu", "--json")
    assert code == 0
    trained = json.loads(out)
    assert (trained["model"], trained["version"]) == ("ring-blob", 1)
    assert trained["metrics"]["train_seconds"] > 0
    assert (ray.asked[0]["workers"], ray.asked[0]["use_gpu"], ray.asked[0]["job"].recipe.seed) == (2, True, 3)
    assert "ring-blob:  50%" in err
    assert "had been trained before" in kinfolk("train", "ring/blob", "--set", "seed=3")[1]
    said = kinfolk("train", "ring/blob", "--set", "seed=3", "--name", "ring-blob", "--fresh")[1]
    assert "ring-blob/2 trained in" in said
    assert "Next: kinfolk evaluate ring-blob/2" in said
    assert len(ray.asked) == 2

    measured = json.loads(kinfolk("evaluate", "ring-blob/1", "--samples", 9, "--set", "steps=3", "--json")[1])
    assert measured["model"] == "ring-blob/1"
    assert (measured["basis"]["samples"], measured["metrics"]["nfe"]) == ("9", 3)
    shown = kinfolk("evaluate", "ring-blob")[1]
    assert shown.startswith("ring-blob/2; data: ring ")
    assert "; samples: 12;" in shown
    assert "Network evaluations for one sample" in shown
    assert kinfolk("evaluate", "ring-blob", "--samples", 5)[0] == 2

    code, out, _ = kinfolk("promote", "ring-blob", "latest", "--json")
    assert (code, json.loads(out)["promoted"]) == (0, False)
    assert "ring-blob/1 is champion: forced: first" in kinfolk("promote", "ring-blob", "1", "--force", "first")[1]
    assert "was not promoted" in kinfolk("promote", "ring-blob", "2")[1]
    assert json.loads(kinfolk("promote", "ring-blob", "2", "--force", "newer", "--json")[1])["promoted"]
    rows = json.loads(kinfolk("models", "--json")[1])
    assert [(row["model"], row["aliases"]) for row in rows] == [("ring-blob/2", ["champion"]), ("ring-blob/1", [])]
    assert kinfolk("rollback", "ring-blob")[1] == "ring-blob/1 is champion again.\n"
    assert "ring-blob/1  champion" in kinfolk("models")[1].replace("   ", "  ")

    out = kinfolk("sample", "ring-blob", "-n", 3, "--seed", 5, "--label", 2, "-o", "x.png", "--json")[1]
    assert json.loads(out) == {"model": "ring-blob/1", "n": 3, "seed": 5, "file": "x.png"}
    assert Image.open(project / "x.png").size == (512, 512)
    for seed in (5, 6):
        assert kinfolk("sample", "ring-blob", "-n", 2, "--seed", seed, "--set", "steps=2", "-o", f"{seed}.npy")[0] == 0
    assert np.array_equal(np.load("5.npy")[1], np.load("6.npy")[0])
    assert kinfolk("sample", "ring-blob", "-n", 0)[0] == 2


def test_a_stopped_training_ends_as_shells_expect(kinfolk, project, ray):
    ray.stop_after = 32
    code, out, err = kinfolk("train", "ring/blob")
    assert (code, out) == (130, "")
    assert "stopped after 32 of 64 samples" in err


def test_a_comparison_passes_everything_on(kinfolk, project, monkeypatch):
    asked = []

    def run(settings, planned, console, **more):
        asked.append(([each.recipe.seed for each in planned], more))
        version = SimpleNamespace(reference="ring-blob/1")
        figures = SimpleNamespace(metrics={"fd_local": 2.0})
        return [SimpleNamespace(trained=SimpleNamespace(version=version), evaluated=SimpleNamespace(figures=figures))]

    monkeypatch.setattr(kinfolk_pipelines.compare, "compare", run)
    monkeypatch.setattr(kinfolk_pipelines.compare, "write_report", lambda *given: asked.append((given[0], given[2])))
    words = ["--set", "seed=9", "--workers", 3, "--samples", 30, "--gpu", "-o", "new/x.html"]
    assert kinfolk("compare", "ring/blob", *words)[1] == "The report is new/x.html.\n"
    (seeds, more), (path, workers) = asked
    assert (seeds, more) == ([9], {"workers": 3, "samples": 30, "use_gpu": True})
    assert (str(path), workers) == ("new/x.html", 3)
    assert json.loads(kinfolk("compare", "ring/blob", "--json")[1]) == {"ring-blob/1": {"fd_local": 2.0}}


def test_what_is_made_of_pictures_is_asked_for_in_full(kinfolk, monkeypatch):
    asked = []
    monkeypatch.setattr(
        kinfolk_pipelines.transform, "write_transformed", lambda _, *given: asked.append(given) or "ring-blob/1"
    )
    words = ["--task", "denoise", "-n", 3, "--seed", 5, "--noise", 0.2, "--path", "linear", "-o", "x.png"]
    assert kinfolk("transform", "ring-blob", *words)[1] == "denoise, 3 rows by ring-blob/1 in x.png\n"
    assert json.loads(kinfolk("transform", "ring-blob", "--json")[1])["task"] == "reconstruct"
    assert asked[0] == ("ring-blob", Path("x.png"), kinfolk_pipelines.transform.Asked("denoise", 3, 5, 0.2, "linear"))
    assert asked[1] == ("ring-blob", Path("made.png"), kinfolk_pipelines.transform.Asked())


def test_a_recipe_on_a_parent_that_has_none_keeps_no_table_back(kinfolk, tmp_path, monkeypatch):
    (tmp_path / "recipes" / "digits").mkdir(parents=True)
    (tmp_path / "kinfolk.yaml").write_text("recipes: recipes\n")
    recipe = "family: consistency\ndata: digits\nparents: {teacher: PARENT}\ntraining: {samples: 64, batch_size: 32}\n"
    for name, parent in (("one", "mine@champion"), ("two", "digits-mine/3")):
        (tmp_path / "recipes" / "digits" / f"{name}.yaml").write_text(recipe.replace("PARENT", parent))
    systems = json.loads(kinfolk("families", "--json")[1])
    found = next(row["systems"] for row in systems if row["name"] == "consistency")
    assert ["mine.yaml" in row["unknown"] for row in found] == [True, True]
    assert kinfolk("families")[1].count("mine.yaml") == 2


def test_a_recipe_that_is_its_own_parent_or_wrong_keeps_no_table_back(kinfolk, tmp_path):
    folder = tmp_path / "recipes" / "digits"
    folder.mkdir(parents=True)
    (tmp_path / "kinfolk.yaml").write_text("recipes: recipes\n")
    recipe = "family: diffusion\ndata: digits\nparents: {base: PARENT}\ntraining: {samples: 64, batch_size: 32}\n"
    for name, parent in (("own", "digits-own"), ("here", "digits-there"), ("there", "digits-here/2")):
        (folder / f"{name}.yaml").write_text(recipe.replace("PARENT", parent))
    for name, text in (("torn", "family: [gan\n"), ("wrong", "famly: gan\n"), ("folder/list", "- gan\n")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    code, out, err = kinfolk("families")
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    for circle in ("own on own", "here on there on here", "there on here on there"):
        assert told.count(f"in a circle: {circle}. Name another parent.") == 1
    assert told.count("torn.yaml cannot be read as YAML") == 1
    others = json.loads(kinfolk("families", "--json")[1])[-1]
    assert [each["recipe"] for each in others["systems"]] == ["digits/torn", "digits/wrong"]
    assert "Did you mean 'family'" in told
    rows = {row["name"]: row for row in json.loads(kinfolk("families", "--json")[1])}
    assert rows["diffusion"]["recipes"] == ["digits/here", "digits/own", "digits/there"]


def test_serving_takes_the_command_line_over_the_file(kinfolk, tmp_path, monkeypatch):
    (tmp_path / "serve.yaml").write_text("models: [{name: a}]\n")
    served = []
    monkeypatch.setattr(kinfolk_pipelines.serve, "serve_until_interrupted", lambda _, file, say: served.append(file))
    assert kinfolk("serve", "--config", "serve.yaml", "--host", "127.0.0.3", "--port", 81)[0] == 0
    assert [(file.host, file.port, file.models[0].name) for file in served] == [("127.0.0.3", 81, "a")]


def test_what_waited_is_delivered_and_told(kinfolk, tmp_path, monkeypatch):
    waiting = [SimpleNamespace(run_id="r1", complete=True, unsent=0, trouble="")]
    waiting += [SimpleNamespace(run_id="r2", complete=False, unsent=4, trouble="timed out")]
    asked = []
    monkeypatch.setattr(runs, "deliver_spool", lambda *given: asked.append(given) or waiting)
    assert kinfolk("deliver")[1].splitlines() == ["run r1: delivered", "run r2: 4 left, timed out"]
    assert asked[0][0] == tmp_path / ".kinfolk" / "spool"
    assert [row["complete"] for row in json.loads(kinfolk("deliver", "--json")[1])] == [True, False]
    waiting.clear()
    assert kinfolk("deliver")[1] == "Nothing was waiting.\n"


def test_facts_of_a_data_set_are_those_of_its_record(kinfolk, tmp_path):
    found = json.loads(kinfolk("data", "prepare", "ring", "--name", "mine", "--json")[1])
    again = json.loads(kinfolk("data", "show", "mine", "--json")[1])
    record = json.loads((tmp_path / "data" / "mine" / "dataset.json").read_text())
    assert found == again
    assert (found["name"], found["splits"], found["spec"]["classes"]) == ("mine", record["splits"], 8)
    assert found["shards"] == len(record["shards"])
    listed = {row["name"]: row["prepared"] for row in json.loads(kinfolk("data", "list", "--json")[1])}
    assert (listed["mine"], listed["ring"]) == (True, False)
    assert "hash" in kinfolk("data", "show", "mine")[1]
