"""Noise levels and what a denoiser is scaled by at them.

Source: Karras et al., 2022 (EDM), https://arxiv.org/abs/2206.00364. Shapes: B batch.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor


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


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """``value`` with axes of length 1 behind it, to multiply ``x``. (B,), (B, *) -> (B, 1, ...)"""
    return value.view(-1, *[1] * (x.ndim - 1))
