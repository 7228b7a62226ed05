"""Tasks of built autoencoders: seeds, conditions and temperature do what they say."""

from dataclasses import replace

import pytest
import torch

from kinfolk import sampling
from kinfolk.config import parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Model, RequestError
from kinfolk.training.state import build
from kinfolk_families.autoencoder import FAMILY
from kinfolk_families.autoencoder.config import (
    AutoencoderConfig,
    BernoulliConfig,
    ConvConfig,
    DenoisingConfig,
    DiscretisedLogisticConfig,
    ElboConfig,
    FiniteScalarConfig,
    GaussianConfig,
    KlRegularisedConfig,
    MlpConfig,
    Options,
    ReconstructionConfig,
    VectorQuantisedConfig,
)

IMAGE = DataSpec(kind="image", shape=(1, 4, 4), levels=17, classes=3)
SEEDS = torch.arange(6)
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABEL = torch.tensor([0, 1, 2, 0, 1, 2])


def model_of(decoder=None, **config) -> Model:
    objective = ElboConfig(decoder=decoder) if decoder else ReconstructionConfig()
    small = {"network": MlpConfig(width=16, depth=1), "latent": 3, "objective": objective}
    model = build(FAMILY, AutoencoderConfig(**{**small, **config}), IMAGE, seed=0)
    model.module.requires_grad_(False)
    return model


@pytest.fixture
def conditional():
    return model_of(DiscretisedLogisticConfig(), conditional=True)


def test_a_sample_depends_on_its_own_seed_label_and_options_only(conditional):
    tasks = conditional.tasks
    many = sampling.make_request(conditional, 4, seed=7, label=[2, 0, 1, 1])
    warm = sampling.make_request(conditional, 2, seed=0, options={"temperature": 2.0})
    alone = sampling.make_request(conditional, 1, seed=8, label=0)
    mixed = type(tasks.starts["sample"](many)).cat([tasks.starts["sample"](many), tasks.starts["sample"](warm)])
    beside = tasks.render(tasks.advance(mixed.select(torch.tensor([5, 1, 0]))))[1]
    torch.testing.assert_close(sampling.run(tasks, alone)[0], beside)


def test_temperature_scales_the_latent():
    model = model_of(GaussianConfig(), network=MlpConfig(depth=0))
    bias = model.module.decoder[0][0].bias.view(1, 4, 4)
    one, half = (sampling.sample(model, 5, options={"temperature": t}) for t in (1.0, 0.5))
    torch.testing.assert_close(half - bias, 0.5 * (one - bias))
    with pytest.raises(RequestError, match="temperature"):
        sampling.sample(model, 1, options={"temperature": 2.5})


def test_the_default_temperature_is_the_recipe_s():
    models = [model_of(GaussianConfig(), sampler=Options(temperature=t)) for t in (1.0, 0.5)]
    asked = sampling.sample(models[0], 3, options={"temperature": 0.5})
    assert torch.equal(sampling.sample(models[1], 3), asked)


def test_samples_are_decoded_standard_normal_latents_of_the_asked_class(conditional):
    request = sampling.make_request(conditional, 500, label=1)
    state = conditional.tasks.starts["sample"](request)
    z = state.carry["z"]
    assert abs(float(z.mean())) < 0.1
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    decoded = conditional.tasks.decode(Batch(z, torch.ones(500, dtype=torch.int64)), request.seeds)
    assert torch.equal(sampling.run(conditional.tasks, request), decoded)


def test_encoder_and_decoder_are_told_the_class(conditional):
    tasks, other = conditional.tasks, (LABEL + 1) % 3
    z = tasks.encode(Batch(X, LABEL), SEEDS)
    assert not torch.allclose(z, tasks.encode(Batch(X, other), SEEDS))
    assert not torch.allclose(tasks.decode(Batch(z, LABEL), SEEDS), tasks.decode(Batch(z, other), SEEDS))
    assert tasks.conditions == {"label"}


@pytest.mark.parametrize(
    "objective",
    [
        ReconstructionConfig(),
        DenoisingConfig(),
        KlRegularisedConfig(),
        VectorQuantisedConfig(codes=8),
        FiniteScalarConfig(levels=(4, 4, 4)),
        ElboConfig(),
    ],
    ids=lambda objective: objective.kind,
)
def test_every_conditional_autoencoder_says_that_it_is_told_the_class(objective):
    network = ConvConfig(width=4, halvings=1)
    told, untold = (
        model_of(objective=objective, network=network, conditional=conditional).tasks for conditional in (True, False)
    )
    assert (told.conditions, untold.conditions) == ({"label"}, frozenset())
    for tasks, batch in ((told, Batch(X, LABEL)), (untold, Batch(X))):
        assert tasks.reconstruct(batch, SEEDS).shape == X.shape
    with pytest.raises(RequestError, match="give labels"):
        told.encode(Batch(X), SEEDS)


def test_a_conditional_model_asks_for_the_missing_label(conditional):
    with pytest.raises(RequestError, match="give labels, 0 to 2") as error:
        conditional.tasks.encode(Batch(X), SEEDS)
    assert error.value.field == "label"


def test_rows_without_a_label_draw_their_class_from_their_seed(conditional):
    request = sampling.make_request(conditional, 300)
    labels = conditional.tasks.starts["sample"](request).carry["label"]
    assert labels.bincount(minlength=3).min() > 70


def test_reconstruction_is_decoding_what_was_encoded():
    tasks = model_of(BernoulliConfig()).tasks
    z = tasks.encode(Batch(X), SEEDS)
    assert torch.equal(tasks.reconstruct(Batch(X), SEEDS), tasks.decode(Batch(z), SEEDS))
    assert z.shape[1:] == tasks.latent_spec.shape


