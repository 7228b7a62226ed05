"""How long a caller waits: as its request says, at most as the serve file allows."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN

TIMEOUT = "Kinfolk-Timeout"  # the header with the seconds that a caller waits for an answer
DEADLINE = "kinfolk.deadline"  # of a request's scope: its Deadline, where one who had the request first has found it
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a caller leaves."""

    at: float  # seconds of the event loop's clock
    whole: bool  # it has waited as long as the serve file allows

    @classmethod
    def after(cls, seconds: float, most_s: float) -> "Deadline":
        """That of a request that comes now, whose caller waits for so many seconds of those it may."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds >= most_s)

    @property
    def left_s(self) -> float:
        """Seconds until then."""
        return self.at - asyncio.get_running_loop().time()


def timeout_in(headers: Mapping[str, str], most_s: float) -> float:
    """How many seconds the caller waits; as long as the serve file allows where it does not say.

    Raises:
        RequestError: it may not wait for so long, or has not written it as a number.
    """
    text = headers.get(TIMEOUT)
    if text is None:
        return most_s
    if not _SECONDS.fullmatch(text) or not 0 < float(text) <= most_s:
        message = f"{TIMEOUT} is {text[:SHOWN]!r}: use seconds above 0, at most {most_s:g}, such as 2.5."
        raise RequestError(TIMEOUT, message)
    return float(text)


def deadline_of(request: Request, most_s: float) -> Deadline:
    """When its caller leaves, as whoever had the request first has found it; raises as ``timeout_in`` does."""
    known: Deadline | None = request.scope.get(DEADLINE)
    return Deadline.after(timeout_in(request.headers, most_s), most_s) if known is None else known
