"""From levels to a continuous sample and back: noise within each level's bin, and maps of [0, 1) to the whole line.

A density of y = (level + u) / levels, with noise u in [0, 1) drawn from q, bounds the probability of the levels:
log P(level) >= E_q[log p(y) - D log levels - log q(u)]. Shapes: B batch, ``*`` the data shape, D its elements.
Source: Theis et al., 2016, https://arxiv.org/abs/1511.01844; Ho et al., 2019 (Flow++), eq. 11,
https://arxiv.org/abs/1902.00275.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import DataSpec
from kinfolk_families.flow.bijections import AllReduce, Bijection, Sequence, Squeeze
from kinfolk_families.flow.config import LogitConfig, MarginalConfig, UniformConfig, VariationalConfig
from kinfolk_families.flow.couplings import AffineCoupling, checkerboard, deep_network, every_other, halves

MARGIN = 2**-16  # of a bin at each end: 256 levels and their noise stay inside (0, 1) in float32


class UniformDequantiser(nn.Module):
    """Noise as it comes."""

    def forward(self, levels: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """u and log q(u) of each row. (B, *) int64, (B, *) in [0, 1) -> (B, *), (B,) float64"""
        return uniform, uniform.new_zeros(len(uniform), dtype=torch.float64)


class VariationalDequantiser(nn.Module):
    """Noise through couplings that see the levels, in logit space; uniform before it is trained."""

    def __init__(self, config: VariationalConfig, spec: DataSpec, levels: int) -> None:
        super().__init__()
        self.levels = levels
        image, channels = spec.kind == "image", spec.shape[0] * (4 if spec.kind == "image" else 1)
        self.squeeze = Squeeze(2) if image else Sequence([])
        first, second = (checkerboard(channels), halves(channels)) if image else (every_other(channels),) * 2
        masks = [first, ~first, second, ~second]

        network, bound = deep_network(image, config.width), config.log_scale_bound
        self.flow = Sequence(AffineCoupling(masks[step % 4], network, channels, bound) for step in range(config.steps))

    def forward(self, levels: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """u and log q(u) of each row. (B, *) int64, (B, *) in [0, 1) -> (B, *), (B,) float64"""
        context, _ = self.squeeze(levels.to(uniform.dtype) * (2 / (self.levels - 1)) - 1)
        start = uniform.clamp(MARGIN, 1 - MARGIN).logit()  # logistic noise
        h, log_det = self.flow(self.squeeze(start)[0], context)
        end = self.squeeze.inverse(h)
        return end.sigmoid(), _logistic_log_prob(start) - log_det - _logistic_log_prob(end)


def _logistic_log_prob(x: Tensor) -> Tensor:
    """log of the standard logistic density, which is that of the sigmoid's slope. (B, *) -> (B,) float64"""
    return (F.logsigmoid(x) + F.logsigmoid(-x)).flatten(1).sum(1, dtype=torch.float64)


class Logit(Bijection):
    """logit(alpha + (1 - 2 alpha) x), from [0, 1] to the line.

    Source: Dinh et al., 2017 (RealNVP), section 4.1, https://arxiv.org/abs/1605.08803.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, *) in [0, 1] -> (B, *), (B,)"""
        inner = self.alpha + (1 - 2 * self.alpha) * x
        slope = math.log(1 - 2 * self.alpha) - inner.log() - (-inner).log1p()
        return inner.logit(), slope.flatten(1).sum(1, dtype=torch.float64)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, *) -> (B, *)"""
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)


class Marginal(Bijection):
    """The standard normal quantile of the elements' distribution function, which is linear within a level's bin.

    On data with that distribution every element becomes standard normal; before ``initialise`` all levels count alike.
    Source: Chen and Gopinath, 2000, Gaussianization; Laparra et al., 2011, https://arxiv.org/abs/1602.00229.
    """

    cumulative: Tensor  # (levels + 1,) float64, from 0 to 1

    def __init__(self, levels: int, smoothing: float) -> None:
        super().__init__()
        self.levels, self.smoothing = levels, smoothing
        self.register_buffer("cumulative", torch.linspace(0, 1, levels + 1, dtype=torch.float64))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, *) in (0, 1) -> (B, *), (B,)"""
        place = x.double() * self.levels
        level = place.detach().long().clamp(0, self.levels - 1)
        lower, share = self.cumulative[level], self.cumulative.diff()[level]
        z = torch.special.ndtri(lower + (place - level) * share)
        slope = (self.levels * share).log() + z.square() / 2 + math.log(2 * math.pi) / 2
        return z.to(x.dtype), slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, *) -> (B, *)"""
        below = torch.special.ndtr(z.double())
        level = torch.searchsorted(self.cumulative, below, right=True).sub(1).clamp(0, self.levels - 1)
        place = level + (below - self.cumulative[level]) / self.cumulative.diff()[level]
        return (place / self.levels).to(z.dtype)

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """Count the levels of the whole first batch."""
        level = (x.double() * self.levels).long().clamp(0, self.levels - 1)
        counts = all_reduce(torch.bincount(level.flatten(), minlength=self.levels).double())
        share = (1 - self.smoothing) * counts / counts.sum() + self.smoothing / self.levels
        self.cumulative[1:] = share.cumsum(0) / share.sum()
        return self(x, context)[0]


def make_dequantiser(
    config: UniformConfig | VariationalConfig, spec: DataSpec, levels: int
) -> UniformDequantiser | VariationalDequantiser:
    """The noise of ``config`` for data of ``spec``."""
    return UniformDequantiser() if isinstance(config, UniformConfig) else VariationalDequantiser(config, spec, levels)


def make_preprocessing(config: LogitConfig | MarginalConfig | None, levels: int) -> Bijection:
    """The map of dequantised levels that ``config`` names; none leaves them in [0, 1)."""
    match config:
        case None:
            return Sequence([])
        case LogitConfig(alpha=alpha):
            return Logit(alpha)
        case MarginalConfig(smoothing=smoothing):
            return Marginal(levels, smoothing)
