import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from kinfolk.bundle import save_bundle
from kinfolk.contract import DataSpec, Family, Model
from kinfolk.tracking.connection import connect, mlflow_environment
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


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in mlflow_environment().items():
            patch.setenv(key, value)
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


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
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Family:
    """The toy as an installed package: a module on the path, and an entry point that names it."""
    info = tmp_path / "site" / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kinfolk.families]\ntoy = toy_family:FAMILY\n")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(info.parent))
    found: Family = import_module("toy_family").FAMILY
    return found


@pytest.fixture
def model(family: Family) -> Model:
    torch.manual_seed(0)
    config = family.config(centre=0.5)
    return Model(family, config, SPEC, family.build(config, SPEC, {}))


@pytest.fixture
def bundle(model: Model, tmp_path: Path) -> Path:
    save_bundle(model, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def lineage() -> Lineage:
    return LINEAGE
