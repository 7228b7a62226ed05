"""Samples that a request brings: pictures and arrays as files, in base64 or as they are, or numbers in JSON.

Nothing is unpacked before its header says that it is no larger than what the model takes.
"""

import base64
import binascii
import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kinfolk.contract import DataSpec, RequestError
from kinfolk.judge import as_shown
from kinfolk.pictures import has_levels, picturable

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # eight bits a channel or fewer
_NPY = b"\x93NUMPY"
_HEADER_BYTES = 10_000  # of a NumPy file


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What the numbers of a sample may be."""

    kinds: str  # NumPy's letters of array types
    most: int | None  # from 0; None: any real number
    words: str

    @classmethod
    def of(cls, spec: DataSpec) -> "_Allowed":
        if not has_levels(spec) and spec.kind != "tokens":
            return cls("fiu", None, "real numbers")
        most = 255 if has_levels(spec) else (spec.levels or 1) - 1
        return cls("iu", most, f"whole numbers from 0 to {most}")


def read_samples(field: str, value: Any, spec: DataSpec, max_n: int) -> Tensor:
    """Samples of ``spec`` in its own range, from one file, several, or numbers. -> (N, *shape)

    Pictures are files of PNG, JPEG or WebP, or levels from 0 to 255; tokens whole numbers; all else real numbers.
    Several pictures in numbers, and arrays of ``.npy``, have a row dimension; a single one may be given without.

    Raises:
        RequestError: ``field`` is none of these, has another size, or holds values out of range.
    """
    files = [value] if isinstance(value, (str, bytes)) else value
    if isinstance(files, list) and files and all(isinstance(each, (str, bytes)) for each in files):
        if len(files) > max_n:
            raise RequestError(field, f"{field} has {len(files)} files: give at most {max_n}.")
        x = torch.cat([_file(field, each, spec, max_n) for each in files])
    else:
        x = _numbers(field, value, spec, max_n)
    if len(x) > max_n:
        raise RequestError(field, f"{field} has {len(x)} samples: give at most {max_n}.")
    return x


def _file(field: str, value: str | bytes, spec: DataSpec, max_n: int) -> Tensor:
    content = value if isinstance(value, bytes) else _unpacked(field, value)
    if content.startswith(_NPY):
        return _array(field, content, spec, max_n)
    if not (has_levels(spec) and picturable(spec)):
        raise RequestError(field, f"{field} is no .npy file; {spec.kind} samples are given as one, or as numbers.")
    return _picture(field, content, spec)


def _unpacked(field: str, text: str) -> bytes:
    _, comma, tail = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        return base64.b64decode(tail if comma or not text.startswith("data:") else "", validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(field, f"{field} is not base64: send a file's bytes in base64, or numbers.") from None


def _picture(field: str, content: bytes, spec: DataSpec) -> Tensor:
    """A picture file of the model's size; colours must be grey where the model's pictures are. -> (1, C, H, W)"""
    channels, height, width = spec.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are compared here
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            _check_picture(field, image, width, height)
            pixels = torch.from_numpy(np.array(image.convert("RGBA")))  # (H, W, 4)
    except Image.DecompressionBombError:
        raise RequestError(field, f"{field} is a picture of far too many pixels: use {width}x{height}.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise RequestError(field, f"{field} is no readable PNG, JPEG or WebP picture, nor a .npy file.") from None
    if bool((pixels[..., 3] < 255).any()):
        raise RequestError(field, f"{field} is a picture with transparent parts: lay it on a background first.")
    colours = pixels[..., :3].permute(2, 0, 1)
    if channels == 1 and bool((colours != colours[:1]).any()):
        raise RequestError(field, f"{field} is a picture in colour; this model's pictures are grey: convert it first.")
    return _from_screen(colours[:channels], spec)[None]


def _check_picture(field: str, image: Image.Image, width: int, height: int) -> None:
    """What the header says, before a pixel is unpacked."""
    if image.size != (width, height):
        got, wanted = "x".join(map(str, image.size)), f"{width}x{height}"
        raise RequestError(field, f"{field} is a picture of {got} pixels: this model takes {wanted}. Scale it first.")
    if image.mode not in _MODES or getattr(image, "n_frames", 1) != 1:
        raise RequestError(field, f"{field} is a picture of mode {image.mode}: use one still in 8-bit grey or RGB.")


def _array(field: str, content: bytes, spec: DataSpec, max_n: int) -> Tensor:
    """A ``.npy`` file, whose header is looked at first. No pickle."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=_HEADER_BYTES)
    except Exception:  # NumPy evaluates what a header says, which fails in many ways: with a TokenError, for one
        raise RequestError(field, f"{field} is no readable .npy file.") from None
    _check_shape(field, shape, spec, max_n)
    allowed = _Allowed.of(spec)
    if dtype.kind not in allowed.kinds or dtype.itemsize > 8:
        raise RequestError(field, f"{field} holds {dtype}: use {allowed.words}.")
    if len(content) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise RequestError(field, f"{field} is a .npy file of another length than its header says.")
    stream.seek(0)
    return _checked(field, np.load(stream, allow_pickle=False), spec)