def test_a_latent_of_binarised_data_is_a_function_of_its_row_s_seed():
    tasks = model_of(BernoulliConfig()).tasks
    whole = tasks.encode(Batch(X), SEEDS)
    torch.testing.assert_close(tasks.encode(Batch(X[2:4]), SEEDS[2:4]), whole[2:4])
    assert not torch.allclose(tasks.encode(Batch(X), SEEDS + 6), whole)


@pytest.mark.parametrize(
    ("decoder", "of"),
    [(BernoulliConfig(), "binary"), (DiscretisedLogisticConfig(), "levels"), (GaussianConfig(), "density")],
)
def test_the_bound_says_what_it_is_and_the_anomaly_score_is_its_negative(decoder, of):
    tasks = model_of(decoder).tasks
    assert (tasks.log_prob.kind, tasks.log_prob.of) == ("lower_bound", of)
    assert torch.equal(tasks.anomaly_score(Batch(X), SEEDS), -tasks.log_prob.nats(Batch(X), SEEDS))


def test_the_score_can_be_the_error_or_the_share_of_a_sample_s_own_variance_that_it_leaves():
    error, share = (model_of(BernoulliConfig(binarise=False), anomaly=a).tasks for a in ("error", "unexplained"))
    squared = (error.reconstruct(Batch(X), SEEDS) - X).square().flatten(1)
    torch.testing.assert_close(error.anomaly_score(Batch(X), SEEDS), squared.sum(1))
    variance = X.flatten(1).var(1, correction=0)
    torch.testing.assert_close(share.anomaly_score(Batch(X), SEEDS), squared.mean(1) / variance)


def test_a_sample_without_contrast_has_a_finite_score():
    tasks = model_of(anomaly="unexplained").tasks
    assert tasks.anomaly_score(Batch(torch.ones_like(X)), SEEDS).isfinite().all()


def test_a_score_by_a_bound_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="anomaly='bound', but reconstruction has none; use 'error' or 'unexplained'"):
        parse(AutoencoderConfig, {"objective": {"kind": "reconstruction"}, "anomaly": "bound"}, "test")


def test_a_bound_of_several_draws_depends_on_its_own_row_only():
    bound = model_of(GaussianConfig(), conditional=True).tasks.importance_bound
    whole = bound(Batch(X, LABEL), SEEDS, 3)
    torch.testing.assert_close(bound(Batch(X[3:5], LABEL[3:5]), SEEDS[3:5], 3), whole[3:5])


def test_an_interpolation_begins_at_one_sample_and_ends_at_the_other():
    model = model_of(BernoulliConfig())
    request, ends = sampling.make_request(model, 3, 10), sampling.sample(model, 6, 10)
    for weight, samples in ((0.0, ends[:3]), (1.0, ends[3:])):
        way = replace(request, seed_to=request.seeds + 3, weight=torch.full((3,), weight, dtype=torch.float64))
        torch.testing.assert_close(sampling.run(model.tasks, way, "interpolate"), samples)


def test_the_interpolated_latent_is_as_long_as_noise_is():
    model = model_of(GaussianConfig(), latent=400)
    request = sampling.make_request(model, 50)
    way = replace(request, seed_to=request.seeds + 50, weight=torch.full((50,), 0.5, dtype=torch.float64))
    z = model.tasks.starts["interpolate"](way).carry["z"]
    assert float(z.std()) == pytest.approx(1, abs=0.02)


def test_a_spatial_model_samples_and_bounds_over_all_of_its_latent():
    model = model_of(BernoulliConfig(), network=ConvConfig(width=4, halvings=1), spatial=True)
    state = model.tasks.starts["sample"](sampling.make_request(model, 200))
    assert state.carry["z"].shape == (200, 3, 2, 2)
    assert float(state.carry["z"].std()) == pytest.approx(1, abs=0.05)
    assert model.tasks.importance_bound(Batch(X), SEEDS, 3).shape == (6,)


def test_a_bound_of_many_draws_depends_on_its_own_row_and_adds_up_its_chunks():
    tasks = model_of(BernoulliConfig()).tasks
    many = Batch(X.repeat(50, 1, 1, 1))  # more rows than are decoded at once
    whole = tasks.importance_bound(many, torch.arange(300), 120)
    torch.testing.assert_close(tasks.importance_bound(Batch(X), torch.arange(294, 300), 120), whole[294:])
    first = tasks.importance_bound(many, torch.arange(300), 50)
    assert bool((whole.exp() * 120 >= first.exp() * 50).all())  # the first 50 draws are among the 120
    second = tasks.importance_bound(many, torch.arange(300), 100)
    assert not torch.allclose(second, first, rtol=1e-4)  # the next 50 are others


def test_grey_targets_leave_a_score_but_no_likelihood():
    tasks = model_of(BernoulliConfig(binarise=False)).tasks
    assert tasks.log_prob is None
    assert tasks.anomaly_score(Batch(X), SEEDS).isfinite().all()


def test_the_plain_autoencoder_offers_no_sample_and_no_likelihood():
    model = model_of()
    tasks = model.tasks
    assert (tasks.starts, tasks.advance, tasks.render, tasks.log_prob) == ({}, None, None, None)
    error = (tasks.reconstruct(Batch(X), SEEDS) - X).square().sum((1, 2, 3))
    torch.testing.assert_close(tasks.anomaly_score(Batch(X), SEEDS), error)
    with pytest.raises(RequestError, match="cannot 'sample'"):
        sampling.start(tasks, sampling.make_request(model, 1))
