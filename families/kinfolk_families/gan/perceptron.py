"""Fully connected layers, with the input's sines and cosines beside it where fine detail matters. B batch."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from kinfolk_families.gan.convolution import LEAK, initialise
from kinfolk_families.gan.network_config import MLPNetwork


class Octaves(nn.Module):
    """The input with its sines and cosines at pi/2, pi, 2 pi, ... (B, D) -> (B, D + 2 * octaves * D)

    The slowest takes one turn over -2 to 2, where data of mean 0 and standard deviation 1 lies: no two ends look alike.
    Source: Tancik et al., 2020, https://arxiv.org/abs/2006.10739, Sec. 6 (positional encoding).
    """

    frequencies: Tensor  # (octaves,)

    def __init__(self, octaves: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(octaves), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D + 2 * octaves * D)"""
        angles = (x[:, :, None] * self.frequencies).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], dim=1)


class Scaled(nn.Module):
    """The input times a constant. (B, *) -> (B, *)"""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, *)"""
        return x * self.factor


class MLP(nn.Sequential):
    """Hidden layers, over the input in units of ``input_std``. (B, *) -> (B, width)"""

    def __init__(self, config: MLPNetwork, inputs: int, input_std: float = 1.0) -> None:
        layers: list[nn.Module] = [nn.Flatten(), Scaled(1 / input_std)]
        if config.octaves:
            layers.append(Octaves(config.octaves))
        for before, after in pairwise([inputs * (1 + 2 * config.octaves), *[config.width] * config.depth]):
            layers += [nn.Linear(before, after), nn.Tanh() if config.activation == "tanh" else nn.LeakyReLU(LEAK)]
        super().__init__(*layers)
        self.features = config.width
        initialise(self)
