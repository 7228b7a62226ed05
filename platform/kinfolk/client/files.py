"""Samples and masks that a user holds, as the files that a request brings: pictures as PNG, all else as .npy."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kinfolk.client.errors import RefusedError

Samples = Any
"""A PIL image, an array, a path, the bytes of a file, or a list of these.

Arrays are as the model's samples: pictures uint8 (C, H, W) or (N, C, H, W), tokens whole numbers, anything else real
ones. An array of bools is a mask of pictures, true where they are given. Nested lists of numbers are taken as arrays.
"""

_FILE = (Image.Image, np.ndarray, str, Path, bytes)


def files_of(field: str, given: Samples) -> list[bytes]:
    """The contents of the files that ``given`` stands for.

    Raises:
        OSError: a path cannot be read.
        RefusedError: anything else that is no file, picture or array of numbers.
    """
    several = isinstance(given, Sequence) and not isinstance(given, _FILE) and all(map(_is_file, given))
    return [_file(field, each) for each in given] if several else [_file(field, given)]


def _is_file(given: Samples) -> bool:
    return isinstance(given, _FILE) or hasattr(given, "__array__")


def _file(field: str, given: Samples) -> bytes:
    if isinstance(given, bytes):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Path(given).read_bytes()
    return _png(field, given) if isinstance(given, Image.Image) else _npy(field, given)


def _png(field: str, image: Image.Image) -> bytes:
    out = io.BytesIO()
    try:
        image.save(out, "PNG")
    except OSError:
        text = f"{field} is a picture of mode {image.mode}, which PNG does not have: convert it to 'L' or 'RGB' first."
        raise RefusedError(text, field=field) from None
    return out.getvalue()


def _npy(field: str, given: Any) -> bytes:
    try:
        array = np.asarray(given)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        text = (
            f"{field} is {type(given).__name__}: give a picture, an array of numbers, a path, bytes, or a list of them."
        )
        raise RefusedError(text, field=field)
    out = io.BytesIO()
    np.save(out, array * np.uint8(255) if array.dtype.kind == "b" else array, allow_pickle=False)
    return out.getvalue()
