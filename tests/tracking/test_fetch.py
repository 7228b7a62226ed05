import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kinfolk.bundle import load_bundle
from kinfolk.contract import Model
from kinfolk.errors import ConfigError, IntegrityError, RegistryError
from kinfolk.manifest import MANIFEST
from kinfolk.tracking.connection import connect
from kinfolk.tracking.fetch import fetch
from kinfolk.tracking.lineage import MANIFEST_TAG, Lineage, Version
from kinfolk.tracking.package import manifest_digest
from kinfolk.tracking.registry import register


@pytest.fixture
def version(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> Version:
    return register(uri, bundle, "vae", run_id, lineage)


@pytest.fixture
def stored(uri: str, version: Version) -> Path:
    return Path(connect(uri).get_model_version_download_uri("vae", "1"))


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fetched_model_is_the_registered_one_to_the_bit(
    uri: str, version: Version, stored: Path, model: Model, tmp_path: Path
) -> None:
    before = _snapshot(stored)
    fetched = fetch(uri, "vae", tmp_path / "models")
    weights = load_bundle(fetched.folder).module.state_dict()
    assert weights.keys() == model.module.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
    assert fetched.version == version
    assert _snapshot(stored) == before
    assert [path.name for path in (tmp_path / "models" / "vae").iterdir()] == [fetched.folder.name]


def test_a_second_fetch_reads_the_cache_and_checks_it(uri: str, stored: Path, tmp_path: Path) -> None:
    folder = fetch(uri, "vae", tmp_path / "models").folder
    (stored / "MLmodel").unlink()
    assert fetch(uri, "vae/1", tmp_path / "models").folder == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        fetch(uri, "vae", tmp_path / "models")


def _flavor(**changes: Any) -> Callable[[Path], None]:
    def alter(stored: Path) -> None:
        path = stored / "MLmodel"
        content = yaml.safe_load(path.read_text())
        content["flavors"]["python_function"] |= changes
        path.write_text(yaml.safe_dump(content))

    return alter


def _other_flavor(stored: Path) -> None:
    content = yaml.safe_load((stored / "MLmodel").read_text())
    content["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}
    (stored / "MLmodel").write_text(yaml.safe_dump(content))


def _only_other_flavor(stored: Path) -> None:
    (stored / "MLmodel").write_text("flavors: {sklearn: {pickled_model: model.pkl}}")


def _yaml_object(stored: Path) -> None:
    (stored / "MLmodel").write_text("flavors: !!python/object/apply:os.system ['touch pwned']")


def _truncated_mlmodel(stored: Path) -> None:
    (stored / "MLmodel").write_text("flavors: {python_function:")


def _list_mlmodel(stored: Path) -> None:
    (stored / "MLmodel").write_text("- flavors")


def _no_mlmodel(stored: Path) -> None:
    (stored / "MLmodel").unlink()


def _one_bit(stored: Path) -> None:
    path = stored / "data" / "bundle" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _lost_file(stored: Path) -> None:
    (stored / "data" / "bundle" / "spec.json").unlink()


def _lost_manifest(stored: Path) -> None:
    (stored / "data" / "bundle" / MANIFEST).unlink()


def _resealed(stored: Path) -> None:
    """What a forger without the registry can do: other weights with a manifest that fits them."""
    import hashlib

    bundle = stored / "data" / "bundle"
    _one_bit(stored)
    sums = json.loads((bundle / MANIFEST).read_text())
    sums["sha256"]["model.safetensors"] = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(sums))


def _added_parent(stored: Path) -> None:
    parent = stored / "data" / "bundle" / "parents" / "evil"
    parent.mkdir(parents=True)
    (parent / "config.json").write_text("{}")


def _pickle_as_weights(stored: Path) -> None:
    (stored / "data" / "bundle" / "model.safetensors").write_bytes(pickle.dumps(_Marker()))


class _Marker:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize(
    "tamper",
    [
        _flavor(loader_module="os"),
        _flavor(loader_module="mlflow.sklearn"),
        _flavor(code="code"),
        _flavor(data="../../../../etc"),
        _flavor(model_code_path="model.py"),
        _flavor(python_model="python_model.pkl"),
        _other_flavor,
        _only_other_flavor,
        _yaml_object,
        _truncated_mlmodel,
        _list_mlmodel,
        _no_mlmodel,
        _one_bit,
        _lost_file,
        _lost_manifest,
        _resealed,
        _added_parent,
        _pickle_as_weights,
    ],
)
def test_a_tampered_version_is_refused_and_runs_nothing(
    uri: str, stored: Path, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(stored)
    with pytest.raises(IntegrityError):
        fetch(uri, "vae", tmp_path / "models")
    assert list((tmp_path / "models" / "vae").iterdir()) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest", "ftp://host/x", "runs:/x/y", "mlflow-artifacts://other:80/x"]
)
def test_a_version_cannot_send_us_to_an_address_of_its_choice(
    uri: str, version: Version, tmp_path: Path, address: str
) -> None:
    client = connect(uri)
    tags = {**client.get_model_version("vae", "1").tags}
    client.create_model_version("vae", address, version.run_id, tags)
    with pytest.raises(IntegrityError, match="does not follow"):
        fetch(uri, "vae/2", tmp_path / "models")


def test_an_artifact_that_is_gone_is_a_registry_error(uri: str, stored: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(stored)
    with pytest.raises(RegistryError, match="could not download vae/1"):
        fetch(uri, "vae", tmp_path / "models")


@pytest.mark.parametrize("reference", ["..", "../1", "..@champion", "vae/../../x", "/etc/passwd"])
def test_no_reference_reaches_a_path(uri: str, tmp_path: Path, reference: str) -> None:
    with pytest.raises(ConfigError):
        fetch(uri, reference, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_registry_holds_the_hash_of_the_manifest(uri: str, version: Version, bundle: Path) -> None:
    assert connect(uri).get_model_version("vae", "1").tags[MANIFEST_TAG] == manifest_digest(bundle)
    assert version.manifest_sha256 == manifest_digest(bundle)
