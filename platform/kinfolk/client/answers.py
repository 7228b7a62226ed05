"""What endpoints answer, as values: samples or numbers with what they took, and samples on their way."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import httpx
import numpy as np
from PIL import Image

from kinfolk.client.errors import ClientError, FaultError, NoAnswerError
from kinfolk.tiles import corners

Array = np.ndarray[Any, Any]


def images_of(array: Array) -> list[Image.Image]:
    """Pictures in grey or colour, one for each row. (N, C, H, W) uint8 -> N pictures

    Raises:
        ClientError: the array holds something else.
    """
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ClientError(f"What came is no pictures but {array.dtype} of shape {array.shape}: use .array.")
    return [Image.fromarray(each[0] if len(each) == 1 else each.transpose(1, 2, 0)) for each in array]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a task gave, and what it took."""

    array: Array  # (N, *): pictures uint8 in [0, 255], tokens int64, anything else, numbers too, float32
    model: str
    version: str
    family: str
    task: str
    seed: int  # of the first sample; the same request with this seed gives the same again
    calls: int  # of the network, for the sample that took most
    evaluations: int  # of the network, over all samples
    queued_ms: float  # in the server, before the first call
    computed_ms: float  # from there to the last
    unit: str = ""  # of numbers

    @property
    def images(self) -> list[Image.Image]:
        """The samples as pictures; raises ClientError where they are none."""
        return images_of(self.array)


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """Samples on their way."""

    array: Array  # (N, *), as of a result
    call: int  # of the network, for the sample that is furthest behind
    calls: int  # that this one takes

    @property
    def images(self) -> list[Image.Image]:
        """The samples as pictures; raises ClientError where they are none."""
        return images_of(self.array)


def _result(array: Array, facts: Mapping[str, Any]) -> Result:
    told = {each.name: each.type(facts[each.name]) for each in fields(Result) if each.name in facts}  # type: ignore[operator]
    return Result(array, **told)


def result_in(response: httpx.Response) -> Result:
    """The result that a whole answer holds.

    Raises:
        FaultError: it is no answer of Kinfolk's.
    """
    prefix = "kinfolk-"
    facts = {
        name[len(prefix) :].replace("-", "_"): value
        for name, value in response.headers.items()
        if name.startswith(prefix)
    }
    try:
        return _result(np.load(io.BytesIO(response.content), allow_pickle=False), facts)
    except (ValueError, TypeError, EOFError):
        raise FaultError(f"{response.request.url} does not answer as Kinfolk does.", response.status_code) from None


def shown_in(data: Mapping[str, Any]) -> Array:
    """The samples in an event: numbers, or a grid of pictures that is cut up. -> (N, *)"""
    shape, dtype = data["shape"], data["dtype"]
    if "samples" in data:
        return np.array(data["samples"], dtype=dtype).reshape(shape)
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image"])), formats=["PNG"]))
    grid = grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1)  # (C, H, W)
    count, _, height, width = shape
    return np.stack([grid[:, y : y + height, x : x + width] for y, x in corners(count, height, width)])


class Events:
    """Server-sent events, put together line by line.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
    """

    def __init__(self) -> None:
        self._name, self._data = "", ""
        self._done = False

    def feed(self, line: str) -> Preview | Result | None:
        """What the next line completes, if anything.

        Raises:
            FaultError: the server says that it failed, or does not answer as Kinfolk does.
        """
        field, _, value = line.partition(":")
        if field == "event":
            self._name = value.strip()
        elif field == "data":
            self._data += value
        elif not line and self._data:
            name, data, self._name, self._data = self._name, self._data, "", ""
            return self._event(name, data)
        return None

    def _event(self, name: str, text: str) -> Preview | Result:
        try:
            data = json.loads(text)
            if name == "preview":
                return Preview(shown_in(data), data["call"], data["calls"])
            if name == "done":
                self._done = True
                return _result(shown_in(data), data)
            raise FaultError(data["error"]["message"], field=data["error"]["field"] or "")
        except (ValueError, TypeError, KeyError, OSError):
            raise FaultError(f"The stream does not speak as Kinfolk does: event {name!r}.") from None

    def check_whole(self) -> None:
        """Make sure that the stream ended because all was said.

        Raises:
            NoAnswerError: it did not.
        """
        if not self._done:
            raise NoAnswerError("The stream broke off before the samples were done. Ask again.")
