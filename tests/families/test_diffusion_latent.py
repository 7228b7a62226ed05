"""Latent diffusion: the scale of latents, what is decoded, and first stages it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kinfolk import sampling
from kinfolk.config import Training
from kinfolk.contract import FIRST_STAGE, Batch, Config, ConfigError, DataSpec, Family, Model, Progress, Tasks
from kinfolk.data.source import TensorSource
from kinfolk.families import find_family
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import AdapterConfig, DiffusionConfig, Options

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
LATENT = DataSpec(kind="image", shape=(4, 4, 4), data_std=9.0)
SMALL = TransformerConfig(patch=1, width=16, depth=1, heads=2)


def stage_of(latent=LATENT, **changes):
    """A first stage that folds an image of 8 x 8 into 4 channels of 4 x 4, ten times as large and off by one."""
    tasks = Tasks(
        options=Config(),
        encode=lambda batch, seeds: 10 * nn.functional.pixel_unshuffle(batch.x, 2) + 1,
        decode=lambda batch, seeds: nn.functional.pixel_shuffle((batch.x - 1) / 10, 2),
        latent_spec=latent,
    )
    family = Family(
        "folding",
        frozenset({"image"}),
        Config,
        Config,
        build=lambda *_: nn.Linear(1, 1),
        phases=lambda _: [],
        tasks=lambda _: replace(tasks, **changes),
    )
    return Model(family, Config(), SPEC, nn.Linear(1, 1))


def latent_model(stage=None, network=SMALL, **config):
    parents = {FIRST_STAGE: stage or stage_of()}
    return build(FAMILY, DiffusionConfig(network=network, conditional=True, **config), SPEC, seed=0, parents=parents)


def autoencoder(conditional):
    """A real first stage: a KL-regularised autoencoder to 2 channels of 4 x 4, told the class or not."""
    family, network = find_family("autoencoder"), {"kind": "conv", "width": 4, "halvings": 1}
    values = {"objective": {"kind": "kl_regularised"}, "network": network, "latent": 2, "spatial": True}
    config = family.config.model_validate({**values, "conditional": conditional})
    return build(family, config, SPEC, seed=0)


def latents(rows=64):
    generator = torch.Generator().manual_seed(0)
    return 1 + 7 * torch.randn(rows, *LATENT.shape, generator=generator)


def progress(all_reduce=lambda value: value):
    return Progress(0, 0, torch.Generator(), all_reduce)


def test_the_scale_of_latents_is_one_over_their_standard_deviation_over_all_workers():
    """Two workers with shares of unequal spread and mean: what they agree on is that of both shares together."""
    shares = [latents()[:16], 3 * latents()[16:] + 5]
    models = [latent_model(), latent_model()]
    sums = []
    for model, share in zip(models, shares, strict=True):
        FAMILY.initialise(model.module, Batch(share), progress(lambda value: sums.append(value.clone()) or value))
    for model, share in zip(models, shares, strict=True):
        FAMILY.initialise(model.module, Batch(share), progress(lambda _: sums[0] + sums[1]))
    expected = 1 / torch.cat(shares).double().std(correction=0)
    for model in models:
        assert float(model.module.scale) == pytest.approx(float(expected), rel=1e-5)


def test_the_scale_is_measured_on_the_first_batch_stored_and_never_touched_again():
    model, plan = latent_model(), Training(samples=128, batch_size=32)
    source = TensorSource(LATENT.model_copy(update={"classes": 3}), latents(), torch.arange(64) % 3)
    state = prepare(model, plan)
    take_step(state, source, plan, 0, World())
    first = float(model.module.scale)
    assert first == pytest.approx(1 / 7, rel=0.1)
    take_step(state, source, plan, 0, World())
    assert float(model.module.scale) == first
    assert "scale" in model.module.state_dict()
    assert "scale" not in build(FAMILY, DiffusionConfig(network=SMALL), SPEC, seed=0).module.state_dict()


def test_scaled_latents_are_what_is_learnt():
    """A silent EDM on latents of any size has loss 1 once they are at unit variance."""
    model, batch = latent_model(), Batch(latents(512) - 1, torch.zeros(512, dtype=torch.int64))
    FAMILY.initialise(model.module, batch, progress())
    (phase,) = FAMILY.phases(model.module)
    loss = phase.loss(batch, Progress(0, 0, torch.Generator().manual_seed(0))).value
    assert float(loss.detach()) == pytest.approx(1, abs=0.05)


def test_samples_are_decoded_at_the_scale_of_the_first_stage():
    """A silent EDM draws what its skip makes of noise; decoding undoes scale, offset and folding."""
    model = latent_model(sampler=Options(steps=4))
    model.module.scale.fill_(0.25)
    request = sampling.make_request(model, 3)
    *_, state = sampling.trajectory(model.tasks, request)
    assert state.x.shape == (3, *LATENT.shape)
    found = sampling.run(model.tasks, request)
    expected = nn.functional.pixel_shuffle((state.carry["denoised"].float() / 0.25 - 1) / 10, 2)
    assert found.shape == (3, *SPEC.shape)
    assert torch.allclose(found, expected, atol=1e-6)


def test_latents_are_taken_to_have_unit_variance_and_no_levels():
    module = latent_model().module
    assert module.preconditioner.sigma_data == 1
    assert module.spec == DataSpec(kind="image", shape=(4, 4, 4), classes=3)


def test_what_needs_pixels_is_left_out():
    tasks = latent_model().tasks
    assert set(tasks.starts) == {"sample", "interpolate"}
    assert (tasks.log_prob, tasks.anomaly_score, tasks.denoise) == (None, None, None)


def test_vectors_of_a_first_stage_are_learnt_as_well():
    vectors = stage_of(
        DataSpec(kind="vector", shape=(6,)), decode=lambda batch, seeds: batch.x.sum(1).expand(1, 8, 8, -1)
    )
    assert latent_model(vectors, MlpConfig(width=8, depth=1)).module.spec.shape == (6,)


def test_the_class_reaches_the_decoder_of_a_model_that_knows_it():
    seen = []

    def decode(batch, seeds):
        seen.append((batch.label.tolist(), seeds.tolist()))
        return torch.zeros(len(batch), *SPEC.shape)

    model = latent_model(stage_of(decode=decode))
    sampling.sample(model, 2, 7, [2, 0], {"steps": 1})
    assert seen == [([2, 0], [7, 8])]


def test_an_adapter_on_a_latent_base_keeps_its_scale_and_first_stage():
    stage = stage_of()
    base = latent_model(stage)
    base.module.scale.fill_(0.2)
    config = DiffusionConfig(adapter=AdapterConfig(rank=2, sampler={"steps": 3}))
    model = build(FAMILY, config, SPEC, seed=1, parents={"base": base, FIRST_STAGE: stage})
    FAMILY.initialise(model.module, Batch(latents()), progress())
    assert float(base.module.scale) == pytest.approx(0.2)
    asked = {"steps": 3}
    assert torch.equal(sampling.sample(model, 2, 3, 1, asked), sampling.sample(base, 2, 3, 1, asked))
    for other in ({}, {FIRST_STAGE: autoencoder(False)}):
        with pytest.raises(ConfigError, match="the same first stage"):
            build(FAMILY, config, SPEC, seed=1, parents={"base": base, **other})


@pytest.mark.parametrize(
    ("changes", "config", "named"),
    [
        ({"latent": DataSpec(kind="tokens", shape=(16,), levels=8)}, {}, "no continuous latents"),
        ({"decode": None}, {}, "no continuous latents"),
        ({}, {"sampler": Options(clamp=True)}, "no range"),
        ({}, {"network": TransformerConfig(patch=3)}, "Use one of 1, 2, 4"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_refused(changes, config, named):
    whole = {"network": SMALL, "conditional": True, **config}
    with pytest.raises(ConfigError, match=named):
        build(FAMILY, DiffusionConfig(**whole), SPEC, seed=0, parents={FIRST_STAGE: stage_of(**changes)})


def test_a_first_stage_that_wants_labels_is_refused_by_a_model_without():
    told, untold = autoencoder(True), autoencoder(False)
    with pytest.raises(ConfigError, match="wants labels to decode"):
        build(FAMILY, DiffusionConfig(network=SMALL), SPEC, seed=0, parents={FIRST_STAGE: told})
    unconditional = build(FAMILY, DiffusionConfig(network=SMALL), SPEC, seed=0, parents={FIRST_STAGE: untold})
    for model, labels in ((unconditional, None), (latent_model(untold), [0, 2]), (latent_model(told), [0, 2])):
        assert sampling.sample(model, 2, 7, labels, {"steps": 1}).shape == (2, *SPEC.shape)


def test_an_adapter_tells_a_first_stage_what_its_base_does():
    stage = autoencoder(True)
    config = DiffusionConfig(adapter=AdapterConfig(rank=2))
    model = build(FAMILY, config, SPEC, seed=1, parents={"base": latent_model(stage), FIRST_STAGE: stage})
    assert model.tasks.conditions == {"label"}
    base = build(FAMILY, DiffusionConfig(network=SMALL), SPEC, seed=0, parents={FIRST_STAGE: stage_of()})
    with pytest.raises(ConfigError, match="the same first stage"):
        build(FAMILY, config, SPEC, seed=1, parents={"base": base, FIRST_STAGE: stage_of(conditions={"label"})})


def test_latents_that_do_not_vary_leave_finite_numbers():
    model = latent_model()
    FAMILY.initialise(model.module, Batch(torch.ones(8, *LATENT.shape)), progress())
    assert math.isfinite(float(model.module.scale))
