"""What an autoencoder minimises: squared error, the negative evidence lower bound, the importance-weighted bound.

Shapes: S draws, B batch, Z latent. Sums over a sample's elements, means over samples, nats.
"""

import math
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.autoencoder.config import ElboConfig, IwaeConfig
from kinfolk_families.autoencoder.distributions import gaussian_log_prob
from kinfolk_families.autoencoder.model import (
    Autoencoder,
    EncoderDecoder,
    Pass,
    Posterior,
    VariationalAutoencoder,
)


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared distance of each sample to its reconstruction. (B, *), (B, *) -> (B,)"""
    return (reconstruction - x).square().flatten(1).sum(1)


def kl_to_prior(posterior: Posterior) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)). -> (B,)

    Source: Kingma and Welling, 2014, appendix B, https://arxiv.org/abs/1312.6114.
    """
    mu, log_var = posterior
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1)


def log_weights(log_px: Tensor, z: Tensor, posterior: Posterior) -> Tensor:
    """log p(x | z) + log p(z) - log q(z | x) of each draw. (S, B), (S, B, Z) -> (S, B)"""
    mu, log_var = posterior
    log_prior = gaussian_log_prob(torch.zeros_like(z), z.new_zeros(()), z)
    return log_px + (log_prior - gaussian_log_prob(mu, log_var / 2, z)).sum(2)


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """log of the mean weight, a lower bound of log p(x) that rises with S. (S, B) -> (B,)

    Source: Burda et al., 2016 (IWAE), eq. 8, https://arxiv.org/abs/1509.00519.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


def _means(**values: Tensor) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in values.items()}


def reconstruction_loss(module: Autoencoder, batch: Batch) -> Loss:
    """Mean squared error of the samples; draws nothing."""
    error = squared_error(batch.x, module(batch.x, batch.label))
    return Loss(error.mean(), _means(squared_error=error))


def _terms(module: VariationalAutoencoder, batch: Batch, progress: Progress, draws: int) -> tuple[Pass, Tensor]:
    """A pass through the model with all randomness from the step's generator, and log p(x | z) (S, B)."""
    generator = progress.generator
    device = generator.device
    x = module.observe(batch.x, lambda: torch.rand(batch.x.shape, generator=generator, device=device))
    noise = torch.randn(draws, len(x), module.latent, generator=generator, device=device)
    passed: Pass = module(x, batch.label, noise)
    module.distribution.record(passed.outputs, x)
    return passed, module.distribution.log_prob(passed.outputs, x)


def elbo_loss(module: VariationalAutoencoder, beta: float, batch: Batch, progress: Progress) -> Loss:
    """Negative log p(x | z) plus beta times the KL divergence, at one draw of z.

    Source: Higgins et al., 2017 (beta-VAE), eq. 4, https://openreview.net/forum?id=Sy2fzU9gl.
    """
    passed, log_px = _terms(module, batch, progress, draws=1)
    kl = kl_to_prior(passed.posterior)
    return Loss((beta * kl - log_px[0]).mean(), _means(elbo=log_px[0] - kl, kl=kl))


def iwae_loss(module: VariationalAutoencoder, draws: int, batch: Batch, progress: Progress) -> Loss:
    """Negative importance-weighted bound; its gradient goes through z to the encoder."""
    passed, log_px = _terms(module, batch, progress, draws)
    bound = importance_weighted_bound(log_weights(log_px, passed.z, passed.posterior))
    return Loss(-bound.mean(), _means(iwae_bound=bound, kl=kl_to_prior(passed.posterior)))


def _loss(module: EncoderDecoder, batch: Batch, progress: Progress) -> Loss:
    match module:
        case VariationalAutoencoder(objective=ElboConfig(beta=beta)):
            return elbo_loss(module, beta, batch, progress)
        case VariationalAutoencoder(objective=IwaeConfig(draws=draws)):
            return iwae_loss(module, draws, batch, progress)
        case Autoencoder():
            return reconstruction_loss(module, batch)
    raise AssertionError(type(module))


def phases(module: EncoderDecoder) -> list[Phase]:
    """One phase that moves the whole module."""
    after = module.distribution.after if isinstance(module, VariationalAutoencoder) else None
    return [Phase("autoencoder", module, partial(_loss, module), module.config.optimizer, after=after)]
