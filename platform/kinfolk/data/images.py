"""One image file, of any size and mode, as a square of 8-bit levels."""

from pathlib import Path
from typing import cast

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others start programs or fetch files
LARGEST_PIXELS = 2**26  # 8192 x 8192; a larger picture is taken for a decompression bomb
_LARGEST_16_BIT = 65535


class UnreadableError(Exception):
    """A file that is no usable image; the message says why."""


def read_square(path: Path, size: int, channels: int) -> Tensor:
    """The picture's central square, turned upright, resized without aliasing. -> (channels, size, size) uint8

    Transparent pictures are laid on white; 16-bit ones are scaled to 8 bits; of an animation the first frame counts.

    Raises:
        UnreadableError: the file is empty, cut short, no image, too large, or of a pixel type without a known range.
    """
    if not path.stat().st_size:
        raise UnreadableError("empty, 0 bytes")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image)
            picture = _square(_plain(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB"), size)
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError("no image of a known format") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise UnreadableError(str(error) or type(error).__name__) from None
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, channels).permute(2, 0, 1)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > LARGEST_PIXELS:
        raise UnreadableError(f"{image.width}x{image.height} pixels, at most {LARGEST_PIXELS} are decoded")


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The picture in 8 bits without transparency."""
    if image.mode == "F":
        raise UnreadableError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image.convert("I")).convert(mode)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    return image.convert(mode)


def _from_16_bits(image: Image.Image) -> Image.Image:
    low, high = cast(tuple[int, int], image.getextrema())
    if low < 0 or high > _LARGEST_16_BIT:
        raise UnreadableError(f"pixels from {low} to {high} fit neither 8 nor 16 bits")
    return image.point(lambda value: value * (255 / _LARGEST_16_BIT) + 0.5).convert("L")


def _square(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
