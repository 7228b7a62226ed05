import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinfolk.bundle import save_bundle
from kinfolk.contract import DataSpec, Model
from kinfolk.errors import ConfigError, IntegrityError
from kinfolk.serving import versions
from kinfolk.serving.config import ServedModel
from kinfolk.serving.versions import Registry, Release, load, load_function, locate

SPEC = DataSpec(kind="image", shape=(1, 4, 4), levels=256)


def find_for_test(tracking_uri, reference):
    return SimpleNamespace(number={"digits-vae@challenger": 7}[reference])


def fetch_for_test(tracking_uri, reference, folder):
    return SimpleNamespace(folder=folder / reference)


@pytest.fixture
def bundle(toy, tmp_path):
    config = toy.config()
    model = Model(toy, config, SPEC, toy.build(config, SPEC, {}))
    save_bundle(model, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_registered_version_comes_from_the_function_that_is_named(tmp_path, monkeypatch):
    module = SimpleNamespace(find=find_for_test, fetch=fetch_for_test)
    monkeypatch.setitem(sys.modules, "somebodys_registry", module)
    registry = Registry("sqlite:///x.db", str(tmp_path), "somebodys_registry:find", "somebodys_registry:fetch")
    release = locate(ServedModel(name="digits-vae", alias="challenger"), registry)
    assert release == Release("7", tmp_path / "digits-vae" / "7")


@pytest.mark.parametrize("dotted", ["no.such.module:fetch", "json:no_such", "json", ":x"])
def test_a_name_of_no_function_is_refused(dotted):
    with pytest.raises(ConfigError, match="names no function"):
        load_function(dotted)


def test_a_bundle_folder_is_served_as_it_is_and_known_by_its_content(bundle):
    served = ServedModel(name="toy", bundle=bundle)
    release = locate(served, None)
    assert release.folder == bundle
    assert len(release.version) == 12
    assert load(served, release).family.name == "gaussian"


def test_a_registered_model_needs_a_registry_and_a_bundle_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="registry"):
        locate(ServedModel(name="digits-vae"), None)
    with pytest.raises(ConfigError, match="no bundle folder"):
        locate(ServedModel(name="x", bundle=tmp_path), None)


def test_an_altered_bundle_is_not_loaded(bundle):
    weights = bundle / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="altered"):
        load(ServedModel(name="toy", bundle=bundle), Release("1", bundle))


def test_a_model_that_draws_what_is_not_finite_is_not_served(toy, tmp_path):
    config = toy.config()
    module = toy.build(config, SPEC, {})
    module.log_std.data.fill_(1000.0)
    save_bundle(Model(toy, config, SPEC, module), tmp_path / "wild")
    with pytest.raises(ConfigError, match="not finite"):
        load(ServedModel(name="toy"), Release("1", Path(tmp_path / "wild")))


def test_a_release_that_was_tried_before_is_not_made_to_draw_again(bundle, monkeypatch):
    monkeypatch.setattr(versions, "strangeness", lambda model, folder: "it draws something else")
    served, release = ServedModel(name="toy", bundle=bundle), Release("1", bundle)
    with pytest.raises(ConfigError, match="it draws something else"):
        load(served, release)
    assert load(served, release, tried=True).family.name == "gaussian"
