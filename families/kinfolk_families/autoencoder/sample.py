"""What a built autoencoder can do. All randomness of a row comes from its seed.

Shapes: N samples asked, R rows, S draws, B batch, ``z`` one latent.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, Likelihood, RequestError, RowTask, SampleRequest, Tasks
from kinfolk.rng import row_normal, row_uniform
from kinfolk_families._shared.given import check_draws
from kinfolk_families._shared.one_call import OneCall
from kinfolk_families.autoencoder.config import DenoisingConfig, Options
from kinfolk_families.autoencoder.losses import log_weights, squared_error
from kinfolk_families.autoencoder.model import Autoencoder, EncoderDecoder, VariationalAutoencoder

DRAWS_AT_ONCE = 50  # of one row: a chunk of draws has one noise, whatever rows it is for
DECODED_AT_ONCE = 5000  # rows times draws; bounds memory


def temperature(request: SampleRequest) -> float:
    """Standard deviation of the latents drawn."""
    assert isinstance(request.options, Options)
    return request.options.temperature


def _seen(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    call, (_, *shape) = torch.zeros_like(seeds), batch.x.shape
    return module.observe(batch.x, lambda: row_uniform(seeds, call, shape, "binarise").to(batch.x.device))


def encode(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    """The latent of x: the posterior's mean where there is a posterior, or tokens. -> (B, z) or (B, T)"""
    return module.encode(_seen(module, batch, seeds), batch.label)


def decode(module: EncoderDecoder, batch: Batch, _: Tensor) -> Tensor:
    """The (expected) sample of a latent in ``batch.x``. -> (B, *shape)"""
    return module.decode(batch.x, batch.label)


def reconstruct(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    """The (expected) sample of x's latent. -> (B, *shape)"""
    return module.decode(encode(module, batch, seeds), batch.label)


def reconstruction_error(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    """Squared distance of x to its reconstruction. -> (B,)"""
    return squared_error(batch.x, reconstruct(module, batch, seeds))


def denoise(module: Autoencoder, known: float, x_t: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """The estimate of x from x_t = x + sigma * noise. (B, *), (B,), (B,) -> (B, *)

    Raises:
        RequestError: ``sigma`` is not the level the model was trained at, and it is told of no other.
    """
    if not torch.allclose(sigma, torch.full_like(sigma, known)):
        raise RequestError("sigma", f"sigma={sigma.tolist()}: this autoencoder removes noise of sigma={known} only.")
    return module(x_t, label)


def denoising_error(module: Autoencoder, sigma: float, batch: Batch, seeds: Tensor) -> Tensor:
    """Squared distance of x to what x with the noise of its row's seed is denoised to. -> (B,)"""
    noise = row_normal(seeds, torch.zeros_like(seeds), batch.x.shape[1:], "denoise").to(batch.x)
    return squared_error(batch.x, module(batch.x + sigma * noise, batch.label))


def unexplained(error: RowTask, batch: Batch, seeds: Tensor) -> Tensor:
    """Share of a sample's own variance over its elements that ``error`` leaves: strokes count alike, thick or thin.

    -> (B,), 0 for what is reconstructed, about 1 where its mean would do as well.
    """
    x = batch.x.flatten(1)
    spread = (x - x.mean(1, keepdim=True)).square().sum(1)
    return error(batch, seeds) / spread.clamp(min=1e-6)  # of a sample without contrast


def _log_sum(module: VariationalAutoencoder, seen: Batch, seeds: Tensor, draws: int) -> Tensor:
    """log of the summed importance weights of ``draws``, a chunk at a time. -> (B,)"""
    posterior = module.posterior(seen.x, seen.label)
    chunks = []
    for first in range(0, draws, DRAWS_AT_ONCE):
        shape = (min(DRAWS_AT_ONCE, draws - first), *module.latent_shape)
        noise = row_normal(seeds, torch.full_like(seeds, first), shape, "posterior").transpose(0, 1)  # (S, B, z)
        z = posterior.draw(noise.to(seen.x))
        log_px = module.distribution.log_prob(module.outputs_of_draws(z, seen.label), seen.x)
        chunks.append(log_weights(log_px, z, posterior).logsumexp(0))
    return torch.stack(chunks).logsumexp(0)


def _rows(batch: Batch, first: int, count: int) -> Batch:
    return batch.map(lambda value: value[first : first + count])


def importance_bound(module: VariationalAutoencoder, batch: Batch, seeds: Tensor, draws: int) -> Tensor:
    """Importance-weighted lower bound of log p(x) with ``draws`` of z from each row's seed, nats. -> (B,)

    One draw estimates the ELBO; the bound tightens as draws grow.
    Source: Burda et al., 2016 (IWAE), eq. 8, https://arxiv.org/abs/1509.00519.

    Raises:
        RequestError: there are no draws.
    """
    check_draws(draws)
    seen = replace(batch, x=_seen(module, batch, seeds))
    rows = max(1, DECODED_AT_ONCE // min(draws, DRAWS_AT_ONCE))
    starts = range(0, len(seen), rows)
    sums = [_log_sum(module, _rows(seen, first, rows), seeds[first : first + rows], draws) for first in starts]
    return torch.cat(sums) - math.log(draws)


def surprise(module: VariationalAutoencoder, batch: Batch, seeds: Tensor) -> Tensor:
    """Negative lower bound of log p(x), nats. -> (B,)"""
    return -importance_bound(module, batch, seeds, draws=1)


def _anomaly_score(module: EncoderDecoder) -> RowTask:
    config, error = module.config, partial(reconstruction_error, module)
    if isinstance(module, Autoencoder) and isinstance(config.objective, DenoisingConfig):
        error = partial(denoising_error, module, config.objective.sigma)
    if config.anomaly == "unexplained":
        return partial(unexplained, error)
    if isinstance(module, VariationalAutoencoder) and config.anomaly != "error":
        return partial(surprise, module)
    return error


def tasks(module: EncoderDecoder) -> Tasks:
    """Only a variational autoencoder has a prior that can be sampled, and a likelihood."""
    common = Tasks(
        options=module.config.sampler,
        encode=partial(encode, module),
        decode=partial(decode, module),
        reconstruct=partial(reconstruct, module),
        conditions=frozenset({"label"}) if module.classes else frozenset(),
        anomaly_score=_anomaly_score(module),
        latent_spec=module.latent_spec,
    )
    if isinstance(module, VariationalAutoencoder):
        return _with_prior(module, common)
    objective = module.config.objective
    if isinstance(module, Autoencoder) and isinstance(objective, DenoisingConfig):
        return replace(common, denoise=partial(denoise, module, objective.sigma))
    return common


def _with_prior(module: VariationalAutoencoder, common: Tasks) -> Tasks:
    of = module.distribution.of
    rows = OneCall(module, module.spec, module.latent_shape, module.classes, module.decode, temperature)
    return replace(
        common,
        starts={"sample": rows.start, "interpolate": rows.start_way},
        advance=rows.advance,
        render=rows.render,
        log_prob=None if of is None else Likelihood(partial(importance_bound, module, draws=1), "lower_bound", of),
        importance_bound=None if of is None else partial(importance_bound, module),
    )
