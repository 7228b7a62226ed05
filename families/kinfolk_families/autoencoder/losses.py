"""What an autoencoder minimises: squared errors with what holds their latents together, and bounds of log p(x).

Shapes: S draws, B batch, ``z`` one latent, ``*`` one sample. Sums over a sample's elements, means over samples, nats.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.autoencoder.config import (
    AutoencoderConfig,
    DenoisingConfig,
    ElboConfig,
    IwaeConfig,
)
from kinfolk_families.autoencoder.distributions import gaussian_log_prob
from kinfolk_families.autoencoder.model import (
    Autoencoder,
    EncoderDecoder,
    Pass,
    Posterior,
    QuantisedAutoencoder,
    RegularisedAutoencoder,
    VariationalAutoencoder,
)
from kinfolk_families.autoencoder.quantisers import Codebook, Quantised, code_use


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared distance of each sample to its reconstruction. (B, *), (B, *) -> (B,)"""
    return (reconstruction - x).square().flatten(1).sum(1)


ACTIVE_KL = 0.01  # nats, of a latent dimension that the decoder hears of; what the signal ``kl_active`` is defined by


def kl_to_prior(posterior: Posterior) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)). -> (B,)

    Source: Kingma and Welling, 2014, appendix B, https://arxiv.org/abs/1312.6114.
    """
    return _kl_by_dimension(posterior).sum(1)


def _kl_by_dimension(posterior: Posterior) -> Tensor:
    """-> (B, Z)"""
    mu, log_var = posterior
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).flatten(1)


@torch.no_grad()
def kl_logs(posterior: Posterior) -> dict[str, Tensor]:
    """The signals ``kl`` and ``kl_active``: nats a sample, and the share of latent dimensions that carry any."""
    by_dimension = _kl_by_dimension(posterior).mean(0)  # (Z,)
    return {"kl": by_dimension.sum(), "kl_active": (by_dimension > ACTIVE_KL).float().mean()}


def log_weights(log_px: Tensor, z: Tensor, posterior: Posterior) -> Tensor:
    """log p(x | z) + log p(z) - log q(z | x) of each draw. (S, B), (S, B, z) -> (S, B)"""
    mu, log_var = posterior
    log_prior = gaussian_log_prob(torch.zeros_like(z), z.new_zeros(()), z)
    return log_px + (log_prior - gaussian_log_prob(mu, log_var / 2, z)).flatten(2).sum(2)


def importance_weighted_bound(log_w: Tensor) -> Tensor:
    """log of the mean weight, a lower bound of log p(x) that rises with S. (S, B) -> (B,)

    Source: Burda et al., 2016 (IWAE), eq. 8, https://arxiv.org/abs/1509.00519.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


def still(z: Tensor, posterior: Posterior, weights: Tensor) -> Posterior:
    """q with its density held still, and z's gradient multiplied by its draw's weight: the encoder's share of DReG.

    (S, B, z), weights (S, B), normalised over all draws. Where a loss carries each draw's weight once, the encoder then
    gets sum_s w_s^2 (d log w_s / d z_s) grad z_s, and the decoder sum_s w_s grad log p(x, z_s) as ever.
    Source: Tucker et al., 2019, https://arxiv.org/abs/1810.04152.
    """
    share = weights.view(*weights.shape, *[1] * (z.ndim - 2))
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * share)  # a hook that held z would keep its graph alive for ever
    return Posterior(posterior.mu.detach(), posterior.log_var.detach())


def doubly_reparameterised_bound(log_px: Tensor, z: Tensor, posterior: Posterior) -> Tensor:
    """The importance-weighted bound, with a gradient for the encoder that does not drown in noise. -> (B,)"""
    weights = log_weights(log_px, z, posterior).detach().softmax(0)  # (S, B)
    log_w = log_weights(log_px, z, still(z, posterior, weights))
    return with_gradient_of((weights * log_w).sum(0), importance_weighted_bound(log_w))


def with_gradient_of(surrogate: Tensor, value: Tensor) -> Tensor:
    """``value`` for the eye, ``surrogate`` for the gradient. (B,), (B,) -> (B,)"""
    return surrogate + (value - surrogate).detach()


