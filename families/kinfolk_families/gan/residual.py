"""Residual generator and critic without normalisation, as in R3GAN.

Blocks start as the identity and their branches are damped by the depth (Fixup), images are resampled with a [1, 2, 1]
filter, and at the coarsest resolution each channel has one learned picture. Source: Huang et al., 2024,
https://arxiv.org/abs/2501.05441, Sec. 3 and 4; Zhang et al., 2019, https://arxiv.org/abs/1901.09321 (Fixup).
Shapes: B batch, C channels, H W pixels, E input width, D features.
"""

import torch
from torch import Tensor, nn

from kinfolk_families.gan.convolution import LEAK
from kinfolk_families.gan.network_config import ResidualNetwork
from kinfolk_families.gan.resampling import doubling, halving

BRANCH_LAYERS = 3  # convolutions in the branch of a block, m of Fixup


def _linear_scaled(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Weights with variance gain^2 / fan-in; biases zero."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _pointwise(channels_in: int, channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels, 1)
    _linear_scaled(convolution)
    return convolution


class Block(nn.Module):
    """x + branch(x): 1x1 to more channels, grouped 3x3, 1x1 back. (B, C, H, W) -> (B, C, H, W)

    The branch ends in zeros and its other weights are scaled by L^(-1/(2m - 2)) for L = ``depth`` blocks in the
    network and m layers in a branch (Fixup, eq. 5).
    """

    def __init__(self, channels: int, config: ResidualNetwork, depth: int) -> None:
        super().__init__()
        inner = channels * config.expansion
        groups = inner // config.group_width
        widen = nn.Conv2d(channels, inner, 1)
        mix = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        narrow = nn.Conv2d(inner, channels, 1)
        damping = depth ** (-1 / (2 * BRANCH_LAYERS - 2))
        _linear_scaled(widen, damping)
        _linear_scaled(mix, damping * nn.init.calculate_gain("leaky_relu", LEAK))
        _linear_scaled(narrow, 0.0)
        self.branch = nn.Sequential(widen, nn.LeakyReLU(LEAK), mix, nn.LeakyReLU(LEAK), narrow)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        return x + self.branch(x)


def _blocks(channels: int, config: ResidualNetwork, depth: int) -> list[nn.Module]:
    return [Block(channels, config, depth) for _ in range(config.blocks)]


class ResidualGenerator(nn.Module):
    """A learned picture for each channel, weighted by the input, then blocks and upsampling to the image."""

    def __init__(self, config: ResidualNetwork, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = config.channels(len(sizes))
        depth = config.blocks * len(sizes)
        self.project = nn.Linear(inputs, channels[-1])
        _linear_scaled(self.project)
        self.basis = nn.Parameter(torch.empty(channels[-1], *sizes[-1]))
        nn.init.normal_(self.basis)
        layers = _blocks(channels[-1], config, depth)
        for level in reversed(range(len(sizes) - 1)):
            layers += [_pointwise(channels[level + 1], channels[level]), doubling(sizes[level])]
            layers += _blocks(channels[level], config, depth)
        self.layers = nn.Sequential(*layers, _pointwise(channels[0], shape[0]))

    def forward(self, code: Tensor) -> Tensor:
        """(B, E) -> (B, C, H, W)"""
        return self.layers(self.project(code)[:, :, None, None] * self.basis)


class ResidualCritic(nn.Module):
    """Blocks and downsampling to the coarsest resolution, where a learned picture for each channel reads it off."""

    def __init__(self, config: ResidualNetwork, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = config.channels(len(sizes))
        depth = config.blocks * len(sizes)
        layers = [_pointwise(shape[0], channels[0]), *_blocks(channels[0], config, depth)]
        for level in range(len(sizes) - 1):
            layers += [halving(sizes[level]), _pointwise(channels[level], channels[level + 1])]
            layers += _blocks(channels[level + 1], config, depth)
        self.layers = nn.Sequential(*layers)
        self.basis = nn.Parameter(torch.empty(channels[-1], *sizes[-1]))
        nn.init.normal_(self.basis, std=(sizes[-1][0] * sizes[-1][1]) ** -0.5)
        self.features = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return (self.layers(x) * self.basis).sum((2, 3))
