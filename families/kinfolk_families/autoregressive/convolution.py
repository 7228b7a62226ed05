"""Causal convolutions, and the three ways to run a network of them: over whole pictures, by lines, by pixels.

A network is written once. Its pointwise parts never ask where they are; wherever neighbours matter it asks a *scan*,
which finds them in the picture itself (training) or in a cache of the last lines (sampling). A *vertical* stack sees
the lines above and is scanned by lines, a *horizontal* one sees the pixels to the left too and is scanned by pixels.

Masked kernels are never multiplied by their zeros: a kernel covers what may be seen, padded at its far sides.
Sources: van den Oord et al., 2016, https://arxiv.org/abs/1606.05328; Ramachandran et al., 2017 (caches),
https://arxiv.org/abs/1704.06001. Shapes: R rows being sampled, A of them active, C channels, H W pixels.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Cache = MutableMapping[str, Tensor]  # (R, *) each, changed in place


class CausalConv(nn.Conv2d):
    """A convolution whose window ends with its own line and reaches ``right`` pixels beyond its own column."""

    key: str  # in caches

    def __init__(
        self,
        inputs: int,
        outputs: int,
        above: int,
        left: int,
        right: int = 0,
        *,
        stride: int = 1,
        dilation: int = 1,
        halvings: int = 0,  # from the picture's resolution to that of the input
    ) -> None:
        super().__init__(inputs, outputs, (above + 1, left + 1 + right), stride, dilation=dilation)
        self.halvings = halvings
        self.above, self.left, self.right = above * dilation, left * dilation, right * dilation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)"""
        return super().forward(F.pad(x, (self.left, self.right, self.above, 0)))

    def lines(self, rows: int, width: int) -> Tensor:
        """What is remembered of the input: as many lines as the window is high, with margins, of R pictures W wide."""
        width = self.left + (width >> self.halvings) + self.right
        return self.weight.new_zeros(rows, self.in_channels, self.above + 1, width)

    def inside(self, window: Tensor) -> Tensor:
        """The outputs of a line whose window is all there. (A, C, above + 1, W) -> (A, C', 1, W')"""
        return super().forward(window)

    def at(self, taps: Tensor) -> Tensor:
        """The output of a pixel from what its kernel meets. (A, kernel height, kernel width, C) -> (A, C', 1, 1)"""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # a view: weights lie with channels innermost
        return F.linear(taps.flatten(1), weight, self.bias)[:, :, None, None]


class Pointwise(nn.Conv2d):
    """A linear map of each pixel's channels; of a single pixel a matrix product, which is quicker to call."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(A, C, H, W) -> (A, C', H, W)"""
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class Upsample(nn.Module):
    """Each pixel becomes a block of two by two. (B, C, H, W) -> (B, C', 2H, 2W)"""

    key: str  # in caches

    def __init__(self, inputs: int, outputs: int, halvings: int) -> None:
        super().__init__()
        self.spread, self.outputs = Pointwise(inputs, 4 * outputs), outputs
        self.halvings = halvings  # from the picture's resolution to that of the output

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)"""
        return F.pixel_shuffle(self.spread(x), 2)

    def lines(self, rows: int, width: int) -> Tensor:
        """What is remembered of the output: the two lines made last, of R pictures W wide."""
        return self.spread.weight.new_zeros(rows, self.outputs, 2, width >> self.halvings)


class Scan(Protocol):
    """Where a network stands in the pictures it runs over, and what it finds there."""

    @property
    def label(self) -> Tensor | None:
        """(A,) of the rows that are active."""

    @property
    def generator(self) -> Generator | None:
        """Of dropout; None leaves everything in."""

    def conv(self, layer: CausalConv, x: Tensor) -> Tensor:
        """``layer`` over ``x`` and its neighbours."""

    def halve(self, layer: CausalConv, x: Tensor) -> tuple[Tensor, Self | None]:
        """The strided ``layer``, and the scan at half the resolution; None where no pixel of it begins."""

    def double(self, layer: Upsample, coarse: Tensor, below: Self | None) -> Tensor:
        """``layer`` over what the scan ``below`` made, at this scan's place."""

    def tell(self, key: str, x: Tensor) -> None:
        """Leave ``x`` of the vertical stack for the horizontal one."""

    def told(self, key: str) -> Tensor:
        """What the vertical stack left at this place."""


