"""What a decoder's outputs mean: the distribution p(x | z) of a sample given its latent.

Shapes: S draws, B batch, P outputs for each element, ``*`` the data shape. Log-probabilities are sums over a sample's
elements, in nats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Progress
from kinfolk_families._shared.discretised import binarise, discretised_logistic_log_prob
from kinfolk_families.autoencoder.config import (
    BernoulliConfig,
    DiscretisedLogisticConfig,
    DistributionConfig,
    GaussianConfig,
)

Outputs = Sequence[Tensor]  # what a decoder says of each element: P tensors


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p of each element; x in [-1, 1], -1 is off. (*), (*) -> (*)"""
    return -F.binary_cross_entropy_with_logits(logits, ((x + 1) / 2).expand_as(logits), reduction="none")


def clipped_logistic_mean(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of a logistic variable clipped to [-1, 1]: -1 plus the integral of P(value > t) over [-1, 1]. (*) -> (*)"""
    scale = torch.exp(log_scale)
    return scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale)) - 1


def gaussian_log_prob(mean: Tensor, log_sigma: Tensor, x: Tensor) -> Tensor:
    """log density of each element. (*), () or (*), (*) -> (*)"""
    return -0.5 * (((x - mean) * torch.exp(-log_sigma)) ** 2 + math.log(2 * math.pi)) - log_sigma


class Distribution(nn.Module):
    """p(x | z), given P outputs of the decoder for each element of x."""

    outputs_per_element = 1  # P
    of: Literal["levels", "binary", "density"] | None = None  # what log_prob is of; None: nothing that has a name

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """What the model sees of x; ``uniform`` draws (B, *) in [0, 1) where seeing is random. (B, *) -> (B, *)"""
        return x

    def elements(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each element. P of (S, B, *), (B, *) -> (S, B, *)"""
        raise NotImplementedError

    def mean(self, outputs: Outputs) -> Tensor:
        """Expected x. P of (*) -> (*)"""
        return outputs[0]

    def log_prob(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each sample under each draw of z. P of (S, B, *), (B, *) -> (S, B)"""
        return self.elements(outputs, x).flatten(2).sum(2)

    def record(self, outputs: Outputs, x: Tensor) -> None:
        """Note what ``after`` needs of a microbatch. P of (S, B, *), (B, *)"""

    def after(self, progress: Progress) -> None:
        """Move, once per step, what follows from the microbatches and not from a gradient."""


class Bernoulli(Distribution):
    """Elements that are on or off; one output, the logit of on."""

    def __init__(self, config: BernoulliConfig) -> None:
        super().__init__()
        self.binarise = config.binarise
        self.of = "binary" if config.binarise else None

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:
        """Binarised x, or x itself where the targets are grey."""
        return binarise(x, uniform()) if self.binarise else x

    def elements(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each element. 1 of (S, B, *), (B, *) -> (S, B, *)"""
        return bernoulli_log_prob(outputs[0], x)

    def mean(self, outputs: Outputs) -> Tensor:
        """Expected x in [-1, 1]. 1 of (*) -> (*)"""
        return 2 * torch.sigmoid(outputs[0]) - 1


class DiscretisedLogistic(Distribution):
    """Levels by the mass of a logistic in their bins; two outputs, mean and log-scale."""

    outputs_per_element = 2
    of = "levels"

    def __init__(self, config: DiscretisedLogisticConfig, spec: DataSpec, levels: int) -> None:
        super().__init__()
        self.min_log_scale, self.spec, self.levels = config.min_log_scale, spec, levels

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """x at its nearest level."""
        return self.spec.from_levels(self.spec.to_levels(x)).to(x.dtype)

    def elements(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each element. 2 of (S, B, *), (B, *) -> (S, B, *)"""
        mean, log_scale = outputs
        return discretised_logistic_log_prob(mean, log_scale.clamp(min=self.min_log_scale), x, self.levels)

    def mean(self, outputs: Outputs) -> Tensor:
        """Expected x in [-1, 1], to half a level. 2 of (*) -> (*)"""
        mean, log_scale = outputs
        return clipped_logistic_mean(mean, log_scale.clamp(min=self.min_log_scale))


class Gaussian(Distribution):
    """A density with one trained variance for all elements; one output, the mean.

    Source: Rybkin et al., 2021 (sigma-VAE), https://arxiv.org/abs/2006.13202.
    """

    of = "density"
    log_sigma: Tensor  # ()

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(math.log(spec.data_std)))  # what predicting the mean would leave

    def elements(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each element. 1 of (S, B, *), (B, *) -> (S, B, *)"""
        return gaussian_log_prob(outputs[0], self.log_sigma, x)


class OptimalGaussian(Distribution):
    """A density with the variance that is best for the ELBO: the mean squared error, averaged over late batches.

    The optimum of one batch (Rybkin et al., 2021) is no mean over samples; the average makes it one that holds
    for all microbatches and workers of a step, and is what evaluation uses.
    """

    of = "density"
    variance: Tensor  # ()
    errors: Tensor  # (2,) squared errors of this step so far, and of how many samples

    def __init__(self, config: GaussianConfig, spec: DataSpec) -> None:
        super().__init__()
        self.halflife_samples, self.dims = config.halflife_samples, spec.dims
        self.register_buffer("variance", torch.tensor(spec.data_std**2))  # what predicting the mean would leave
        self.register_buffer("errors", torch.zeros(2))

    def elements(self, outputs: Outputs, x: Tensor) -> Tensor:
        """Nats of each element. 1 of (S, B, *), (B, *) -> (S, B, *)"""
        return gaussian_log_prob(outputs[0], self.variance.log() / 2, x)

    def record(self, outputs: Outputs, x: Tensor) -> None:
        """Add up squared errors. 1 of (S, B, *), (B, *)"""
        squared = (outputs[0].detach() - x).square().mean(0).sum()
        self.errors += torch.stack([squared, squared.new_tensor(len(x))])

    def after(self, progress: Progress) -> None:
        """Move the variance towards the step's mean squared error."""
        squared, samples = progress.all_reduce(self.errors.clone())
        keep = 0.5 ** (samples / self.halflife_samples)
        self.variance.lerp_(squared / (samples * self.dims), 1 - keep)
        self.errors.zero_()


def make_distribution(config: DistributionConfig, spec: DataSpec) -> Distribution:
    """The distribution of ``config`` over data of ``spec``.

    Raises:
        ConfigError: the data is not what the distribution is over.
    """
    if isinstance(config, GaussianConfig):
        return OptimalGaussian(config, spec) if config.variance == "optimal" else Gaussian(spec)
    if isinstance(config, BernoulliConfig):
        if spec.kind != "image":
            raise ConfigError(f"decoder.kind='bernoulli' is over images, the data is {spec.kind}. Use kind: gaussian.")
        return Bernoulli(config)
    if spec.levels is None:
        raise ConfigError(
            f"decoder.kind='discretised_logistic' is over levels, this {spec.kind} data has none. Use kind: gaussian."
        )
    return DiscretisedLogistic(config, spec, spec.levels)
