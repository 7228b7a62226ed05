"""Noise of rows, its levels, and what a denoiser is scaled by at them.

Source: Karras et al., 2022 (EDM), https://arxiv.org/abs/2206.00364. Shapes: B batch, R rows.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from kinfolk.rng import row_normal, slerp


class Scales(NamedTuple):
    """``D(x_t, sigma) = skip * x_t + out * F(into * x_t, noise)`` (EDM eq. 7); (B,) each."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def edm_scales(sigma: Tensor, sigma_data: float) -> Scales:
    """Unit variance of what a network sees and is asked for at every sigma (EDM Table 1, last column). (B,)"""
    total = sigma.square() + sigma_data**2
    return Scales(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / total.sqrt(),
        into=1 / total.sqrt(),
        noise=sigma.log() / 4,
    )


def log_normal(mean: float, std: float, count: int, generator: Generator) -> Tensor:
    """Sigma with ln(sigma) ~ N(mean, std^2). -> (count,) on the generator's device"""
    return (mean + std * torch.randn(count, generator=generator, device=generator.device)).exp()


def noise_between(seed: Tensor, seed_to: Tensor, weight: Tensor, call: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Noise of each row at its call, on the arc from its own to ``seed_to``'s. (R,) each -> (R, *shape) on the CPU

    As later noise is between the two as well, solvers that add some still draw the samples of both seeds at the ends.
    """
    noise = row_normal(seed, call, shape)
    (rows,) = weight.nonzero(as_tuple=True)
    if len(rows):
        noise[rows] = slerp(noise[rows], row_normal(seed_to[rows], call[rows], shape), weight[rows])
    return noise


def rho_level(way: Tensor, rho: float, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Sigma ``way`` from ``high`` (0) to ``low`` (1), evenly spaced in the rho-th root (EDM eq. 5). (N,) -> (N,)"""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return (first + way * (last - first)) ** rho


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """``value`` with axes of length 1 behind it, to multiply ``x``. (B,), (B, *) -> (B, 1, ...)"""
    return value.view(-1, *[1] * (x.ndim - 1))