@dataclass(slots=True)
class Whole:
    """All positions at once: neighbours are in the picture itself."""

    label: Tensor | None = None
    generator: Generator | None = None
    links: dict[str, Tensor] = field(default_factory=dict)

    def conv(self, layer: CausalConv, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)"""
        return layer(x)

    def halve(self, layer: CausalConv, x: Tensor) -> tuple[Tensor, Self]:
        """(B, C, H, W) -> (B, C', H/2, W/2)"""
        return layer(x), self

    def double(self, layer: Upsample, coarse: Tensor, below: Self | None) -> Tensor:  # noqa: ARG002
        """(B, C, H/2, W/2) -> (B, C', H, W)"""
        return layer(coarse)

    def tell(self, key: str, x: Tensor) -> None:
        """Keep it."""
        self.links[key] = x

    def told(self, key: str) -> Tensor:
        """(B, C, H, W)"""
        return self.links[key]


@dataclass(frozen=True, slots=True)
class Lines:
    """One line of each active row; the lines above it are in the cache."""

    cache: Cache
    rows: Tensor  # (A,) which rows of the cache
    line: Tensor  # (A,)
    label: Tensor | None = None
    generator: None = None

    def _window(self, layer: CausalConv, x: Tensor) -> Tensor:
        above = self.cache[layer.key][self.rows][:, :, 1:]
        window = torch.cat([above, F.pad(x, (layer.left, layer.right))], dim=2)
        self.cache[layer.key][self.rows] = window
        return window

    def conv(self, layer: CausalConv, x: Tensor) -> Tensor:
        """(A, C, 1, W) -> (A, C', 1, W)"""
        return layer.inside(self._window(layer, x))

    def halve(self, layer: CausalConv, x: Tensor) -> tuple[Tensor, Self | None]:
        """(A, C, 1, W) -> (A', C', 1, W/2) of the rows at an even line"""
        window, due = self._window(layer, x), (self.line % 2 == 0).nonzero().flatten()
        return layer.inside(window[due]), self._coarser(due) if len(due) else None

    def _coarser(self, due: Tensor) -> Self:
        label = None if self.label is None else self.label[due]
        return replace(self, rows=self.rows[due], line=self.line[due] // 2, label=label)

    def double(self, layer: Upsample, coarse: Tensor, below: Self | None) -> Tensor:
        """(A', C, 1, W/2) -> (A, C', 1, W)"""
        if below is not None:
            self.cache[layer.key][below.rows] = layer(coarse)
        return self.cache[layer.key][self.rows, :, self.line % 2].unsqueeze(2)

    def tell(self, key: str, x: Tensor) -> None:
        """Keep the line until its pixels are drawn."""
        self.cache[key][self.rows] = x.squeeze(2)

    def told(self, key: str) -> Tensor:
        """(A, C, 1, W)"""
        return self.cache[key][self.rows].unsqueeze(2)


@dataclass(frozen=True, slots=True)
class Pixels:
    """One pixel of each active row; the lines above it and the pixels to its left are in the cache."""

    cache: Cache
    rows: Tensor  # (A,) which rows of the cache
    line: Tensor  # (A,)
    column: Tensor  # (A,)
    label: Tensor | None = None
    generator: None = None

    def _taps(self, layer: CausalConv, x: Tensor) -> Tensor:
        lines, begun = self.cache[layer.key], self.rows[self.column == 0]
        if layer.above and len(begun):
            lines[begun, :, :-1] = lines[begun, :, 1:]
        lines[self.rows, :, -1, layer.left + self.column] = x[:, :, 0, 0]
        down, across = layer.dilation
        columns = self.column[:, None] + torch.arange(0, layer.left + 1, across, device=x.device)
        return lines[:, :, ::down][self.rows[:, None], :, :, columns].permute(0, 3, 1, 2)

    def conv(self, layer: CausalConv, x: Tensor) -> Tensor:
        """(A, C, 1, 1) -> (A, C', 1, 1)"""
        return layer.at(self._taps(layer, x))

    def halve(self, layer: CausalConv, x: Tensor) -> tuple[Tensor, Self | None]:
        """(A, C, 1, 1) -> (A', C', 1, 1) of the rows at an even line and column"""
        taps = self._taps(layer, x)
        due = ((self.line % 2 == 0) & (self.column % 2 == 0)).nonzero().flatten()
        return layer.at(taps[due]), self._coarser(due) if len(due) else None

    def _coarser(self, due: Tensor) -> Self:
        label = None if self.label is None else self.label[due]
        line, column = self.line[due] // 2, self.column[due] // 2
        return replace(self, rows=self.rows[due], line=line, column=column, label=label)

    def double(self, layer: Upsample, coarse: Tensor, below: Self | None) -> Tensor:
        """(A', C, 1, 1) -> (A, C', 1, 1)"""
        lines = self.cache[layer.key]
        if below is not None:
            columns = 2 * below.column[:, None] + torch.arange(2, device=coarse.device)  # (A', 2)
            lines[below.rows[:, None], :, :, columns] = layer(coarse).permute(0, 3, 1, 2)
        return lines[self.rows, :, self.line % 2, self.column][:, :, None, None]

    def tell(self, key: str, x: Tensor) -> None:
        """The horizontal stack tells nobody."""

    def told(self, key: str) -> Tensor:
        """(A, C, 1, 1)"""
        return self.cache[key][self.rows, :, self.column][:, :, None, None]
