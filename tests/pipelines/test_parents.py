"""A model built on a registered one: trained on its latents, registered with a copy of it, served alone."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import kinfolk_pipelines.plan as module
from kinfolk import sampling
from kinfolk.data import catalogue
from kinfolk.data.prepared import Prepared
from kinfolk.data.version import content_hash
from kinfolk.errors import ConfigError, DataError, RegistryError, RequestError
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.families import untrained
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

    shutil.rmtree(tmp_path / "state" / "cache")  # all that is left is the registered version
    loaded = load_model(settings, prior.reference)
    assert loaded.model.parents.keys() == {"first_stage"}
    x = sampling.sample(loaded.model, 2, 5)
    assert x.shape == (2, 1, 8, 8)
    own = load_model(settings, stage.reference).model
    copy = loaded.model.parents["first_stage"].module.state_dict()
    assert all(torch.equal(copy[name], value) for name, value in own.module.state_dict().items())


def test_latents_are_encoded_once_and_are_those_of_the_stage_itself(settings, ray, tmp_path):
    other = Settings(state=tmp_path / "other", data=settings.data)
    jobs = []
    for store, seed in ((settings, 0), (other, 1)):  # each holds a digits-vq-vae/1
        trained(store, "digits/vq-vae", f"seed={seed}")
        trained(store, "digits/vq-prior")
        jobs.append(ray.asked[-1]["job"])
    for job in jobs:
        test, kept = (Prepared.open(folder).source("test").take(0, 9) for folder in (job.data, job.latents))
        assert torch.equal(job.parents["first_stage"].tasks.encode(test, torch.arange(9)), kept.x)
    assert jobs[1].latents.name.endswith(content_hash(jobs[1].data)[:12])
    before = jobs[1].latents.stat().st_mtime_ns
    trained(other, "digits/vq-prior", "seed=5")
    assert ray.asked[-1]["job"].latents == jobs[1].latents
    assert jobs[1].latents.stat().st_mtime_ns == before


def test_nothing_is_encoded_before_all_is_checked(settings, ray):
    trained(settings, "digits/vq-vae")
    planned = plan(settings, "digits/vq-prior", [*FEW, "training.batch_size=7"])
    with pytest.raises(ConfigError, match="does not divide over 2 workers"):
        train(settings, planned, Console(quiet=True), workers=2)
    assert not settings.dataset(".latents").exists()


def test_a_stage_of_another_shape_is_refused_when_planning(settings, monkeypatch):
    path = settings.recipe_folder / "mnist" / "vq-vae.yaml"
    version = SimpleNamespace(reference="digits-vq-vae/1", name="digits-vq-vae", number=1, manifest_sha256="0" * 64)
    stage = SimpleNamespace(model=untrained(path, catalogue.entry("mnist").spec), version=version)
    monkeypatch.setattr(module, "load_model", lambda *_: stage)
    with pytest.raises(ConfigError, match=r"encodes samples of shape \(1, 28, 28\), the data has \(1, 8, 8\)"):
        plan(settings, "digits/vq-prior", FEW)


def test_training_on_some_classes_is_measured_on_them_and_against_the_rest(settings, ray_cluster):
    version = trained(settings, "digits/vae", "keep_labels=[0, 1]")
    figures = evaluate(settings, version.reference, samples=50, against="digits").figures
    assert {"auroc_rest", "auroc_against"} <= figures.metrics.keys()
    assert figures.basis["against"].startswith("digits ")


def test_a_class_that_is_not_in_the_data_is_refused_before_training(settings):
    with pytest.raises(DataError, match="keep_labels=11 is not a class"):
        plan(settings, "digits/vae", ["keep_labels=[11]"])


@pytest.mark.parametrize(
    ("recipe", "asked", "said"),
    [
        ("dcgan", "likelihood_samples=100", r"gan model has no likelihood: leave evaluation\.likelihood_samples"),
        ("dcgan", "against=patches", r"gan model has no anomaly score: leave evaluation\.against out"),
        ("vq-vae", "options.temperature=0.5", r"draws no samples: leave evaluation\.options"),
        ("vae", "options.temprature=0.5", "Did you mean 'temperature'"),
    ],
)
def test_an_evaluation_that_cannot_be_had_is_refused_before_training(settings, recipe, asked, said):
    with pytest.raises((ConfigError, RequestError), match=said):
        plan(settings, f"digits/{recipe}", [f"evaluation.{asked}"])


def test_samples_of_a_model_that_draws_none_are_refused(settings, ray_cluster):
    trained(settings, "digits/autoencoder")
    with pytest.raises(ConfigError, match=r"digits-autoencoder/1 draws no samples: leave --samples out"):
        evaluate(settings, "digits-autoencoder", samples=50)


def test_fine_tuning_wants_the_same_network(settings, ray_cluster):
    trained(settings, "digits/vae")
    with pytest.raises(ConfigError, match="does not fit the recipe's network"):
        plan(settings, "digits/vae", ["init_from=digits-vae", "model.latent=3"])
