"""Log-probability through the probability-flow ODE: where a sample came from, and how much the way there stretched.

In the state ``y = x_t / sqrt(sigma^2 + std^2)``, which has unit variance at every level for data of ``std``, and in the
variable ``s = ln(sigma)``, the flow ``dx/dsigma = (x - D) / sigma`` of EDM eq. 1 reads

    dy/ds = (skip x_t - D) / sqrt(sigma^2 + std^2),    divergence = skip * dims - trace(dD/dx_t),

with ``skip = std^2 / (sigma^2 + std^2)``: bounded and smooth from the lowest to the highest level. The flow ends where
the sampler starts, at ``x_t ~ N(0, sigma_max^2)``, so this is the density of what a deterministic solver draws as its
steps grow, with data seen as it is at the lowest level.

Sources: Song et al., 2021, appendix D, https://arxiv.org/abs/2011.13456; Karras et al., 2022,
https://arxiv.org/abs/2206.00364; trace by Hutchinson's estimate, Grathwohl et al., 2019,
https://arxiv.org/abs/1810.01367. Shapes: B batch, K probes, ``*`` the data shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Likelihood
from kinfolk.rng import row_uniform
from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.config import LikelihoodConfig
from kinfolk_families.diffusion.integration import Point, integrate

ROWS_AT_ONCE = 64  # bounds memory: the trace keeps a call's activations
Conditioned = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x_t (B, *), sigma (B,), label (B,) -> estimate of x


@dataclass(frozen=True, slots=True)
class ProbabilityFlow:
    """The log-probability of a denoiser's samples: levels where the data has any, else a density."""

    denoise: Conditioned
    spec: DataSpec
    ends: tuple[float, float]  # lowest and highest sigma of sampling
    config: LikelihoodConfig

    @property
    def task(self) -> Likelihood:
        """What the platform shows of it."""
        return Likelihood(self.nats, "ode", "density" if self.spec.levels is None else "levels")

    @property
    def width(self) -> float:
        """Of one level in [-1, 1]; 0 for continuous data."""
        return 0.0 if self.spec.levels is None else 2 / (self.spec.levels - 1)

    @property
    def lowest(self) -> float:
        """The level the flow starts at: with levels, where the model's own noise is as strong as dequantisation's."""
        return max(self.ends[0], self.width / math.sqrt(12))  # standard deviation of uniform noise of that width

    def nats(self, batch: Batch, seeds: Tensor) -> Tensor:
        """Mean over the draws of each row's seed. -> (B,) float64

        Of levels it is the mean log-density within a level's width plus the log of the width, which bounds the log of
        the level's mass from below.
        """
        rows = range(0, len(seeds), ROWS_AT_ONCE)
        return torch.cat([self._rows(batch, seeds, slice(first, first + ROWS_AT_ONCE)) for first in rows])

    def _rows(self, batch: Batch, seeds: Tensor, rows: slice) -> Tensor:
        part = batch.map(lambda value: value[rows])
        draws = [self._draw(part, seeds[rows], draw) for draw in range(self.config.draws)]
        return torch.stack(draws).mean(0) + (self.spec.dims * math.log(self.width) if self.width else 0.0)

    def _draw(self, batch: Batch, seeds: Tensor, draw: int) -> Tensor:
        call, (_, *shape) = torch.full_like(seeds, draw), batch.x.shape
        offset = self.width * (row_uniform(seeds, call, shape, "dequantise") - 0.5)
        x = batch.x.double() + offset.to(batch.x.device)
        return self.log_density(x, batch.label, self._probes(x, seeds, call))

    def _probes(self, x: Tensor, seeds: Tensor, call: Tensor) -> Tensor:
        """Vectors with ``mean over K of v v^T = identity``, exactly if samples are small. -> (K, B, *)"""
        dims = x[0].numel()
        if dims <= self.config.exact_dims:
            basis = math.sqrt(dims) * torch.eye(dims, dtype=x.dtype, device=x.device)
            return basis.view(dims, 1, *x.shape[1:]).expand(dims, *x.shape)
        signs = 2 * (row_uniform(seeds, call, x.shape[1:], "probe") < 0.5).double() - 1
        return signs[None].to(x.device)

    def log_density(self, x: Tensor, label: Tensor | None, probes: Tensor) -> Tensor:
        """log p(x) in nats, by a flow from the lowest level to the highest. (B, *), (B,), (K, B, *) -> (B,) float64"""
        low, high, dims = self.lowest, self.ends[1], x[0].numel()
        norm_low, norm_high = (math.hypot(sigma, self.spec.data_std) for sigma in (low, high))

        def slope(at: Tensor, y: Tensor, rows: Tensor) -> Point:
            known = None if label is None else label[rows]
            return self._slope(at, y, known, probes[:, rows])

        end = integrate(slope, x / norm_low, math.log(low), math.log(high), self.config)
        prior_std = high / norm_high  # of y, where x_t is N(0, high^2)
        squares = (end.y / prior_std).square().flatten(1).sum(1)
        prior = -0.5 * squares - dims * (math.log(prior_std) + 0.5 * math.log(2 * math.pi))
        return prior + end.nats - dims * math.log(norm_low)

    def _slope(self, log_sigma: Tensor, y: Tensor, label: Tensor | None, probes: Tensor) -> Point:
        """dy/ds and its divergence. (B,), (B, *), (B,), (K, B, *)"""
        sigma = log_sigma.exp()
        norm = (sigma.square() + self.spec.data_std**2).sqrt()
        skip = (self.spec.data_std / norm).square()
        with torch.enable_grad():
            x_t = (per_row(norm, y) * y).detach().requires_grad_()
            denoised = self.denoise(x_t, sigma, label)
            trace = _trace(denoised, x_t, probes)
        slope = (per_row(skip, y) * x_t - denoised).detach() / per_row(norm, y)
        return Point(slope, skip * y[0].numel() - trace)


def _trace(output: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """Trace of d output / d x by ``probes``: mean of v^T J v. (B, *), (B, *), (K, B, *) -> (B,)"""
    last = len(probes) - 1
    products = [
        (torch.autograd.grad(output, x, v, retain_graph=k < last)[0] * v).flatten(1).sum(1)
        for k, v in enumerate(probes)
    ]
    return torch.stack(products).mean(0)
