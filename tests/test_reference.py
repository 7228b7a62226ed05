import pytest
import torch

from kinfolk.bundle import REFERENCE, load_bundle, save_bundle
from kinfolk.contract import DataSpec, Model
from kinfolk.reference import reference_file, strangeness
from kinfolk.rng import seeded_initialisation

GREY = DataSpec(kind="image", shape=(1, 4, 4), levels=256)


@pytest.fixture
def make(toy):
    def build(seed=0, spec=GREY):
        with seeded_initialisation(seed):
            return Model(toy, toy.config(), spec, toy.build(toy.config(), spec, {}).eval())

    return build


@pytest.fixture
def kept(make, tmp_path):
    save_bundle(make(), tmp_path / "bundle", reference=reference_file(make()))
    return tmp_path / "bundle"


def shifted(model, by):
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += by
    return model


def test_the_model_that_was_kept_is_no_stranger_nor_is_one_off_by_rounding(make, kept):
    assert strangeness(load_bundle(kept), kept) is None
    assert strangeness(shifted(make(), 1e-5), kept) is None


def test_another_model_is(make, kept):
    assert "0%" in strangeness(shifted(make(), 0.7), kept)
    assert "not finite" in strangeness(shifted(make(), float("nan")), kept)
    assert "shape" in strangeness(make(spec=DataSpec(kind="image", shape=(1, 5, 5), levels=256)), kept)


def test_without_a_file_samples_need_only_be_finite(make, tmp_path):
    save_bundle(make(), tmp_path / "bundle")
    assert not (tmp_path / "bundle" / REFERENCE).exists()
    assert strangeness(make(), tmp_path / "bundle") is None
    assert "not finite" in strangeness(shifted(make(), float("inf")), tmp_path / "bundle")
