"""Mistakes a user makes, each answered with one paragraph, the right exit code, and nothing changed."""

import json
import socket
import sys

import pytest
from PIL import Image

from kinfolk_pipelines import cli


@pytest.fixture
def kinfolk(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

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
    assert {"autoencoder", "diffusion", "gan"} <= {row["name"] for row in json.loads(out)}
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
