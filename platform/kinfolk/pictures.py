"""Samples as pictures: a grid of images, or a scatter of two-dimensional vectors, as PNG bytes."""

import io

import torch
from PIL import Image
from torch import Tensor

from kinfolk.contract import DataSpec
from kinfolk.errors import ConfigError
from kinfolk.tiles import GAP, corners, grid

_SCATTER_PIXELS = 512
_MODES = {1: "L", 3: "RGB"}  # Pillow's names by channels


def has_levels(spec: DataSpec) -> bool:
    """Whether samples are pictures of a screen's levels; what some encoders make has their form alone."""
    return spec.kind in ("image", "video") and spec.levels is not None


def picturable(spec: DataSpec) -> bool:
    """Whether samples of ``spec`` can be drawn: grey or colour images, and vectors in the plane."""
    return (spec.kind == "image" and spec.shape[0] in (1, 3)) or (spec.kind == "vector" and spec.shape == (2,))


def tile(pictures: Tensor, columns: int | None = None) -> Tensor:
    """Pictures side by side with a thin gap. (N, C, H, W) uint8 -> (C, rows*(H+2)-2, columns*(W+2)-2) uint8"""
    count, channels, height, width = pictures.shape
    if count == 1 and columns in (None, 1):
        return pictures[0]
    rows, columns = grid(count, columns)
    canvas = torch.full((channels, rows * (height + GAP), columns * (width + GAP)), 128, dtype=torch.uint8)
    for picture, (top, left) in zip(pictures, corners(count, height, width, columns), strict=True):
        canvas[:, top : top + height, left : left + width] = picture
    return canvas[:, :-GAP, :-GAP]


def scatter(points: Tensor) -> Tensor:
    """Points of the plane as dark pixels on white, the frame fitted to them. (N, 2) -> (1, 512, 512) uint8"""
    low, high = points.amin(0), points.amax(0)
    scale = (high - low).max().clamp_min(1e-6)
    place = ((points - (low + high) / 2) / scale * 0.9 + 0.5) * (_SCATTER_PIXELS - 1)
    column, row = place.round().long().clamp(1, _SCATTER_PIXELS - 2).unbind(1)
    canvas = torch.full((1, _SCATTER_PIXELS, _SCATTER_PIXELS), 255, dtype=torch.uint8)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            canvas[0, _SCATTER_PIXELS - 1 - row + down, column + right] = 40
    return canvas


def png(picture: Tensor, scale: int = 1) -> bytes:
    """A picture as PNG, each pixel drawn ``scale`` x ``scale``. (C, H, W) uint8 with C 1 or 3 -> bytes"""
    channels, height, width = picture.shape
    image = Image.frombytes(_MODES[channels], (width, height), picture.permute(1, 2, 0).numpy().tobytes())
    if scale > 1:
        image = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def draw(samples: Tensor, spec: DataSpec, scale: int = 1, columns: int | None = None) -> bytes:
    """Samples of ``spec`` as one PNG. (N, *) in the data's own range -> bytes

    Raises:
        ConfigError: samples of this kind cannot be drawn.
    """
    if not picturable(spec):
        raise ConfigError(f"{spec.kind} samples of shape {spec.shape} cannot be drawn; ask for npy or JSON instead.")
    if spec.kind == "vector":
        return png(scatter(samples.float().cpu()))
    return png(tile(spec.to_uint8(samples).cpu(), columns), scale)
