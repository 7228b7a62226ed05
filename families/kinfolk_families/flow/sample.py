"""What a built flow can do. All randomness of a row comes from its seed.

A bijection reconstructs every sample, so there is no task of that name. Shapes: N samples asked, R rows, B batch,
D elements of a sample.
"""

import math
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Likelihood, SampleRequest, Tasks
from kinfolk.rng import row_uniform
from kinfolk_families._shared.given import check_draws
from kinfolk_families._shared.one_call import OneCall
from kinfolk_families.flow.config import Options
from kinfolk_families.flow.model import Flow

ROWS_AT_ONCE = 1024  # bounds memory: so many pairs of a sample and a draw go through the flow together


def temperature(request: SampleRequest) -> float:
    """Standard deviation of the latents drawn."""
    assert isinstance(request.options, Options)
    return request.options.temperature


def importance_bound(module: Flow, batch: Batch, seeds: Tensor, draws: int) -> Tensor:
    """log of the mean weight of ``draws`` of dequantisation noise from each row's seed, nats. -> (B,)

    A lower bound of log P(levels) that tightens as draws grow: Ho et al., 2019 (Flow++), section 3.1.

    Raises:
        RequestError: there are no draws.
    """
    check_draws(draws)
    together = max(1, ROWS_AT_ONCE // len(seeds))
    parts = [
        _log_weights(module, batch, seeds, range(first, min(first + together, draws)))
        for first in range(0, draws, together)
    ]
    return torch.cat(parts).logsumexp(0) - math.log(draws)


def _log_weights(module: Flow, batch: Batch, seeds: Tensor, draws: range) -> Tensor:
    """log p(y) of each draw's point, less the log-density of the draw. -> (len(draws), B)"""
    count = len(draws)
    call = torch.tensor(draws).repeat_interleave(len(seeds))
    uniform = row_uniform(seeds.repeat(count), call, module.spec.shape, "dequantise").to(batch.x)
    many = batch.map(lambda value: value.repeat(count, *[1] * (value.ndim - 1)))
    return module(many.x, many.label, uniform).view(count, len(seeds))


def density(module: Flow, batch: Batch, _: Tensor) -> Tensor:
    """log p(x) of continuous data, nats. -> (B,)"""
    return module(batch.x, batch.label, torch.zeros_like(batch.x))


def encode(module: Flow, batch: Batch, _: Tensor) -> Tensor:
    """The noise of x; of levels, that of the middle of their bins. -> (B, D)"""
    return module.encode(batch.x, batch.label)


def decode(module: Flow, batch: Batch, _: Tensor) -> Tensor:
    """The sample of the noise in ``batch.x``, the inverse of ``encode``. -> (B, *shape)"""
    return module.decode(batch.x, batch.label)


def _likelihood(module: Flow) -> Likelihood:
    if module.dequantiser is None:
        return Likelihood(partial(density, module), "exact", "density")
    return Likelihood(partial(importance_bound, module, draws=1), "lower_bound", "levels")


def tasks(module: Flow) -> Tasks:
    """The density of continuous data is exact; dequantised levels have a lower bound, which more draws tighten."""
    likelihood = _likelihood(module)

    def surprise(batch: Batch, seeds: Tensor) -> Tensor:
        """Negative log-probability, nats. -> (B,)"""
        return -likelihood.nats(batch, seeds)

    rows = OneCall(module, module.spec, (module.spec.dims,), module.classes, module.decode, temperature)
    return Tasks(
        options=module.config.sampler,
        starts={"sample": rows.start, "interpolate": rows.start_way},
        advance=rows.advance,
        render=rows.render,
        conditions=frozenset({"label"} if module.classes else ()),
        log_prob=likelihood,
        importance_bound=partial(importance_bound, module) if module.dequantiser is not None else None,
        encode=partial(encode, module),
        decode=partial(decode, module),
        anomaly_score=surprise,
        latent_spec=DataSpec(kind="vector", shape=(module.spec.dims,), classes=module.spec.classes),
    )
