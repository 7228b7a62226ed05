"""What a task gave as the bytes a client accepts: a PNG grid, a NumPy file without pickle, JSON, or events."""

import base64
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from kinfolk.abilities import Ability
from kinfolk.contract import DataSpec
from kinfolk.pictures import draw, has_levels, picturable

INLINE_ELEMENTS = 65_536  # larger answers are encoded on another thread, so that they hold up nobody
PNG, NPY, JSON, EVENTS = "image/png", "application/x-npy", "application/json", "text/event-stream"


def _drawable(spec: DataSpec | None) -> bool:
    """Whether what a task gives is drawn; latents that have the form of a picture are not."""
    return spec is not None and picturable(spec) and (spec.kind != "image" or has_levels(spec))


def offered(ability: Ability) -> tuple[str, ...]:
    """Media types in which what a task gives can be had, the preferred one first."""
    drawn = [PNG] if _drawable(ability.gives) else []
    return (*drawn, JSON, NPY, *([EVENTS] if ability.samples else []))


@lru_cache(1024)
def negotiate(accept: str, offers: tuple[str, ...]) -> str | None:
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


def as_array(samples: Tensor, spec: DataSpec | None) -> np.ndarray[Any, Any]:
    """What a client holds: pictures as uint8 in [0, 255], tokens as int64, anything else as float32. (N, *)"""
    if spec is not None and has_levels(spec):
        return spec.to_uint8(samples).numpy()
    return samples.numpy() if spec is not None and spec.kind == "tokens" else samples.float().numpy()


def encode(samples: Tensor, spec: DataSpec | None, kind: str, facts: Mapping[str, Any]) -> bytes:
    """What a task gave in media type ``kind``; only JSON has room for ``facts``. (N, *) in its own range -> bytes

    ``spec`` is of samples or latents; None: numbers, which JSON calls values. Values that are not finite, which it
    cannot write, are null there.
    """
    if kind == PNG:
        assert spec is not None
        return draw(samples, spec)
    array = as_array(samples, spec)
    if kind == JSON:
        name = "values" if spec is None else "samples"
        told = {**facts, "shape": array.shape, "dtype": str(array.dtype), name: _listed(array)}
        return json.dumps(told, allow_nan=False).encode()
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _listed(array: np.ndarray[Any, Any]) -> Any:
    finite = np.isfinite(array)
    if finite.all():
        return array.tolist()
    told = array.astype(object)
    told[~finite] = None
    return told.tolist()


def event(name: str, facts: Mapping[str, Any]) -> bytes:
    """A server-sent event. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"event: {name}\ndata: {json.dumps(facts, allow_nan=False)}\n\n".encode()


def shown(samples: Tensor, spec: DataSpec | None) -> dict[str, Any]:
    """Samples as a part of an event: drawn in base64 where they can be, and numbers where those are not in it."""
    array = as_array(samples, spec)
    told: dict[str, Any] = {"shape": array.shape, "dtype": str(array.dtype)}
    if spec is not None and _drawable(spec):
        told["image"] = base64.b64encode(draw(samples, spec)).decode()
    if spec is None or not (_drawable(spec) and has_levels(spec)):
        told["samples"] = _listed(array)
    return told
