"""What a critic is told of other samples: how near they are, or how much they spread.

Groups are neighbours in the batch, of a size that the recipe states, so that neither workers nor microbatches change
them. Shapes: P packs, G of them in a group, D features.
"""

import torch
from torch import Tensor, nn

from kinfolk_families.gan.config import DeviationConfig, DiscriminationConfig

EPSILON = 1e-8  # under the root of a variance (Karras et al., 2018, in their code)


class MinibatchDiscrimination(nn.Module):
    """Sum over the group of exp(-distance) between projected features, in each of several spaces.

    Source: Salimans et al., 2016, https://arxiv.org/abs/1606.03498, Sec. 3.2.
    """

    def __init__(self, config: DiscriminationConfig, features: int) -> None:
        super().__init__()
        self.group, self.outputs = config.group, config.kernels
        self.projection = nn.Parameter(torch.randn(features, config.kernels, config.dims) * features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(P, D) -> (P, kernels)"""
        projected = torch.einsum("pd,dkc->pkc", features, self.projection).unflatten(0, (-1, self.group))
        distance = (projected[:, :, None] - projected[:, None]).abs().sum(-1)  # (P/G, G, G, kernels)
        return (-distance).exp().sum(2).flatten(0, 1)


class MinibatchDeviation(nn.Module):
    """Standard deviation of each feature in the group, averaged over features.

    Source: Karras et al., 2018, https://arxiv.org/abs/1710.10196, Sec. 3.
    """

    def __init__(self, config: DeviationConfig) -> None:
        super().__init__()
        self.group, self.outputs = config.group, 1

    def forward(self, features: Tensor) -> Tensor:
        """(P, D) -> (P, 1), equal in a group"""
        variance = features.unflatten(0, (-1, self.group)).var(1, correction=0)  # (P/G, D)
        return (variance + EPSILON).sqrt().mean(1, keepdim=True).repeat_interleave(self.group, 0)


def make_statistics(
    config: DiscriminationConfig | DeviationConfig | None, features: int
) -> MinibatchDiscrimination | MinibatchDeviation | None:
    """The module of ``config`` for so many features, if there is one."""
    match config:
        case DiscriminationConfig():
            return MinibatchDiscrimination(config, features)
        case DeviationConfig():
            return MinibatchDeviation(config)
        case None:
            return None
