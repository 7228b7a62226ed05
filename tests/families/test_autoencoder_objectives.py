"""Laws of what autoencoders minimise beside the bounds: capacity, noise removed, gradients with less noise."""

import pytest
import torch

from kinfolk.config import parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress, RequestError
from kinfolk.training.state import build
from kinfolk_families.autoencoder import FAMILY
from kinfolk_families.autoencoder.config import (
    AutoencoderConfig,
    CapacityConfig,
    ConvConfig,
    DenoisingConfig,
    ElboConfig,
    FiniteScalarConfig,
    KlRegularisedConfig,
    MlpConfig,
    VectorQuantisedConfig,
)
from kinfolk_families.autoencoder.losses import (
    kl_penalty,
    kl_to_prior,
    log_weights,
)
from kinfolk_families.autoencoder.model import Posterior

IMAGE = DataSpec(kind="image", shape=(1, 8, 12), levels=17, classes=3, data_std=0.5)
VECTOR = DataSpec(kind="vector", shape=(1,))
X = torch.rand(5, 1, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
SEEDS = torch.arange(5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def progress(seed=0, samples_seen=0):
    return Progress(samples_seen, 0, generator(seed))


def model_of(objective, spec=IMAGE, **config):
    small = {"network": ConvConfig(width=4, halvings=1), "latent": 3, "objective": objective}
    return build(FAMILY, AutoencoderConfig(**{**small, **config}), spec, seed=0)


def loss_of(model, batch, **where):
    return FAMILY.phases(model.module)[0].loss(batch, progress(**where))


@pytest.mark.parametrize(("seen", "nats"), [(0, 0.0), (250, 6.25), (1000, 25.0), (5000, 25.0)])
def test_capacity_rises_on_a_line_and_stays(seen, nats):
    assert CapacityConfig(samples=1000).at(seen) == nats


def test_capacity_weighs_the_distance_of_each_sample_s_kl_to_the_line():
    objective = ElboConfig(capacity=CapacityConfig(nats=20, samples=100, weight=10))
    penalty = kl_penalty(torch.tensor([3.0, 12.0]), objective, samples_seen=25)
    assert penalty.tolist() == [20.0, 70.0]


def test_the_loss_follows_the_capacity_of_the_samples_seen():
    model = model_of(ElboConfig(capacity=CapacityConfig(nats=1e6, samples=1000, weight=2)), latent=2)
    early, late = (loss_of(model, Batch(X), samples_seen=seen).value for seen in (500, 1000))
    torch.testing.assert_close(late - early, torch.tensor(2 * 5e5))


def test_capacity_and_beta_together_are_refused():
    with pytest.raises(ConfigError, match=r"capacity takes the place of beta=4\.0"):
        parse(AutoencoderConfig, {"objective": {"kind": "elbo", "beta": 4.0, "capacity": {"samples": 10}}}, "test")


def linear_denoiser(slope, sigma):
    model = model_of(DenoisingConfig(sigma=sigma), VECTOR, network=MlpConfig(depth=0), latent=1)
    encoder, decoder = model.module.encoder.layers[0], model.module.decoder[0][0]
    with torch.no_grad():
        for layer, weight in ((encoder, slope), (decoder, 1.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    return model


@pytest.mark.parametrize(("std", "sigma"), [(1.0, 0.5), (2.0, 3.0)])
def test_on_gaussian_data_the_best_linear_denoiser_is_the_posterior_s_mean(std, sigma):
    """E[x | x_t] = x_t std^2 / (std^2 + sigma^2): there the slope's gradient vanishes, and at 1 it is 2 sigma^2."""
    batch = Batch(std * torch.randn(200_000, 1, generator=generator(1)))
    for slope, gradient in ((std**2 / (std**2 + sigma**2), 0.0), (1.0, 2 * sigma**2)):
        model = linear_denoiser(slope, sigma)
        loss_of(model, batch).value.backward()
        assert float(model.module.encoder.layers[0].weight.grad) == pytest.approx(gradient, abs=0.05 * sigma**2)


def test_denoise_is_the_network_at_its_own_level_and_refuses_others():
    tasks = linear_denoiser(0.25, 0.5).tasks
    x_t = torch.tensor([[2.0], [-4.0]])
    assert tasks.denoise(x_t, torch.full((2,), 0.5), None).flatten().tolist() == [0.5, -1.0]
    with pytest.raises(RequestError, match=r"removes noise of sigma=0\.5 only") as error:
        tasks.denoise(x_t, torch.tensor([0.5, 0.6]), None)
    assert error.value.field == "sigma"


def test_the_denoiser_s_anomaly_score_is_the_error_left_of_noise_from_the_seed():
    """A model that returns what it is given leaves the noise: sigma^2 for each element, on average."""
    model = linear_denoiser(1.0, 0.5)
    model.module.requires_grad_(False)
    tasks = model.tasks
    batch, seeds = Batch(torch.randn(4000, 1, generator=generator())), torch.arange(4000)
    score = tasks.anomaly_score(batch, seeds)
    assert float(score.mean()) == pytest.approx(0.25, rel=0.1)
    torch.testing.assert_close(tasks.anomaly_score(Batch(batch.x[7:9]), seeds[7:9]), score[7:9])


def test_the_kl_regularised_loss_is_the_squared_error_plus_the_light_kl():
    light, heavy = (loss_of(model_of(KlRegularisedConfig(weight=w)), Batch(X)) for w in (1e-6, 2.0))
    torch.testing.assert_close(heavy.value - light.value, (2 - 1e-6) * light.logs["kl"])
    torch.testing.assert_close(light.value, light.logs["squared_error"] + 1e-6 * light.logs["kl"])


def test_a_spatial_latent_lies_on_the_grid_and_is_the_posterior_s_mean():
    model = model_of(KlRegularisedConfig(), spatial=True)
    z = model.tasks.encode(Batch(X), SEEDS)
    mean, _ = model.module.features(X, None).chunk(2, dim=1)
    assert model.tasks.latent_spec == DataSpec(kind="image", shape=(3, 4, 6), classes=3)
    assert torch.equal(z, mean)
    assert model.tasks.starts == {}


def test_a_spatial_posterior_s_kl_is_summed_over_all_of_its_elements():
    posterior = Posterior(*torch.randn(2, 5, 3, 4, 6, generator=generator()))
    flat = Posterior(posterior.mu.flatten(1), posterior.log_var.flatten(1))
    torch.testing.assert_close(kl_to_prior(posterior), kl_to_prior(flat))
    z = torch.randn(7, 5, 3, 4, 6, generator=generator(1))
    whole = log_weights(torch.zeros(7, 5), z, posterior)
    torch.testing.assert_close(whole, log_weights(torch.zeros(7, 5), z.flatten(2), flat))


@pytest.mark.parametrize("objective", [VectorQuantisedConfig(codes=7), FiniteScalarConfig(levels=(3, 4, 5))])
def test_tokens_decode_in_raster_order_to_the_reconstruction(objective):
    model = model_of(objective)
    with torch.no_grad():
        for value in model.module.encoder.parameters():
            value.mul_(3)  # so that places differ in their tokens
    tasks = model.tasks
    tokens = tasks.encode(Batch(X), SEEDS)
    assert not torch.equal(tokens, tokens.view(5, 4, 6).transpose(1, 2).flatten(1))
    levels = 7 if isinstance(objective, VectorQuantisedConfig) else 60
    assert tasks.latent_spec == DataSpec(kind="tokens", shape=(24,), levels=levels, classes=3)
    assert tokens.dtype == torch.int64
    _, trained = model.module(X, None)
    torch.testing.assert_close(tasks.decode(Batch(tokens), SEEDS), trained)
    torch.testing.assert_close(tasks.reconstruct(Batch(X), SEEDS), trained)
    corners = {0: (0, 0), 5: (0, 11), 18: (7, 0), 23: (7, 11)}  # of the grid of 4 by 6, and of the image
    for place in corners:
        other = tokens.clone()
        other[:, place] = (tokens[:, place] + 1) % levels
        moved = (tasks.decode(Batch(other), SEEDS) - tasks.decode(Batch(tokens), SEEDS)).abs().sum((0, 1))
        assert [bool(moved[pixel] > 0) for pixel in corners.values()] == [place == each for each in corners]


def test_the_quantised_loss_is_the_lost_share_of_variance_plus_the_commitment():
    model = model_of(VectorQuantisedConfig(codes=7, commitment=0.25))
    loss = loss_of(model, Batch(X))
    quantised = model.module.quantiser(model.module.features(X, None))
    distance = (quantised.z - quantised.codes).square().mean()
    error = (model.tasks.reconstruct(Batch(X), SEEDS) - X).square().mean()
    torch.testing.assert_close(loss.value, error / 0.5**2 + 0.25 * distance)
    assert set(loss.logs) == {"squared_error", "quantisation_error", "usage", "perplexity"}


def test_commitment_pulls_encoder_outputs_to_their_codes():
    model = model_of(VectorQuantisedConfig(codes=7, commitment=1000.0))
    module = model.module
    features = module.features(X, None).detach().requires_grad_()
    module.features = lambda x, label: features
    loss_of(model, Batch(X)).value.backward()
    pulled = features - module.quantiser(features).codes
    assert torch.nn.functional.cosine_similarity(features.grad.flatten(), pulled.flatten(), dim=0) > 0.99


def test_fixed_levels_and_channels_that_differ_are_refused():
    with pytest.raises(ConfigError, match=r"latent=16, but objective\.levels has 3 entries: set latent to 3"):
        parse(AutoencoderConfig, {"objective": {"kind": "finite_scalar"}, "network": {"kind": "conv"}}, "test")


def test_tokens_of_a_perceptron_are_refused_for_want_of_a_grid():
    with pytest.raises(ConfigError, match=r"network\.kind='mlp' has no grid .* Use conv or transformer"):
        model_of(VectorQuantisedConfig(), network=MlpConfig())
