"""Strided convolutional generator and critic, as in DCGAN but without batch statistics.

DCGAN's batch normalisation ties the samples of a batch to each other. Here the generator normalises each sample by
itself (one group over all channels and pixels) and the critic, which a gradient penalty keeps smooth, not at all.
Source: Radford et al., 2016, https://arxiv.org/abs/1511.06434. Shapes: B batch, C channels, H W pixels, E input width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from kinfolk_families.gan.attention import SelfAttention, attention_level
from kinfolk_families.gan.network_config import ConvNetwork

LEAK = 0.2  # slope of leaky ReLU below zero (DCGAN, Sec. 3; R3GAN takes the same)
KERNEL = 5  # pixels (DCGAN, Fig. 1); odd, so that every size is halved, and doubled again, exactly
STRIDE = 2  # (DCGAN, Fig. 1)


def initialise(module: nn.Module) -> None:
    """Weights of ``module`` and all below it drawn so that variance is kept through leaky ReLUs; biases zero.

    Source: He et al., 2015, https://arxiv.org/abs/1502.01852, eq. 14.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
        elif isinstance(layer, nn.ConvTranspose2d):  # an output pixel meets 1/STRIDE^2 of the kernel
            nn.init.kaiming_normal_(layer.weight, a=LEAK, mode="fan_out")
            with torch.no_grad():
                layer.weight.mul_(STRIDE)
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _doubling(channels_in: int, channels: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Transposed convolution to (H, W) = ``size`` from (ceil(H/2), ceil(W/2))."""
    height, width = size
    odd_or_even = (1 - height % 2, 1 - width % 2)
    return nn.ConvTranspose2d(channels_in, channels, KERNEL, STRIDE, KERNEL // 2, output_padding=odd_or_even)


class ConvGenerator(nn.Module):
    """A linear layer to the coarsest resolution, then transposed convolutions; tanh at the end."""

    def __init__(self, config: ConvNetwork, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = [shape[0], *config.channels(len(sizes) - 1)]
        attending = attention_level(config.attention, sizes, finest=1)
        self.coarsest = (channels[-1], *sizes[-1])
        height, width = sizes[-1]
        self.project = nn.Linear(inputs, channels[-1] * height * width)
        layers: list[nn.Module] = []
        for level in reversed(range(1, len(sizes))):
            layers += [SelfAttention(channels[level])] if attending == level else []
            layers += [nn.GroupNorm(1, channels[level]), nn.ReLU()]
            layers.append(_doubling(channels[level], channels[level - 1], sizes[level - 1]))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialise(self)

    def forward(self, code: Tensor) -> Tensor:
        """(B, E) -> (B, C, H, W)"""
        return self.layers(self.project(code).unflatten(1, self.coarsest))


class ConvCritic(nn.Sequential):
    """Strided convolutions with leaky ReLU, flattened. (B, C, H, W) -> (B, D), D being ``features``"""

    def __init__(self, config: ConvNetwork, shape: tuple[int, int, int]) -> None:
        sizes = config.resolutions(*shape[1:])
        channels = [shape[0], *config.channels(len(sizes) - 1)]
        attending = attention_level(config.attention, sizes, finest=1)
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(channels), start=1):
            layers += [nn.Conv2d(before, after, KERNEL, STRIDE, KERNEL // 2), nn.LeakyReLU(LEAK)]
            layers += [SelfAttention(after)] if attending == level else []
        super().__init__(*layers, nn.Flatten())
        self.features = channels[-1] * sizes[-1][0] * sizes[-1][1]
        initialise(self)
