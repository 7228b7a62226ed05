"""Samples as the bytes a client accepts: a PNG grid, a NumPy file without pickle, or JSON."""

import io
import json
from typing import Any

import numpy as np
from torch import Tensor

from kinfolk.contract import DataSpec
from kinfolk.pictures import draw, picturable

PNG, NPY, JSON = "image/png", "application/x-npy", "application/json"


def offered(spec: DataSpec) -> list[str]:
    """Media types samples of ``spec`` can be had in, the preferred one first."""
    return [PNG, JSON, NPY] if picturable(spec) else [JSON, NPY]


def negotiate(accept: str, offers: list[str]) -> str | None:
    """The offer an Accept header likes best, the earlier offer where it does not care; None where none will do.

    Source: RFC 9110, section 12.5.1.
    """
    weights = {kind: _quality(kind, accept) for kind in offers}
    best = max(offers, key=lambda kind: weights[kind])
    return best if weights[best] > 0 else None


def _quality(kind: str, accept: str) -> float:
    """The weight of the most specific range in ``accept`` that covers ``kind``; 0 where none does."""
    ranges = {"*/*": 0, f"{kind.partition('/')[0]}/*": 1, kind: 2}
    best, weight = -1, 0.0
    for item in (accept or "*/*").split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        specific = ranges.get(name, -1)
        if specific > best:
            best, weight = specific, _weight(parameters)
    return weight


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def as_array(samples: Tensor, spec: DataSpec) -> np.ndarray[Any, Any]:
    """Samples as a client holds them: pictures uint8 in [0, 255], tokens int64, anything else float32. (N, *)"""
    if spec.kind in ("image", "video"):
        return spec.to_uint8(samples).numpy()
    return samples.numpy() if spec.kind == "tokens" else samples.float().numpy()


def encode(samples: Tensor, spec: DataSpec, kind: str, facts: dict[str, Any]) -> bytes:
    """Samples in media type ``kind``; only JSON has room for ``facts``. (N, *) in the data's own range -> bytes"""
    if kind == PNG:
        return draw(samples, spec)
    array = as_array(samples, spec)
    if kind == JSON:
        return json.dumps(
            {**facts, "shape": array.shape, "dtype": str(array.dtype), "samples": array.tolist()}
        ).encode()
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
