"""What a token is: how data is turned into tokens and back.

Shapes: B batch, T positions in raster order, G tokens drawn at one position (a pixel's channels, where the network
goes pixel by pixel; else 1), C H W an image, K colours of a palette.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from kinfolk.contract import DataSpec, Progress
from kinfolk_families._shared.discretised import binarise
from kinfolk_families.autoregressive.config import AutoregressiveConfig

Uniform = Callable[[], Tensor]  # draws (B, *) in [0, 1), where turning data into tokens is random
KMEANS_ROUNDS = 20


class Tokeniser(nn.Module):
    """Levels of pixels, or tokens as they are. A subclass is another way to read a pixel."""

    of: Literal["levels", "binary", "codes"] = "levels"  # what the tokens' probability is a probability of

    def __init__(self, spec: DataSpec, group: int = 1) -> None:
        super().__init__()
        assert spec.levels is not None
        self.spec, self.vocabulary, self.group = spec, spec.levels, group
        self.length = spec.dims // group  # T

    def indices(self, x: Tensor) -> Tensor:
        """The token of each element: its nearest level. (B, *) -> (B, *) int64"""
        return self.spec.to_levels(x)

    def elements(self, indices: Tensor) -> Tensor:
        """What a token stands for. (B, *) int64 -> (B, *)"""
        return self.spec.from_levels(indices)

    def observe(self, x: Tensor, uniform: Uniform) -> Tensor:  # noqa: ARG002
        """What the model learns of x. (B, *) -> (B, T, G)"""
        return self.nearest(x)

    def nearest(self, x: Tensor) -> Tensor:
        """The tokens of x, without chance. (B, *) -> (B, T, G)"""
        return self.ordered(self.indices(x))

    def ordered(self, values: Tensor) -> Tensor:
        """Elements in the order they are drawn in: raster, channels innermost. (B, *) -> (B, T, G)"""
        raster = values.flatten(2).transpose(1, 2) if self.spec.kind == "image" else values
        return raster.reshape(len(values), self.length, self.group)

    def given(self, mask: Tensor) -> Tensor:
        """Which tokens follow from the elements in ``mask``. (B, *) bool -> (B, T, G)"""
        return self.ordered(mask)

    def picture(self, tokens: Tensor) -> Tensor:
        """The sample that tokens stand for. (B, T, G) -> (B, *)"""
        if self.spec.kind != "image":
            return self.elements(tokens.flatten(1))
        _, height, width = self.spec.shape
        pixels = tokens.reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)
        return self.elements(pixels)

    def initialise(self, x: Tensor, progress: Progress) -> None:
        """Set what follows from the first batch."""


class BinaryTokeniser(Tokeniser):
    """Pixels on or off, on with the probability of their brightness."""

    of = "binary"

    def __init__(self, spec: DataSpec, group: int) -> None:
        super().__init__(spec.model_copy(update={"levels": 2}), group)

    def observe(self, x: Tensor, uniform: Uniform) -> Tensor:
        """The tokens of x, binarised. (B, *) -> (B, T, G)"""
        return self.nearest(binarise(x, uniform()))


class PaletteTokeniser(Tokeniser):
    """Each pixel by its nearest colour of a palette that k-means finds in the first batch.

    Source: Chen et al., 2020 (ImageGPT), section 3.2, Generative Pretraining from Pixels.
    """

    of = "codes"  # tokens leave out what distinguishes a colour from its neighbours
    palette: Tensor  # (K, C)

    def __init__(self, spec: DataSpec, colours: int) -> None:
        super().__init__(spec)
        self.vocabulary, self.length = colours, spec.dims // spec.shape[0]
        greys = torch.linspace(-1, 1, colours)[:, None]
        self.register_buffer("palette", greys.repeat(1, spec.shape[0]))

    def indices(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W) int64"""
        return nearest_colour(x.movedim(1, -1), self.palette).unsqueeze(1)

    def elements(self, indices: Tensor) -> Tensor:
        """(B, 1, H, W) int64 -> (B, C, H, W)"""
        return self.palette[indices[:, 0]].movedim(-1, 1)

    def given(self, mask: Tensor) -> Tensor:
        """A pixel's token follows from all of its channels. (B, C, H, W) bool -> (B, T, 1)"""
        return self.ordered(mask.all(1, keepdim=True))

    def initialise(self, x: Tensor, progress: Progress) -> None:
        """k-means over the pixels of all workers' shares, from colours picked at random among those there are."""
        pixels = x.movedim(1, -1).flatten(0, -2)  # (P, C)
        self.palette.copy_(_picked(pixels, len(self.palette), progress))
        for _ in range(KMEANS_ROUNDS):
            self.palette.copy_(lloyd_step(pixels, self.palette, progress.all_reduce))


def nearest_colour(pixels: Tensor, palette: Tensor) -> Tensor:
    """Index of the colour at the least distance. (*, C), (K, C) -> (*)"""
    return torch.cdist(pixels.flatten(0, -2), palette).argmin(1).view(pixels.shape[:-1])


def lloyd_step(pixels: Tensor, palette: Tensor, all_reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Each colour moved to the mean of the pixels nearest to it, over all workers. (P, C), (K, C) -> (K, C)

    A colour that no pixel is nearest to stays. Source: Lloyd, 1982, Least squares quantization in PCM.
    """
    nearest = nearest_colour(pixels, palette)
    ones = torch.ones_like(pixels[:, :1])
    sums = torch.zeros(len(palette), pixels.shape[1] + 1, dtype=torch.float64, device=pixels.device)
    sums = all_reduce(sums.index_add_(0, nearest, torch.cat([pixels, ones], 1).double()))
    count = sums[:, -1:]
    return torch.where(count > 0, sums[:, :-1] / count.clamp(min=1), palette.double()).to(palette.dtype)


def _picked(pixels: Tensor, colours: int, progress: Progress) -> Tensor:
    """Colours of the data, each from one worker; equal on all. (P, C) -> (K, C)

    Those of one worker are different as far as its pixels are; two workers may pick the same colour, and of equal ones
    that no round parts the later is no pixel's token.
    """
    present = pixels.unique(dim=0)
    order = torch.randperm(len(present), generator=progress.generator, device=progress.generator.device)
    chosen = present[order[torch.arange(colours, device=order.device) % len(order)]]
    mine = torch.arange(colours, device=pixels.device) % progress.workers == progress.rank
    return progress.all_reduce(torch.where(mine[:, None], chosen, 0.0))


def make_tokeniser(config: AutoregressiveConfig, learned: DataSpec) -> Tokeniser:
    """How the model of ``config`` reads data: convolutions draw a pixel's channels together."""
    group = 1 if config.network.kind == "transformer" else learned.shape[0]
    if config.palette is not None:
        return PaletteTokeniser(learned, config.palette)
    if config.output.kind == "bernoulli":
        return BinaryTokeniser(learned, group)
    return Tokeniser(learned, group)
