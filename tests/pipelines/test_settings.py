"""Where settings come from, and what follows from those left out."""

import subprocess
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError
from kinfolk_pipelines.settings import Settings, apply_environment, git_commit, load_settings


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_given_wins_over_the_environment_and_that_over_the_file(here, monkeypatch):
    (here / "kinfolk.yaml").write_text("experiment: of the file\nstorage: s3://file\ncpus: 3\n")
    monkeypatch.setenv("KINFOLK_EXPERIMENT", "of the environment")
    monkeypatch.setenv("KINFOLK_STORAGE", "s3://environment")
    found = load_settings(storage="s3://given")
    assert (found.storage, found.experiment, found.cpus) == ("s3://given", "of the environment", 3)


def test_everything_is_local_unless_said_otherwise(here):
    local, elsewhere = Settings(), Settings(tracking_uri="http://mlflow:5000", storage="s3://runs", recipes="mine")
    assert local.tracking == f"sqlite:///{here}/.kinfolk/mlflow.db"
    assert local.checkpoints == f"{here}/.kinfolk/runs"
    assert local.cache == here / ".kinfolk" / "cache"
    assert local.dataset("ring") == here / "data" / "ring"
    assert (local.recipe_folder / "digits" / "vae.yaml").is_file()
    assert (elsewhere.tracking, elsewhere.checkpoints) == ("http://mlflow:5000", "s3://runs")
    assert elsewhere.recipe_folder == Path("mine")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpus: 0", ["KINFOLK_CPUS", "greater than or equal to 1", "got 0"]),
        ("cpus: many", ["cpus", "integer", "'many'"]),
        ("trackng_uri: x", ["trackng_uri", "Known settings: state, data"]),
        ("- a", ["mapping"]),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(here, text, said):
    (here / "kinfolk.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert all(part in str(caught.value) for part in said)


@pytest.mark.parametrize("name", ["KINFOLK_TRACKING_URL", "kinfolk_tracking_url"])
def test_a_misspelt_variable_is_named_with_the_nearest(name, monkeypatch):
    monkeypatch.setenv(name, "http://mlflow:5000")
    with pytest.raises(ConfigError, match=rf"{name} is no setting.*'tracking_uri'"):
        load_settings()


def test_variables_of_the_cluster_and_other_cases_are_let_be(monkeypatch):
    for name in ("KINFOLK_SERVICE_HOST", "KINFOLK_PORT", "KINFOLK_PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(name, "10.0.0.1")
    monkeypatch.setenv("KINFOLK_Tracking_Uri", "http://mlflow:5000")
    assert load_settings().tracking == "http://mlflow:5000"


def test_the_token_is_not_shown():
    assert "letmein" not in repr(Settings(api_token="letmein"))


def test_a_variable_that_is_set_stays(monkeypatch):
    monkeypatch.setenv("KINFOLK_TEST_A", "the user's")
    monkeypatch.setenv("KINFOLK_TEST_B", "x")
    monkeypatch.delenv("KINFOLK_TEST_B")
    apply_environment({"KINFOLK_TEST_A": "ours", "KINFOLK_TEST_B": "ours"})
    import os

    assert (os.environ["KINFOLK_TEST_A"], os.environ["KINFOLK_TEST_B"]) == ("the user's", "ours")


def test_the_commit_is_that_of_the_folder_or_none(here):
    assert git_commit() is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    wanted = subprocess.run(["git", "log", "--format=%H"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == wanted
