"""Laws of the bounds: closed forms against Monte Carlo, and a linear model whose log p(x) is known."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch.distributions import MultivariateNormal

from kinfolk.config import Training
from kinfolk.contract import Batch, DataSpec, OptimizerConfig, Progress
from kinfolk.data.source import TensorSource
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_families.autoencoder import FAMILY
from kinfolk_families.autoencoder.config import (
    AutoencoderConfig,
    BernoulliConfig,
    ElboConfig,
    GaussianConfig,
    IwaeConfig,
    MlpConfig,
    ReconstructionConfig,
)
from kinfolk_families.autoencoder.losses import kl_logs, kl_to_prior, log_weights
from kinfolk_families.autoencoder.model import Posterior
from kinfolk_families.autoencoder.sample import importance_bound

D, Z = 4, 2
VECTOR = DataSpec(kind="vector", shape=(D,))
LINEAR = MlpConfig(depth=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def progress(seed=0):
    return Progress(0, 0, generator(seed))


def module_of(spec=VECTOR, **config):
    return build(FAMILY, AutoencoderConfig(**{"network": LINEAR, "latent": Z, **config}), spec, seed=0).module


def loss_of(module, batch, seed=0):
    return FAMILY.phases(module)[0].loss(batch, progress(seed))


def exact_log_prob(module, x):
    linear = module.decoder[0][0]
    covariance = linear.weight @ linear.weight.T + module.distribution.log_sigma.exp() ** 2 * torch.eye(D)
    return MultivariateNormal(linear.bias, covariance).log_prob(x)


@pytest.fixture
def linear_gaussian():
    """A linear decoder with noise, and an encoder that is near its posterior: too wide, its mean too small."""
    module = module_of(objective=IwaeConfig(decoder=GaussianConfig(variance="learned"))).requires_grad_(False)
    decoder, encoder = module.decoder[0][0], module.encoder.layers[0]
    module.distribution.log_sigma.fill_(-0.4)
    precision = decoder.weight.T @ decoder.weight * math.exp(0.8) + torch.eye(Z)
    gain = precision.inverse() @ decoder.weight.T * math.exp(0.8)  # posterior mean of z, for each x less the bias
    encoder.weight.copy_(torch.cat([0.8 * gain, torch.zeros(Z, D)]))
    encoder.bias.copy_(torch.cat([-0.8 * gain @ decoder.bias, 0.5 - precision.diagonal().log()]))
    return module


def test_closed_form_kl_equals_monte_carlo():
    posterior = Posterior(torch.tensor([[0.5, -1.2], [0.0, 2.0]]), torch.tensor([[-1.0, 0.4], [0.0, -3.0]]))
    z = posterior.mu + (posterior.log_var / 2).exp() * torch.randn(200_000, 2, 2, generator=generator())
    estimate = -log_weights(torch.zeros(()), z, posterior).mean(0)
    torch.testing.assert_close(kl_to_prior(posterior), estimate, rtol=0, atol=0.02)


def test_a_latent_dimension_is_active_if_its_own_kl_over_the_batch_is():
    mu = torch.tensor([[0.5, 0.0, 0.13, 0.15], [-0.5, 0.0, 0.13, -0.15]])  # 0.125, 0, 0.00845 and 0.01125 nats
    logs = kl_logs(Posterior(mu, torch.zeros(2, 4)))
    assert logs["kl_active"] == 0.5
    assert logs["kl"] == pytest.approx((0.5**2 + 0.13**2 + 0.15**2) / 2)


def test_beta_weighs_the_kl_and_at_one_leaves_the_negative_elbo():
    batch = Batch(torch.randn(16, D, generator=generator()))
    losses = {}
    for beta in (0.0, 1.0, 4.0):
        losses[beta] = loss_of(module_of(objective=ElboConfig(beta=beta)), batch)
    torch.testing.assert_close(losses[1.0].value, -losses[1.0].logs["elbo"])
    torch.testing.assert_close(losses[4.0].value - losses[0.0].value, 4 * losses[1.0].logs["kl"])


def test_one_importance_sample_is_the_elbo_on_average(linear_gaussian):
    batch = Batch(torch.randn(4, D, generator=generator()).repeat(5000, 1))
    elbo = module_of(objective=ElboConfig(decoder=GaussianConfig(variance="learned")))
    elbo.load_state_dict(linear_gaussian.state_dict())
    one = module_of(objective=IwaeConfig(draws=1))
    one.load_state_dict(linear_gaussian.state_dict())
    torch.testing.assert_close(loss_of(one, batch).value, loss_of(elbo, batch, seed=1).value, rtol=0, atol=0.05)


def test_the_importance_weighted_bound_rises_with_its_draws_to_the_exact_log_prob(linear_gaussian):
    x = 1.5 * torch.randn(2000, D, generator=generator())
    exact = exact_log_prob(linear_gaussian, x).mean()
    bounds = [
        importance_bound(linear_gaussian, Batch(x), torch.arange(2000), draws).mean() for draws in (1, 5, 50, 100)
    ]
    assert all(more - fewer > 1e-4 for fewer, more in pairwise(bounds))
    assert exact - 0.05 < bounds[-1] <= exact


def test_the_iwae_objective_is_the_bound_of_its_draws(linear_gaussian):
    batch = Batch(1.5 * torch.randn(4000, D, generator=generator()))
    objective = module_of(objective=IwaeConfig(draws=5))
    objective.load_state_dict(linear_gaussian.state_dict())
    bound = importance_bound(linear_gaussian, batch, torch.arange(4000), draws=5).mean()
    torch.testing.assert_close(-loss_of(objective, batch).value, bound, rtol=0, atol=0.05)


def test_a_binary_model_gives_all_images_together_no_more_than_one():
    spec = DataSpec(kind="image", shape=(1, 2, 2), levels=2)
    module = module_of(spec, latent=1, objective=ElboConfig(decoder=BernoulliConfig())).requires_grad_(False)
    module.decoder[0][0].weight.mul_(3)
    images = Batch(torch.tensor(list(product([-1.0, 1.0], repeat=4))).view(16, 1, 2, 2))
    seeds = torch.arange(16)
    many = importance_bound(module, images, seeds, draws=5000)
    assert many.exp().sum() == pytest.approx(1, abs=0.03)
    elbo = torch.stack([importance_bound(module, images, seeds + 16 * i, draws=1) for i in range(200)]).mean(0)
    assert elbo.exp().sum() < 1


@pytest.fixture
def _one_thread():
    """Threads of a busy machine wait for each other at every step of a tiny network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ppca_log_likelihood(x):
    """Mean log-likelihood of the best probabilistic PCA. Source: Tipping and Bishop, 1999."""
    variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = variances[Z:].mean()
    log_det = variances[:Z].log().sum() + (D - Z) * noise.log()
    return float(-0.5 * (D * math.log(2 * math.pi) + log_det + D))


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("variance", ["optimal", "learned"])
def test_a_linear_vae_reaches_the_likelihood_of_ppca(variance):
    """Source: Lucas et al., 2019, https://arxiv.org/abs/1911.02469: its ELBO has no worse local maxima."""
    mixing = torch.tensor([[2.0, 0.0, 1.0, -1.0], [0.0, 1.0, 1.0, 0.5]])
    x = torch.randn(256, Z, generator=generator(1)) @ mixing + 0.5 * torch.randn(256, D, generator=generator(2))
    samples = 256 * 300
    optimizer = OptimizerConfig(kind="adam", lr=0.1, decay_samples=samples)
    config = AutoencoderConfig(
        network=LINEAR, latent=Z, objective=ElboConfig(decoder=GaussianConfig(variance=variance)), optimizer=optimizer
    )
    state = prepare(build(FAMILY, config, VECTOR, seed=0), Training(samples=samples, batch_size=256))
    for _ in train(state, TensorSource(VECTOR, x), Training(samples=samples, batch_size=256), seed=0):
        pass
    with torch.no_grad():
        bound = float(importance_bound(state.model.module, Batch(x), torch.arange(256), draws=1).mean())
    assert bound == pytest.approx(ppca_log_likelihood(x), abs=0.03)


