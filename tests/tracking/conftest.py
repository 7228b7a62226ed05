import shutil
from pathlib import Path

import pytest

from kinfolk.bundle import save_bundle
from kinfolk.contract import DataSpec, Family, Model
from kinfolk.rng import seeded_initialisation
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.runs import Tracker

SPEC = DataSpec(kind="image", shape=(1, 4, 4), levels=17, classes=10)
LINEAGE = Lineage(
    family="toy",
    recipe="digits/toy",
    recipe_digest="0123456789ab",
    data="digits",
    data_digest="d" * 32 + ".dir",
    git_commit="c" * 40,
    parents={"encoder": "vae/3"},
    samples_per_second=1234.5,
)


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"


@pytest.fixture
def tracker(uri: str, tmp_path: Path) -> Tracker:
    return Tracker(uri, "digits", tmp_path / "spool")


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start_run("toy", {"model": {"centre": 0.5}}, {}).run_id


@pytest.fixture
def model(toy: Family) -> Model:
    config = toy.config(class_shift=0.5)
    with seeded_initialisation(0):
        return Model(toy, config, SPEC, toy.build(config, SPEC, {}))


@pytest.fixture
def bundle(model: Model, tmp_path: Path) -> Path:
    save_bundle(model, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def lineage() -> Lineage:
    return LINEAGE