def _means(**values: Tensor) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in values.items()}


def _noise(shape: tuple[int, ...], progress: Progress) -> Tensor:
    return torch.randn(shape, generator=progress.generator, device=progress.generator.device)


def reconstruction_loss(module: Autoencoder, batch: Batch) -> Loss:
    """Mean squared error of the samples; draws nothing."""
    error = squared_error(batch.x, module(batch.x, batch.label))
    return Loss(error.mean(), _means(squared_error=error))


def denoising_loss(module: Autoencoder, sigma: float, batch: Batch, progress: Progress) -> Loss:
    """Mean squared error of the samples, as reconstructed from noised ones; least at the posterior's mean.

    Source: Vincent et al., 2010, https://www.jmlr.org/papers/v11/vincent10a.html.
    """
    x_t = batch.x + sigma * _noise(batch.x.shape, progress)
    error = squared_error(batch.x, module(x_t, batch.label))
    return Loss(error.mean(), _means(squared_error=error))


def kl_regularised_loss(module: RegularisedAutoencoder, batch: Batch, progress: Progress) -> Loss:
    """Squared error at one draw of z, plus a light KL divergence.

    Source: Rombach et al., 2022, section 3.1, https://arxiv.org/abs/2112.10752; without its perceptual and adversarial
    terms.
    """
    posterior, reconstruction = module(batch.x, batch.label, _noise((len(batch), *module.latent_shape), progress))
    error, kl = squared_error(batch.x, reconstruction), kl_to_prior(posterior)
    return Loss((error + module.objective.weight * kl).mean(), _means(squared_error=error) | kl_logs(posterior))


def commitment(quantised: Quantised) -> Tensor:
    """Mean squared distance of encoder outputs to their codes, felt by the outputs alone. -> (B,)"""
    return (quantised.z - quantised.codes.detach()).square().flatten(1).mean(1)


def quantised_loss(module: QuantisedAutoencoder, batch: Batch, progress: Progress) -> Loss:
    """Share of the data's variance that is lost and, with a codebook, the weighted commitment to it.

    Source: van den Oord et al., 2017 (VQ-VAE), eq. 3, https://arxiv.org/abs/1711.00937; its second term is replaced by
    the moving averages of appendix A.1. Means over elements, and the error by the data's variance, as in Sonnet.
    """
    quantised, reconstruction = module(batch.x, batch.label)
    error, distance = squared_error(batch.x, reconstruction), commitment(quantised)
    value = error.mean() / (module.spec.dims * module.spec.data_std**2)
    if isinstance(module.quantiser, Codebook):
        value = value + module.quantiser.config.commitment * distance.mean()
        module.quantiser.record(quantised, progress.generator)
    use = code_use(quantised.tokens, module.quantiser.levels)
    return Loss(value, {**_means(squared_error=error, quantisation_error=distance), **use})


def _seen(module: VariationalAutoencoder, batch: Batch, progress: Progress) -> Batch:
    generator = progress.generator
    x = module.observe(batch.x, lambda: torch.rand(batch.x.shape, generator=generator, device=generator.device))
    return replace(batch, x=x)


def _terms(module: VariationalAutoencoder, seen: Batch, noise: Tensor) -> tuple[Pass, Tensor]:
    """A pass through the model, noted by its distribution, and log p(x | z). Noise (S, B, z) -> (S, B)"""
    passed: Pass = module(seen.x, seen.label, noise)
    module.distribution.record(passed.outputs, seen.x)
    return passed, module.distribution.log_prob(passed.outputs, seen.x)


def kl_penalty(kl: Tensor, objective: ElboConfig, samples_seen: int) -> Tensor:
    """beta times the KL divergence or, with a capacity, gamma times its distance to the line. (B,) -> (B,)

    Sources: Higgins et al., 2017 (beta-VAE), eq. 4, https://openreview.net/forum?id=Sy2fzU9gl; Burgess et al., 2018,
    eq. 8, https://arxiv.org/abs/1804.03599.
    """
    capacity = objective.capacity
    if capacity is None:
        return objective.beta * kl
    return capacity.weight * (kl - capacity.at(samples_seen)).abs()


