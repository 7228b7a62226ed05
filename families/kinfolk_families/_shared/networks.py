"""Networks that are told a noise level and a class: transformer, U-Net, perceptron.

``generator`` is of dropout throughout; without one there is none.
Sources: Peebles & Xie, 2023 (DiT), https://arxiv.org/abs/2212.09748; Ronneberger et al., 2015 (U-Net),
https://arxiv.org/abs/1505.04597, in the form of Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233.
Shapes: B batch, C channels, H W pixels, T tokens, D width, E condition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk_families._shared.dropout import Dropout
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig, UNetConfig
from kinfolk_families._shared.transformer import Attention, Block, Positions, attend, patchify, unpatchify

GROUPS = 8  # of group norm; channels are multiples of it
# Bytes of a full-resolution activation: on a CPU, larger ones leave the cache and cost 1.4 to 1.9 times.
PART_BYTES = 8 * 2**20


class NoiseEmbedding(nn.Module):
    """Sines and cosines of ln(sigma) / 4 and two layers. (B,) -> (B, E)

    Frequencies stay low: the denoiser must be smooth in sigma for a solver of second order to gain by it.
    """

    def __init__(self, width: int, max_frequency: float) -> None:
        super().__init__()
        frequencies = torch.linspace(0, math.log(max_frequency), width // 2).exp()
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, noise: Tensor) -> Tensor:
        """(B,) -> (B, E)"""
        angles = noise[:, None] * self.get_buffer("frequencies")
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))


def modulated(x: Tensor, modulation: Tensor) -> Tensor:
    """``x`` shifted and scaled. (B, D, ...), (B, 2D) -> (B, D, ...)"""
    shift, scale = modulation.view(*modulation.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
    return x * (1 + scale) + shift


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """``layer`` with weights and bias at zero, so that a residual branch or an output starts as nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Transformer(nn.Module):
    """DiT: patches as tokens, every block and the output modulated by the condition (adaLN-Zero)."""

    def __init__(self, config: TransformerConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        C, H, W = shape
        self.shape, self.patch, self.condition_width = (C, H, W), config.patch, config.width
        self.embed = nn.Linear(C * config.patch**2, config.width)
        self.positions = Positions(H * W // config.patch**2, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.width, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(config.width, 2 * config.width))
        self.output = zeroed(nn.Linear(config.width, C * config.patch**2))

    def forward(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W)"""
        tokens = self.positions(self.embed(patchify(x, self.patch)))  # (B, T, D)
        for block in self.blocks:
            tokens = block(tokens, condition, generator)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        return unpatchify(self.output(self.norm(tokens) * (1 + scale) + shift), self.shape, self.patch)


class ConvBlock(nn.Module):
    """Two convolutions around a residual, the second one modulated by the condition; attention after it if asked."""

    def __init__(self, channels_in: int, channels: int, condition: int, heads: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(GROUPS, channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels, 3, padding=1)
        )
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.modulation = nn.Linear(condition, 2 * channels)
        self.dropout = Dropout(dropout)
        self.second = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        self.attention = PixelAttention(channels, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C_in, H, W), (B, E) -> (B, C, H, W)"""
        h = modulated(self.norm(self.first(x)), self.modulation(F.silu(condition)))
        return self.attention(self.skip(x) + self.second(self.dropout(F.silu(h), generator)))


class PixelAttention(nn.Module):
    """Self-attention with each pixel a token, on a residual branch that starts as nothing."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.attention = Attention(channels, heads)
        zeroed(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); pixels stay the last dimension, which saves transposing them there and back."""
        pixels, qkv = self.norm(x).flatten(2), self.attention.qkv  # (B, C, HW)
        parts = zip(qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True)
        q, k, v = (_mapped(pixels, *part).unflatten(1, (self.attention.heads, -1)) for part in parts)
        mixed = attend(q, k, v).flatten(1, 2)  # (B, C, HW)
        return x + _mapped(mixed, self.attention.out.weight, self.attention.out.bias).view_as(x)


def _mapped(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of every pixel. (B, C, HW), (D, C), (D,) -> (B, D, HW)"""
    return torch.baddbmm(bias[:, None], weight.expand(len(pixels), -1, -1), pixels)


class Level(nn.Module):
    """One resolution of a U-Net and all lower ones inside it. (B, C_in, H, W), (B, E) -> (B, C, H, W)"""

    def __init__(self, channels: int, condition: int, config: UNetConfig, height: int, level: int = 0) -> None:
        super().__init__()
        width = config.channels * config.multipliers[level]
        lowest = level + 1 == len(config.multipliers)
        heads = config.heads if lowest or height <= config.attention else 0
        self.inner = None if lowest else Level(width, condition, config, height // 2, level + 1)
        self.down, joined = _stack(channels, width, condition, heads, config), width
        if not lowest:
            joined += config.channels * config.multipliers[level + 1]
        self.up = _stack(joined, width, condition, heads, config)

    def forward(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C_in, H, W), (B, E) -> (B, C, H, W)"""
        for block in self.down:
            x = block(x, condition, generator)
        if self.inner is not None:
            below = self.inner(F.avg_pool2d(x, 2), condition, generator)
            x = torch.cat([x, F.interpolate(below, scale_factor=2)], dim=1)
        for block in self.up:
            x = block(x, condition, generator)
        return x


def _stack(channels: int, width: int, condition: int, heads: int, config: UNetConfig) -> nn.ModuleList:
    inputs = [channels] + [width] * (config.blocks - 1)
    return nn.ModuleList(ConvBlock(each, width, condition, heads, config.dropout) for each in inputs)


class UNet(nn.Module):
    """Convolutions that go down in resolution and up again, each level joined to itself across."""

    def __init__(self, config: UNetConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        C, H, W = shape
        self.patch, self.condition_width = config.patch, 4 * config.channels
        self.row_bytes = 4 * config.channels * H * W // config.patch**2  # of a row's activation, in float32
        seen, top = C * config.patch**2, config.channels * config.multipliers[0]
        self.stem = nn.Conv2d(seen, config.channels, 3, padding=1)
        self.level = Level(config.channels, self.condition_width, config, H // config.patch)
        self.output = nn.Sequential(nn.GroupNorm(GROUPS, top), nn.SiLU(), zeroed(nn.Conv2d(top, seen, 3, padding=1)))

    def forward(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W); without gradient on a CPU, rows in parts that stay in its cache.

        With a generator they stay together: its masks must be the same with a gradient and without.
        """
        parts = -(-len(x) * self.row_bytes // PART_BYTES)
        if parts <= 1 or torch.is_grad_enabled() or generator is not None or x.device.type != "cpu":
            return self._whole(x, condition, generator)
        pairs = zip(x.chunk(parts), condition.chunk(parts), strict=True)
        return torch.cat([self._whole(part, told) for part, told in pairs])

    def _whole(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        return F.pixel_shuffle(self.output(self.level(h, condition, generator)), self.patch)


class MlpBlock(nn.Module):
    """Two linear maps on a normalised residual branch, modulated by the condition."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, h: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, D), (B, D) -> (B, D)"""
        added = self.layers(modulated(self.norm(h), self.modulation(F.silu(condition))))
        return h + self.dropout(added, generator)


class Mlp(nn.Module):
    """Residual perceptron over vectors."""

    def __init__(self, config: MlpConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.condition_width = config.width
        self.embed = nn.Linear(shape[0], config.width)
        self.blocks = nn.ModuleList(MlpBlock(config.width, config.dropout) for _ in range(config.depth))
        self.output = nn.Sequential(nn.LayerNorm(config.width), zeroed(nn.Linear(config.width, shape[0])))

    def forward(self, x: Tensor, condition: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, D), (B, E) -> (B, D)"""
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, condition, generator)
        return self.output(h)


def make_network(
    config: TransformerConfig | UNetConfig | MlpConfig, shape: tuple[int, ...]
) -> Transformer | UNet | Mlp:
    """The network of ``config`` for samples of ``shape``; it tells ``condition_width``."""
    match config:
        case TransformerConfig() as network:
            return Transformer(network, shape)
        case UNetConfig() as network:
            return UNet(network, shape)
        case MlpConfig() as network:
            return Mlp(network, shape)
