"""Convolutional networks over pixels in raster order, and the first of them: the gated PixelCNN.

A vertical stack sees the lines above a pixel, a horizontal stack what it is told by the vertical one and the pixels to
the left; together they leave no blind spot. Shapes: B batch, R rows being sampled, T pixels, G channels of a picture,
C channels of the network, D outputs at a pixel.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk.contract import DataSpec
from kinfolk_families.autoregressive.config import GatedPixelCnnConfig
from kinfolk_families.autoregressive.convolution import (
    Cache,
    CausalConv,
    Lines,
    Pixels,
    Pointwise,
    Scan,
    Upsample,
    Whole,
)


class PixelNetwork(nn.Module):
    """Two stacks and a head; a subclass says what they are made of."""

    links: dict[str, tuple[int, int]]  # what the vertical stack tells: channels, halvings of the resolution

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.shape = spec, spec.shape
        self.inputs = spec.shape[0] + 1

    def vertical(self, x: Tensor, scan: Scan) -> None:
        """Run the vertical stack over inputs moved down by a line, and tell the horizontal one. (A, G + 1, H, W)"""
        raise NotImplementedError

    def horizontal(self, x: Tensor, scan: Scan) -> Tensor:
        """Run the horizontal stack over inputs moved right by a pixel. (A, G + 1, H, W) -> (A, D, H, W)"""
        raise NotImplementedError

    def finish(self) -> None:
        """Name the layers that remember, and lay weights out as convolutions on a CPU like them."""
        for name, layer in self.named_modules():
            if isinstance(layer, CausalConv | Upsample):
                layer.key = name
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def seen(self, tokens: Tensor) -> Tensor:
        """Pixels in [-1, 1] and a channel of ones, which the margins lack. (A, H, W, G) -> (A, G + 1, H, W)"""
        return F.pad(self.spec.from_levels(tokens.movedim(-1, 1)), (0, 0, 0, 0, 0, 1), value=1.0)

    def forward(self, tokens: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """Outputs at every pixel, each of the pixels before it. (B, T, G) -> (B, T, D)"""
        x = self.seen(tokens.unflatten(1, self.shape[1:])).contiguous(memory_format=torch.channels_last)
        scan = Whole(label, generator)
        self.vertical(F.pad(x, (0, 0, 1, -1)), scan)
        return self.horizontal(F.pad(x, (1, -1)), scan).flatten(2).transpose(1, 2)

    def cache(self, rows: int) -> Cache:
        """What is remembered between pixels, of pictures not begun. -> (R, *) each"""
        width, weight = self.shape[2], next(self.parameters())
        layers = [layer for layer in self.modules() if isinstance(layer, CausalConv | Upsample)]
        links = {
            key: weight.new_zeros(rows, channels, width >> halvings) for key, (channels, halvings) in self.links.items()
        }
        return {layer.key: layer.lines(rows, width) for layer in layers} | links

    def step(self, tokens: Tensor, position: Tensor, label: Tensor | None, cache: Cache) -> Tensor:
        """Outputs at one pixel of each row; changes ``cache``. (R, T, G), (R,) -> (R, D)

        The vertical stack runs once a line, over the whole of it.
        """
        x = tokens.unflatten(1, self.shape[1:])  # (R, H, W, G)
        rows, width = torch.arange(len(x), device=x.device), self.shape[2]
        line, column = position // width, position % width
        begun = (column == 0).nonzero().flatten()
        if len(begun):
            above = self.seen(x[begun, line[begun] - 1][:, None])  # (A, G + 1, 1, W)
            labels = None if label is None else label[begun]
            self.vertical(_unless(line[begun] == 0, above), Lines(cache, begun, line[begun], labels))
        left = self.seen(x[rows, line, column - 1][:, None, None])  # (R, G + 1, 1, 1)
        scan = Pixels(cache, rows, line, column, label)
        return self.horizontal(_unless(column == 0, left), scan).flatten(1)


def _unless(outside: Tensor, x: Tensor) -> Tensor:
    return torch.where(outside[:, None, None, None], 0.0, x)


class ClassBias(nn.Module):
    """What a class adds to every pixel; nothing where the model is unconditional."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, channels) if classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """(A, C, H, W), (A,) -> (A, C, H, W)"""
        if self.table is None:
            return x
        return x + self.table(label)[:, :, None, None].to(x.dtype)


def gated(x: Tensor) -> Tensor:
    """tanh of one half times the sigmoid of the other (gated PixelCNN, eq. 2). (A, 2C, H, W) -> (A, C, H, W)

    The half for tanh counts half: tanh(x / 2) = 2 sigmoid(x) - 1, and one sigmoid of all is twice as fast on a CPU.
    """
    signal, gate = x.sigmoid().chunk(2, dim=1)
    return (2 * signal - 1) * gate


class GatedLayer(nn.Module):
    """One layer of both stacks (gated PixelCNN, figure 2; the class enters as in eq. 4)."""

    def __init__(self, inputs: int, channels: int, dilation: int, classes: int, key: str, first: bool) -> None:
        super().__init__()
        self.key = key
        reach, side = (2, 3) if first else (1, 1)  # lines above the input's own, pixels to each side
        self.down = CausalConv(inputs, 2 * channels, reach, side, side, dilation=dilation)
        self.right = CausalConv(inputs, 2 * channels, 0, 2 if first else 1, dilation=dilation)
        self.link = Pointwise(2 * channels, 2 * channels)
        self.out = Pointwise(channels, channels)
        self.down_class, self.right_class = ClassBias(classes, 2 * channels), ClassBias(classes, 2 * channels)
        self.residual = not first

    def vertical(self, v: Tensor, scan: Scan) -> Tensor:
        """(A, C, H, W) -> (A, C, H, W)"""
        features = self.down_class(scan.conv(self.down, v), scan.label)
        scan.tell(self.key, self.link(features))
        return gated(features)

    def horizontal(self, h: Tensor, scan: Scan) -> Tensor:
        """(A, C, H, W) -> (A, C, H, W)"""
        features = self.right_class(scan.conv(self.right, h) + scan.told(self.key), scan.label)
        update = self.out(gated(features))
        return h + update if self.residual else update


class GatedPixelCnn(PixelNetwork):
    """Gated layers at full resolution, wider windows by dilation.

    Source: van den Oord et al., 2016, Conditional Image Generation with PixelCNN Decoders,
    https://arxiv.org/abs/1606.05328.
    """

    def __init__(self, config: GatedPixelCnnConfig, spec: DataSpec, classes: int, outputs: int) -> None:
        super().__init__(spec)
        width = config.channels
        sizes = [self.inputs] + [width] * (len(config.dilations) - 1)
        self.layers = nn.ModuleList(
            GatedLayer(size, width, dilation, classes, f"link.{index}", index == 0)
            for index, (size, dilation) in enumerate(zip(sizes, config.dilations, strict=True))
        )
        self.links = {f"link.{index}": (2 * width, 0) for index in range(len(sizes))}
        self.last = nn.Sequential(nn.ReLU(), Pointwise(width, width), nn.ReLU())
        self.head = Pointwise(width, outputs)
        self.finish()

    def vertical(self, x: Tensor, scan: Scan) -> None:
        """(A, G + 1, H, W)"""
        for layer in cast("Iterable[GatedLayer]", self.layers):
            x = layer.vertical(x, scan)

    def horizontal(self, x: Tensor, scan: Scan) -> Tensor:
        """(A, G + 1, H, W) -> (A, D, H, W)"""
        for layer in cast("Iterable[GatedLayer]", self.layers):
            x = layer.horizontal(x, scan)
        return self.head(self.last(x))
