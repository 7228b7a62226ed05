"""A model built on a registered one: trained on its latents, registered with a copy of it, served alone."""

import shutil

import pytest
import torch
from rich.console import Console

from kinfolk import sampling
from kinfolk.errors import ConfigError, DataError, RegistryError
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.train import train

FEW = ["training.samples=128", "training.batch_size=64"]


@pytest.fixture
def settings(tmp_path):
    return Settings(state=tmp_path / "state", data=tmp_path / "data")


def trained(settings, recipe, *sets, workers=1):
    return train(settings, plan(settings, recipe, [*FEW, *sets]), Console(quiet=True), workers=workers).version


def test_a_parent_that_is_not_registered_is_named_with_what_to_do(settings):
    with pytest.raises(RegistryError, match=r"first_stage 'digits-vq-vae'.*Train that first"):
        plan(settings, "digits/vq-prior", FEW)


def test_a_prior_on_a_registered_tokenizer(settings, ray_cluster, tmp_path):
    stage = trained(settings, "digits/vq-vae")
    prior = trained(settings, "digits/vq-prior", workers=2)
    assert prior.lineage.parents == {"first_stage": stage.reference}
    assert {"codebook_usage", "codebook_perplexity"} <= evaluate(settings, "digits-vq-vae").figures.metrics.keys()

    (latents,) = (tmp_path / "data" / ".latents").iterdir()
    before = latents.stat().st_mtime_ns
    planned = plan(settings, "digits/vq-prior", FEW)
    assert latents.stat().st_mtime_ns == before  # encoded once
    assert planned.latents == latents

    shutil.rmtree(tmp_path / "state" / "cache")  # all that is left is the registered version
    loaded = load_model(settings, prior.reference)
    assert loaded.model.parents.keys() == {"first_stage"}
    x = sampling.sample(loaded.model, 2, 5)
    assert x.shape == (2, 1, 8, 8)
    own = load_model(settings, stage.reference).model
    copy = loaded.model.parents["first_stage"].module.state_dict()
    assert all(torch.equal(copy[name], value) for name, value in own.module.state_dict().items())


def test_training_on_some_classes_is_measured_on_them_and_against_the_rest(settings, ray_cluster):
    version = trained(settings, "digits/vae", "keep_labels=[0, 1]")
    figures = evaluate(settings, version.reference, samples=50, against="digits").figures
    assert {"auroc_rest", "auroc_against"} <= figures.metrics.keys()
    assert figures.basis["against"].startswith("digits ")


def test_a_class_that_is_not_in_the_data_is_refused_before_training(settings):
    with pytest.raises(DataError, match="keep_labels=11 is not a class"):
        plan(settings, "digits/vae", ["keep_labels=[11]"])


def test_fine_tuning_wants_the_same_network(settings, ray_cluster):
    trained(settings, "digits/vae")
    with pytest.raises(ConfigError, match="does not fit the recipe's network"):
        plan(settings, "digits/vae", ["init_from=digits-vae", "model.latent=3"])