def test_the_plain_autoencoder_averages_over_microbatches_and_draws_nothing():
    module = module_of(objective=ReconstructionConfig()).double()
    batch = Batch(torch.randn(16, D, generator=generator()).double())
    where = progress()
    untouched = where.generator.get_state()
    loss = FAMILY.phases(module)[0].loss
    whole = loss(batch, where).value
    parts = torch.stack([loss(part, where).value for part in batch.split(4)]).mean()
    gradients = [torch.autograd.grad(value, list(module.parameters())) for value in (whole, parts)]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(*gradients)
    assert torch.equal(where.generator.get_state(), untouched)


def test_squared_error_is_summed_over_dimensions_and_averaged_over_samples():
    module = module_of(objective=ReconstructionConfig())
    with torch.no_grad():
        module.decoder[0][0].weight.zero_()
        module.decoder[0][0].bias.fill_(1.0)
    assert loss_of(module, Batch(torch.full((6, D), 3.0))).logs["squared_error"] == pytest.approx(4 * D)


def test_binarisation_is_drawn_anew_from_the_generator_of_the_step():
    spec = DataSpec(kind="image", shape=(1, 2, 2), levels=17)
    module = module_of(spec, objective=ElboConfig(decoder=BernoulliConfig()))
    seen = []
    module.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for seed in (0, 0, 1):
        loss_of(module, Batch(torch.zeros(64, 1, 2, 2)), seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert set(seen[0].flatten().tolist()) == {-1.0, 1.0}
