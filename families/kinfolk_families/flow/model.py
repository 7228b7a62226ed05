"""The flow put together: dequantisation, preprocessing and the bijection to standard normal noise.

Shapes: B batch, C channels, D elements of a sample, K classes, ``*`` the data shape.
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import Batch, DataSpec, Model, Progress, RequestError
from kinfolk_families.flow.bijections import (
    ActNorm,
    Bijection,
    Flatten,
    NormalisedLinear,
    Sequence,
    Squeeze,
)
from kinfolk_families.flow.config import FlowConfig, GlowConfig, NoDequantisationConfig, RealNvpConfig, check
from kinfolk_families.flow.couplings import (
    AffineCoupling,
    ClassPrior,
    MultiScale,
    checkerboard,
    deep_network,
    every_other,
    halves,
    linear_network,
)
from kinfolk_families.flow.dequantisation import MARGIN, make_dequantiser, make_preprocessing


class Flow(nn.Module):
    """An invertible map between samples and standard normal noise of as many elements."""

    def __init__(self, config: FlowConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.classes = (spec.classes or 0) if config.conditional else 0
        self.dequantiser, parts = None, []
        if spec.levels is not None and not isinstance(config.dequantisation, NoDequantisationConfig):
            self.dequantiser = make_dequantiser(config.dequantisation, spec, spec.levels)
            parts = [make_preprocessing(config.preprocessing, spec.levels)]
        self.bijection = Sequence([*parts, make_level(config.flow, spec.shape, self.classes)])

    def context(self, label: Tensor | None, rows: Tensor) -> Tensor | None:
        """One-hot classes for ``rows``; None where the model is unconditional. (B,) -> (B, K)

        Raises:
            RequestError: the model is conditional and there is no label.
        """
        if not self.classes:
            return None
        if label is None:
            raise RequestError("label", f"This flow is class-conditional: give labels, 0 to {self.classes - 1}.")
        return F.one_hot(label, self.classes).to(rows.dtype)

    def dequantise(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A point of the continuous sample and what its log-density exceeds a bound of log P(levels) by.

        Continuous data is itself. (B, *), (B, *) in [0, 1) -> (B, *), (B,) or ()
        """
        if self.dequantiser is None:
            return x, x.new_zeros((), dtype=torch.float64)
        levels = self.spec.to_levels(x)
        u, log_q = self.dequantiser(levels, uniform)
        return self.place(levels, u), log_q + self.spec.dims * math.log(self.levels)

    @property
    def levels(self) -> int:
        """Discrete values of an element of dequantised data."""
        assert self.spec.levels is not None
        return self.spec.levels

    def place(self, levels: Tensor, u: Tensor) -> Tensor:
        """The point ``u`` of the way through each level's bin, inside (0, 1). (B, *), (B, *) -> (B, *)"""
        return (levels + u.clamp(MARGIN, 1 - MARGIN)) / self.levels

    def forward(self, x: Tensor, label: Tensor | None, uniform: Tensor) -> Tensor:
        """log p(x) in nats; of levels a lower bound, from one draw of noise. (B, *), (B,), (B, *) in [0, 1) -> (B,)

        Rezende and Mohamed, 2015, eq. 5, https://arxiv.org/abs/1505.05770, from data to noise.
        """
        y, excess = self.dequantise(x, uniform)
        z, log_det = self.bijection(y, self.context(label, x))
        return standard_normal_log_prob(z) + log_det - excess

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Noise that ``decode`` turns into x; of levels, the noise of the middle of their bins. (B, *) -> (B, D)"""
        if self.dequantiser is not None:
            levels = self.spec.to_levels(x)
            x = self.place(levels, torch.full_like(x, 0.5))
        z, _ = self.bijection(x, self.context(label, x))
        return z

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The sample of noise, at its level where data has levels. (B, D) -> (B, *)"""
        y = self.bijection.inverse(z, self.context(label, z))
        if self.dequantiser is None:
            return y
        levels = (y * self.levels).floor().clamp(0, self.levels - 1)
        return self.spec.from_levels(levels).to(y.dtype)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """(B, D) -> (B,) float64, nats"""
    return -0.5 * (z.square().sum(1, dtype=torch.float64) + z.shape[1] * math.log(2 * math.pi))


def make_level(config: RealNvpConfig | GlowConfig, shape: tuple[int, ...], classes: int, level: int = 1) -> Bijection:
    """One scale and all lower ones inside it. (B, *shape) -> (B, D)"""
    image = len(shape) == 3
    parts: list[Bijection] = []
    if image:
        side = config.squeeze if isinstance(config, GlowConfig) else 2
        channels, height, width = shape
        shape = (channels * side**2, height // side, width // side)
        parts.append(Squeeze(side))
    scale = Sequence([*parts, *make_steps(config, image, shape[0], classes)])
    if level == config.levels:
        return Sequence([scale, *([ClassPrior(classes, shape[0])] if classes else []), Flatten(shape)])
    prior = AffineCoupling(halves(shape[0]), linear_network(image), classes, config.log_scale_bound)
    return MultiScale(scale, prior, shape, make_level(config, (prior.kept, *shape[1:]), classes, level + 1))


def make_steps(config: RealNvpConfig | GlowConfig, image: bool, channels: int, classes: int) -> Iterator[Bijection]:
    """The steps of one scale. Each maps (B, C, *) -> (B, C, *)"""
    match config:
        case GlowConfig() as glow:
            return glow_steps(glow, image, channels, classes)
        case RealNvpConfig() as realnvp:
            return realnvp_steps(realnvp, image, channels, classes)


def glow_steps(config: GlowConfig, image: bool, channels: int, classes: int) -> Iterator[Bijection]:
    """ActNorm, 1x1 convolution, coupling, again and again. Source: Glow, Figure 2a."""
    for _ in range(config.steps):
        yield NormalisedLinear(channels)
        yield AffineCoupling(halves(channels), deep_network(image, config.width), classes, config.log_scale_bound)


def realnvp_steps(config: RealNvpConfig, image: bool, channels: int, classes: int) -> Iterator[Bijection]:
    """Couplings under each mask and its opposite in turn, each after an ActNorm. Source: RealNVP, section 3.6."""
    masks = (checkerboard(channels), halves(channels)) if image else (every_other(channels),)
    for mask in masks:
        for step in range(config.steps):
            network = deep_network(image, config.width)
            yield ActNorm(channels)
            yield AffineCoupling(~mask if step % 2 else mask, network, classes, config.log_scale_bound)


def build(config: FlowConfig, spec: DataSpec, _: Mapping[str, Model]) -> Flow:
    """The untrained flow of a recipe for ``spec``; draws from torch's global generator.

    Raises:
        ConfigError: the recipe does not fit the data.
    """
    check(config, spec)
    return Flow(config, spec)


def initialise(module: Flow, batch: Batch, progress: Progress) -> None:
    """ActNorms and the marginal distribution, from the first batch over all workers."""
    uniform = torch.rand(batch.x.shape, generator=progress.generator, device=progress.generator.device)
    y, _ = module.dequantise(batch.x, uniform.to(batch.x.dtype))
    module.bijection.initialise(y, module.context(batch.label, batch.x), progress.all_reduce)