def _numbers(field: str, value: Any, spec: DataSpec, max_n: int) -> Tensor:
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array("")
    allowed = _Allowed.of(spec)
    if array.dtype.kind not in allowed.kinds:
        raise RequestError(field, f"{field} must be a file in base64, or {allowed.words} in lists of equal length.")
    _check_shape(field, array.shape, spec, max_n)
    return _checked(field, array, spec)


def _check_shape(field: str, shape: tuple[int, ...], spec: DataSpec, max_n: int) -> None:
    rows = shape[: -len(spec.shape)]
    if shape[len(rows) :] != spec.shape or len(rows) > 1 or not all(1 <= n <= max_n for n in rows):
        wanted = f"{spec.shape} or (1 to {max_n}, {', '.join(map(str, spec.shape))})"
        raise RequestError(field, f"{field} has shape {shape}: use {wanted}.")


def _checked(field: str, array: "np.ndarray[Any, Any]", spec: DataSpec) -> Tensor:
    """Rows in the data's own range, all of them within it."""
    rows, allowed = array.reshape(-1, *spec.shape), _Allowed.of(spec)
    if allowed.most is not None:
        if rows.min() < 0 or rows.max() > allowed.most:
            raise RequestError(field, f"{field} holds values outside 0 to {allowed.most}: use {allowed.words}.")
        x = torch.from_numpy(rows.astype(np.int64))
        return _from_screen(x, spec) if has_levels(spec) else x
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        x = torch.from_numpy(rows.astype(np.float32))
    if not bool(x.isfinite().all()):
        raise RequestError(field, f"{field} holds values that are not finite in float32.")
    return x


def _from_screen(levels: Tensor, spec: DataSpec) -> Tensor:
    """Levels of a screen, 0 to 255, as the nearest that the data has."""
    return as_shown(levels.float() / 127.5 - 1, spec)


def read_mask(field: str, value: Any, spec: DataSpec, max_n: int) -> Tensor:
    """What is given of pictures: 1 where they are, 0 where they are asked for. -> (N, *shape)

    A picture is white where given and black where asked for; numbers are 255 (or 1, where samples are no pictures)
    and 0. One for a channel is one for all of them.

    Raises:
        RequestError: as ``read_samples``, or it holds anything else.
    """
    grey = has_levels(spec)
    shape = (1, *spec.shape[1:]) if grey else spec.shape
    plain = DataSpec(kind="image", shape=shape, levels=256) if grey else DataSpec(kind="tokens", shape=shape, levels=2)
    mask = read_samples(field, value, plain, max_n).float()
    mask = (mask + 1) / 2 if grey else mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise RequestError(field, f"{field} has grey parts: use white where x is given, black where it is asked for.")
    return mask.expand(len(mask), *spec.shape)
