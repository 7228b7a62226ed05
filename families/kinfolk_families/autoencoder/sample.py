"""What a built autoencoder can do. All randomness of a row comes from its seed.

Shapes: N samples asked, R rows, S draws, B batch, Z latent.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Likelihood, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_normal, row_uniform
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families.autoencoder.config import Options
from kinfolk_families.autoencoder.losses import importance_weighted_bound, log_weights, squared_error
from kinfolk_families.autoencoder.model import EncoderDecoder, VariationalAutoencoder

DRAWS_AT_ONCE = 50  # bounds memory: a chunk decodes this many times the batch


def start(module: VariationalAutoencoder, request: SampleRequest) -> SamplerState:
    """Rows with z from the tempered prior and a blank sample, one call before they are done."""
    options = request.options
    assert isinstance(options, Options)
    z = options.temperature * row_normal(request.seeds, torch.zeros_like(request.seeds), (module.latent,))
    device = device_of(module)
    carry = {"z": z.to(device)}
    if module.classes:
        carry["label"] = row_labels(request, module.classes).to(device)
    x = torch.zeros(len(z), *module.spec.shape, device=device)
    return SamplerState.start(x, request, 1, 1, **carry)


def advance(module: VariationalAutoencoder, state: SamplerState) -> SamplerState:
    """Decode every row's latent."""
    return state.step(module.decode(state.carry["z"], state.carry.get("label")))


def render(state: SamplerState) -> Tensor:
    """The expected samples. -> (R, *shape)"""
    return state.x


def _seen(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    call, (_, *shape) = torch.zeros_like(seeds), batch.x.shape
    return module.observe(batch.x, lambda: row_uniform(seeds, call, shape, "binarise").to(batch.x.device))


def encode(module: EncoderDecoder, batch: Batch, seeds: Tensor) -> Tensor:
    """The latent of x, the posterior's mean where there is a posterior. -> (B, Z)"""
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


def lower_bound(module: VariationalAutoencoder, batch: Batch, seeds: Tensor, draws: int) -> Tensor:
    """Importance-weighted lower bound of log p(x) with ``draws`` of z from each row's seed, nats. -> (B,)

    One draw estimates the ELBO; the bound tightens as draws grow.
    """
    x = _seen(module, batch, seeds)
    chunks = []
    for first in range(0, draws, DRAWS_AT_ONCE):
        shape = (min(DRAWS_AT_ONCE, draws - first), module.latent)
        noise = row_normal(seeds, torch.full_like(seeds, first), shape, "posterior").transpose(0, 1)  # (S, B, Z)
        posterior, z, outputs = module(x, batch.label, noise.to(x))
        chunks.append(log_weights(module.distribution.log_prob(outputs, x), z, posterior))
    return importance_weighted_bound(torch.cat(chunks))


def surprise(module: VariationalAutoencoder, batch: Batch, seeds: Tensor) -> Tensor:
    """Negative lower bound of log p(x), nats. -> (B,)"""
    return -lower_bound(module, batch, seeds, module.config.likelihood_draws)


def tasks(module: EncoderDecoder) -> Tasks:
    """The plain autoencoder has no prior, so nothing to sample from and no likelihood."""
    latent = DataSpec(kind="vector", shape=(module.latent,), classes=module.spec.classes)
    common = Tasks(
        options=module.config.sampler,
        encode=partial(encode, module),
        decode=partial(decode, module),
        reconstruct=partial(reconstruct, module),
        anomaly_score=partial(reconstruction_error, module),
        latent_spec=latent,
    )
    return _with_prior(module, common) if isinstance(module, VariationalAutoencoder) else common


def _with_prior(module: VariationalAutoencoder, common: Tasks) -> Tasks:
    of, draws = module.distribution.of, module.config.likelihood_draws
    return replace(
        common,
        starts={"sample": partial(start, module)},
        advance=partial(advance, module),
        render=render,
        conditions=frozenset({"label"}) if module.classes else frozenset(),
        log_prob=None if of is None else Likelihood(partial(lower_bound, module, draws=draws), "lower_bound", of),
        anomaly_score=partial(surprise, module),
    )
