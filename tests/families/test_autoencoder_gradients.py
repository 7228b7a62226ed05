"""Laws of the importance-weighted bound's gradients: one mean, less noise, all draws or a few."""

import math

import pytest
import torch

from kinfolk.config import parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.training.state import build
from kinfolk_families.autoencoder import FAMILY
from kinfolk_families.autoencoder.config import AutoencoderConfig, ConvConfig, GaussianConfig, IwaeConfig, MlpConfig
from kinfolk_families.autoencoder.losses import doubly_reparameterised_bound, importance_weighted_bound, log_weights
from kinfolk_families.autoencoder.model import Posterior

IMAGE = DataSpec(kind="image", shape=(1, 8, 12), levels=17)
VECTOR = DataSpec(kind="vector", shape=(1,))
X = torch.rand(5, 1, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def progress():
    return Progress(0, 0, generator())


def model_of(objective, spec=IMAGE, **config):
    small = {"network": ConvConfig(width=4, halvings=1), "latent": 3, "objective": objective}
    return build(FAMILY, AutoencoderConfig(**{**small, **config}), spec, seed=0)


def loss_of(model, batch):
    return FAMILY.phases(model.module)[0].loss(batch, progress())


def gradients(bound, draws, rows=20_000):
    """Of log p(x) = log int N(x; z + shift, 1) N(z; 0, 1) dz at x = 2 with q = N(0.3, 0.8^2), each row by itself."""
    mu, shift = (torch.full((rows, 1), value, requires_grad=True) for value in (0.3, 0.0))
    posterior = Posterior(mu, torch.full((rows, 1), 2 * math.log(0.8)))
    z = posterior.draw(torch.randn(draws, rows, 1, generator=generator(draws)))
    log_px = -0.5 * (2.0 - z - shift).square().sum(2)
    value = bound(log_px, z, posterior)
    return value.detach(), *torch.autograd.grad(value.sum(), [mu, shift])


def plain(log_px, z, posterior):
    return importance_weighted_bound(log_weights(log_px, z, posterior))


@pytest.mark.parametrize("draws", [1, 4, 64])
def test_both_gradients_of_the_bound_have_one_mean_and_one_decoder_s_gradient(draws):
    value, mu, shift = gradients(plain, draws)
    value_dreg, mu_dreg, shift_dreg = gradients(doubly_reparameterised_bound, draws)
    error = (mu.var() / len(mu) + mu_dreg.var() / len(mu)).sqrt()
    assert float((mu.mean() - mu_dreg.mean()).abs()) < 4 * float(error)
    torch.testing.assert_close(value_dreg, value)
    torch.testing.assert_close(shift_dreg, shift, rtol=1e-4, atol=1e-5)


def test_the_doubly_reparameterised_gradient_has_less_noise_where_draws_are_many():
    (_, plain_mu, _), (_, quiet_mu, _) = (gradients(bound, 64) for bound in (plain, doubly_reparameterised_bound))
    assert float(quiet_mu.var()) < 0.2 * float(plain_mu.var())


def test_the_recipe_s_gradient_is_the_one_that_trains():
    models = [model_of(IwaeConfig(draws=8, gradient=g)) for g in ("standard", "doubly_reparameterised")]
    losses = [loss_of(model, Batch(X)) for model in models]
    torch.testing.assert_close(losses[0].value, losses[1].value)
    found = []
    for model, loss in zip(models, losses, strict=True):
        loss.value.backward()
        found.append([value.grad for value in (*model.module.encoder.parameters(), *model.module.decoder.parameters())])
    encoders = len(list(models[0].module.encoder.parameters()))
    torch.testing.assert_close(found[0][encoders:], found[1][encoders:], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0][0], found[1][0], rtol=1e-2)


@pytest.mark.parametrize("gradient", ["standard", "doubly_reparameterised"])
def test_the_gradient_through_a_few_draws_is_that_through_all_on_average(gradient):
    found = []
    for few in (None, 2):
        model = model_of(
            IwaeConfig(draws=6, gradient=gradient, backward_draws=few, decoder=GaussianConfig(variance="learned")),
            VECTOR,
            network=MlpConfig(width=4, depth=1),
            latent=1,
        )
        loss = loss_of(model, Batch(torch.full((100_000, 1), 1.5)))
        loss.value.backward()
        found.append([loss.value.detach(), *(value.grad for value in model.module.parameters())])
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0.03, atol=0.003)


@pytest.mark.parametrize("few", [None, 2])
def test_at_the_exact_posterior_the_doubly_reparameterised_gradient_alone_is_free_of_noise(few):
    """log w is constant in z there, so the encoder is told nothing; the standard gradient still has its score term."""
    noise = {}
    for gradient in ("standard", "doubly_reparameterised"):
        decoder = GaussianConfig(variance="learned")
        objective = IwaeConfig(draws=6, gradient=gradient, backward_draws=few, decoder=decoder)
        module = model_of(objective, VECTOR, network=MlpConfig(depth=0), latent=1).module
        with torch.no_grad():
            module.decoder[0][0].weight.fill_(1)  # x = z + N(0, 1), so q = N(x / 2, 1 / 2)
            module.decoder[0][0].bias.zero_()
            module.distribution.log_sigma.zero_()
            module.encoder.layers[0].weight.copy_(torch.tensor([[0.5], [0.0]]))
            module.encoder.layers[0].bias.copy_(torch.tensor([0.0, -math.log(2)]))
        FAMILY.phases(module)[0].loss(Batch(torch.ones(8, 1)), progress()).value.backward()
        noise[gradient] = float(module.encoder.layers[0].bias.grad.abs().max())
    assert noise["doubly_reparameterised"] < 1e-5 < 1e-2 < noise["standard"]


def test_a_bound_that_is_not_finite_is_no_error_of_the_draw():
    model = model_of(IwaeConfig(draws=6, backward_draws=2))
    with torch.no_grad():
        next(model.module.encoder.parameters()).fill_(math.nan)
    assert loss_of(model, Batch(X)).value.isnan()


def test_the_few_draws_leave_gradients_under_autocast():
    model = model_of(IwaeConfig(draws=6, backward_draws=2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, Batch(X))
    loss.value.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in model.module.parameters())


def test_more_draws_backward_than_there_are_are_refused():
    assert parse(IwaeConfig, {"draws": 6, "backward_draws": 6}, "objective").backward_draws == 6
    with pytest.raises(ConfigError, match="backward_draws=7 are taken among draws=6; use at most 6"):
        parse(IwaeConfig, {"draws": 6, "backward_draws": 7}, "objective")


@pytest.mark.parametrize(("seen", "draws"), [(0, 1), (500, 7), (999, 50), (1000, 50), (9999, 50)])
def test_draws_grow_by_the_same_factor_to_all_of_them(seen, draws):
    assert IwaeConfig(draws=50, growth_samples=1000).draws_at(seen) == draws


def test_without_growth_all_draws_are_taken_from_the_start():
    assert IwaeConfig(draws=50).draws_at(0) == 50
