"""Generator and critic of plain residual blocks, as in WGAN-GP and SN-GAN but without batch statistics.

In place of batch normalisation the generator normalises each sample by itself, as in ``convolution.py``. Sources:
Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028, Appendix F; Miyato et al., 2018,
https://arxiv.org/abs/1802.05957, Table 4. Shapes: B batch, C channels, H W pixels, E input width, D features.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk_families.gan.attention import SelfAttention, attention_level
from kinfolk_families.gan.convolution import initialise
from kinfolk_families.gan.network_config import ResNetwork
from kinfolk_families.gan.resampling import doubling, halving


class UpBlock(nn.Module):
    """Two convolutions, normalised before each, to twice the size. (B, C, H, W) -> (B, C', 2H, 2W)"""

    def __init__(self, channels_in: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.up = doubling(size)
        self.norms = nn.ModuleList([nn.GroupNorm(1, channels_in), nn.GroupNorm(1, channels)])
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ceil(H/2), ceil(W/2)) -> (B, C', H, W)"""
        h = self.first(self.up(F.relu(self.norms[0](x))))
        return self.skip(self.up(x)) + self.second(F.relu(self.norms[1](h)))


class DownBlock(nn.Module):
    """Two convolutions, then to half the size. (B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))"""

    def __init__(self, channels_in: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.down = halving(size)
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))"""
        h = self.second(F.relu(self.first(F.relu(x))))
        return self.down(self.skip(x) + h)


class ResNetGenerator(nn.Module):
    """A linear layer to the coarsest resolution, then blocks up to the image; tanh at the end."""

    def __init__(self, config: ResNetwork, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = config.channels(len(sizes))
        attending = attention_level(config.attention, sizes, finest=0)
        self.coarsest = (channels[-1], *sizes[-1])
        self.project = nn.Linear(inputs, channels[-1] * sizes[-1][0] * sizes[-1][1])
        layers: list[nn.Module] = [SelfAttention(channels[-1])] if attending == len(sizes) - 1 else []
        for level in reversed(range(len(sizes) - 1)):
            layers.append(UpBlock(channels[level + 1], channels[level], sizes[level]))
            layers += [SelfAttention(channels[level])] if attending == level else []
        layers += [nn.GroupNorm(1, channels[0]), nn.ReLU(), nn.Conv2d(channels[0], shape[0], 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, code: Tensor) -> Tensor:
        """(B, E) -> (B, C, H, W)"""
        return self.layers(self.project(code).unflatten(1, self.coarsest))


class ResNetCritic(nn.Module):
    """Blocks down to the coarsest resolution, whose pixels are summed."""

    def __init__(self, config: ResNetwork, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = config.channels(len(sizes))
        attending = attention_level(config.attention, sizes, finest=0)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], channels[0], 3, padding=1)]
        for level, size in enumerate(sizes):
            layers += [SelfAttention(channels[level])] if attending == level else []
            if level + 1 < len(sizes):
                layers.append(DownBlock(channels[level], channels[level + 1], size))
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.features = channels[-1]
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return self.layers(x).sum((2, 3))
