"""One request of the API as a value, made from what a user asks for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from kinfolk.client.errors import RefusedError
from kinfolk.client.files import files_of

JSON, NPY, EVENTS = "application/json", "application/x-npy", "text/event-stream"
LISTING = "/v1/models"
SEEDS = 2**32  # range of the seeds that are drawn for callers who give none
_FILES = ("x", "mask")
_BY_ROW = {"log_prob", "encode", "decode", "reconstruct", "complete", "anomaly_score", "classify"}
"""Tasks that take the seed 0 where none is given: they answer alike again as they are."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request; equal calls ask for the same, unless they leave the seed to the server."""

    path: str
    accept: str = JSON
    method: str = "GET"
    settings: tuple[tuple[str, str], ...] = ()  # name and value, the value as JSON
    files: tuple[tuple[str, bytes], ...] = ()  # field and content
    query: tuple[tuple[str, str], ...] = ()

    def request(self, build: Callable[..., httpx.Request], etag: str | None = None) -> httpx.Request:
        """The request as ``build``, a client's ``build_request``, makes it; ``etag`` is of an answer that is held."""
        headers = {"Accept": self.accept} | ({"If-None-Match": etag} if etag else {})
        body: dict[str, Any] = {}
        if self.files:
            body = {"data": dict(self.settings), "files": list(self.files)}
        elif self.method == "POST":
            headers["Content-Type"] = JSON
            body = {"content": "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in self.settings) + "}"}
        return build(self.method, self.path, params=dict(self.query) or None, headers=headers, **body)


def path_of(model: str, task: str = "") -> str:
    """Where a model, or one task of it, answers."""
    return f"{LISTING}/{quote(model, safe='')}/{quote(task, safe='')}"


def task_call(model: str, task: str, settings: Mapping[str, Any], randbelow: Callable[[int], int]) -> Call:
    """The request for one task; settings that are None are left out.

    Where neither ``seed`` nor ``seeds`` is given and the server would draw one, it is drawn here, so that a repeat asks
    for the same samples.

    Raises:
        OSError: a path cannot be read.
        RefusedError: a setting that is no JSON, a sample that is no file or array.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if task not in _BY_ROW and not given.keys() & {"seed", "seeds"}:
        given["seed"] = randbelow(SEEDS)
    files = tuple((name, content) for name in _FILES if name in given for content in files_of(name, given[name]))
    told = tuple((name, _json(name, value)) for name, value in sorted(given.items()) if name not in _FILES)
    return Call(path_of(model, task), NPY, "POST", told, files)


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{name}={value!r} cannot be sent: {error}.", field=name) from None


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