def elbo_loss(module: VariationalAutoencoder, objective: ElboConfig, batch: Batch, progress: Progress) -> Loss:
    """Negative log p(x | z) plus the penalty of the KL divergence, at one draw of z."""
    noise = _noise((1, len(batch), *module.latent_shape), progress)
    passed, log_px = _terms(module, _seen(module, batch, progress), noise)
    kl = kl_to_prior(passed.posterior)
    penalty = kl_penalty(kl, objective, progress.samples_seen)
    return Loss((penalty - log_px[0]).mean(), _means(elbo=log_px[0] - kl) | kl_logs(passed.posterior))


def iwae_loss(module: VariationalAutoencoder, objective: IwaeConfig, batch: Batch, progress: Progress) -> Loss:
    """Negative importance-weighted bound, by either of its gradients, through all draws or a few."""
    draws, few = objective.draws_at(progress.samples_seen), objective.backward_draws
    seen, noise = _seen(module, batch, progress), _noise((draws, len(batch), *module.latent_shape), progress)
    doubly = objective.gradient == "doubly_reparameterised"
    if few is not None and few < draws:
        posterior, bound = _bound_through_few(module, seen, noise, few, doubly, progress.generator)
    else:
        (posterior, z, _), log_px = _terms(module, seen, noise)
        log_w = log_weights(log_px, z, posterior)
        bound = doubly_reparameterised_bound(log_px, z, posterior) if doubly else importance_weighted_bound(log_w)
    return Loss(-bound.mean(), _means(iwae_bound=bound) | kl_logs(posterior))


def _bound_through_few(
    module: VariationalAutoencoder, seen: Batch, noise: Tensor, few: int, doubly: bool, generator: torch.Generator
) -> tuple[Posterior, Tensor]:
    """The bound of all draws of ``noise`` (S, B, z), its gradient through ``few`` of them, taken by weight. -> (B,)

    A mean over draws taken with the probability of their weight is the weighted mean over all, on average, at a third
    of the cost. Source: Burda et al., 2016 (IWAE), section 3, https://arxiv.org/abs/1509.00519.
    """
    with torch.no_grad():
        passed: Pass = module(seen.x, seen.label, noise)
        log_px = module.distribution.log_prob(passed.outputs, seen.x)
        log_w = log_weights(log_px, passed.z, passed.posterior)
        weights = log_w.softmax(0)
        chances = weights.nan_to_num(1.0).T  # a bound that is not finite is for the step to find, not for the draw
        taken = torch.multinomial(chances, few, replacement=True, generator=generator).T  # (few, B)
    places = taken.view(*taken.shape, *[1] * (noise.ndim - 2)).expand(-1, -1, *noise.shape[2:])
    (posterior, z, _), log_px = _terms(module, seen, noise.gather(0, places))
    density = still(z, posterior, weights.gather(0, taken)) if doubly else posterior
    return posterior, with_gradient_of(log_weights(log_px, z, density).mean(0), importance_weighted_bound(log_w))


def _loss(module: EncoderDecoder, batch: Batch, progress: Progress) -> Loss:
    match module:
        case VariationalAutoencoder(objective=ElboConfig() as objective):
            return elbo_loss(module, objective, batch, progress)
        case VariationalAutoencoder(objective=IwaeConfig() as objective):
            return iwae_loss(module, objective, batch, progress)
        case RegularisedAutoencoder():
            return kl_regularised_loss(module, batch, progress)
        case QuantisedAutoencoder():
            return quantised_loss(module, batch, progress)
        case Autoencoder(config=AutoencoderConfig(objective=DenoisingConfig(sigma=sigma))):
            return denoising_loss(module, sigma, batch, progress)
        case Autoencoder():
            return reconstruction_loss(module, batch)
    raise AssertionError(type(module))


def phases(module: EncoderDecoder) -> list[Phase]:
    """One phase that moves the whole module."""
    return [Phase("autoencoder", module, partial(_loss, module), module.config.optimizer, after=module.after)]
