"""Networks whose resolutions join while training: the coarsest first, each next one fading in.

Pictures always have the data's size; before the finest resolution has joined, they are enlarged to it, and the critic
looks at them made smaller. Source: Karras et al., 2018, https://arxiv.org/abs/1710.10196, Sec. 2 and 4. Shapes:
B batch, E input width, C channels, H W pixels, D features; level 0 is the coarsest resolution.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk_families.gan.equalised import EqualConv, EqualLinear, activated, pixel_normalised
from kinfolk_families.gan.network_config import ProgressiveNetwork

Size = tuple[int, int]


class Growing(nn.Module):
    """A pyramid of which so many levels have joined; the last of them may be joining in part."""

    growth: Tensor  # () levels beyond the coarsest

    def __init__(self, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.sizes = list(reversed(sizes))  # the coarsest first
        self.register_buffer("growth", torch.zeros(()))

    def grow(self, growth: float) -> None:
        """Let levels join, as far as there are any."""
        self.growth.fill_(min(growth, len(self.sizes) - 1))

    def stage(self) -> tuple[int, float]:
        """The finest level that takes part, and its share of the picture in (0, 1]; 1 alone at the coarsest."""
        growth = float(self.growth)
        level = math.ceil(growth)
        return level, growth - level + 1


def enlarged(x: Tensor, *sizes: Size) -> Tensor:
    """The nearest pixel, through one size after the other. (B, C, H, W) -> (B, C, *sizes[-1])"""
    for size in sizes:
        x = F.interpolate(x, size=size, mode="nearest-exact")
    return x


def shrunk(x: Tensor, *sizes: Size) -> Tensor:
    """Means over areas, through one size after the other. (B, C, H, W) -> (B, C, *sizes[-1])"""
    for size in sizes:
        x = F.adaptive_avg_pool2d(x, size)
    return x


class GeneratorLevel(nn.Module):
    """Two convolutions at one resolution, enlarged to before all but the coarsest."""

    def __init__(self, channels_in: int, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size
        self.first, self.second = EqualConv(channels_in, channels, 3), EqualConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', H, W)"""
        h = pixel_normalised(activated(self.first(enlarged(x, self.size))))
        return pixel_normalised(activated(self.second(h)))


class ProgressiveGenerator(Growing):
    """A linear layer to the coarsest resolution and a level for each, with a 1x1 convolution to the image."""

    def __init__(self, config: ProgressiveNetwork, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__(config.resolutions(*shape[1:]))
        channels = list(reversed(config.channels(len(self.sizes))))
        self.coarsest = (channels[0], *self.sizes[0])
        self.project = EqualLinear(inputs, math.prod(self.coarsest))
        befores = [channels[0], *channels[:-1]]
        self.levels = nn.ModuleList(GeneratorLevel(*each) for each in zip(befores, channels, self.sizes, strict=True))
        self.images = nn.ModuleList(EqualConv(each, shape[0], 1) for each in channels)

    def forward(self, code: Tensor) -> Tensor:
        """(B, E) -> (B, C, H, W)"""
        finest, share = self.stage()
        h = pixel_normalised(activated(self.project(pixel_normalised(code)).unflatten(1, self.coarsest)))
        h = before = self.levels[0](h)
        for level in self.levels[1 : finest + 1]:
            h, before = level(h), h
        image = self.images[finest](h)
        if share < 1:
            coarse = enlarged(self.images[finest - 1](before), self.sizes[finest])
            image = torch.lerp(coarse, image, share)
        return enlarged(image, *self.sizes[finest + 1 :])


class CriticLevel(nn.Module):
    """Two convolutions at one resolution, then down to the next coarser one."""

    def __init__(self, channels_in: int, channels: int, size: Size) -> None:
        super().__init__()
        self.size = size  # of what comes out
        self.first, self.second = EqualConv(channels_in, channels_in, 3), EqualConv(channels_in, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', h, w)"""
        return shrunk(activated(self.second(activated(self.first(x)))), self.size)


class ProgressiveCritic(Growing):
    """A 1x1 convolution from the image and a level for each resolution, flattened at the coarsest."""

    def __init__(self, config: ProgressiveNetwork, shape: tuple[int, int, int]) -> None:
        super().__init__(config.resolutions(*shape[1:]))
        channels = list(reversed(config.channels(len(self.sizes))))
        self.entries = nn.ModuleList(EqualConv(shape[0], each, 1) for each in channels)
        afters, sizes = [channels[0], *channels[:-1]], [self.sizes[0], *self.sizes[:-1]]
        self.levels = nn.ModuleList(CriticLevel(*each) for each in zip(channels, afters, sizes, strict=True))
        self.features = channels[0] * math.prod(self.sizes[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        finest, share = self.stage()
        x = shrunk(x, *reversed(self.sizes[finest:-1]))
        h = activated(self.entries[finest](x))
        for level in range(finest, -1, -1):
            h = self.levels[level](h)
            if level == finest and share < 1:
                coarse = activated(self.entries[level - 1](shrunk(x, self.sizes[level - 1])))
                h = torch.lerp(coarse, h, share)
        return h.flatten(1)
