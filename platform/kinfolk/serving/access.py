"""Who may ask, for what, and how often: bearer tokens with a role and a rate."""

import hmac
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, SecretStr

from kinfolk.contract import Config


class Access(Config):
    """A bearer token and how much its holder may ask."""

    name: str = Field(min_length=1, max_length=100)  # of the holder, for the log
    token: SecretStr = Field(min_length=1)
    role: Literal["sample", "admin"] = "sample"  # an admin may also ask for what is below /-/ of a model
    requests_per_s: float | None = Field(None, gt=0)  # on average, of each replica; None: as many as it takes
    burst: int = Field(20, ge=1)  # requests that may come at once


def holders(token: SecretStr | str | None) -> tuple[Access, ...]:
    """The one holder of a token that all share; nobody where there is none."""
    return () if token is None else (Access.model_validate({"name": "the holder of this token", "token": token}),)


class Bucket:
    """Tokens that come back at a steady rate: one is taken for each request."""

    def __init__(self, per_s: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._size, self._clock = per_s, size, clock
        self._left, self._at = float(size), clock()

    def wait_s(self) -> float:
        """Take one: 0; or the seconds until there is one, and none is taken."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self._per_s, self._size)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._per_s
        self._left -= 1
        return 0.0


class Gate:
    """The tokens of one server. Without any, everyone may ask."""

    def __init__(self, holders: Sequence[Access], clock: Callable[[], float] = time.monotonic) -> None:
        self._holders = tuple(holders)
        self._headers = [f"Bearer {holder.token.get_secret_value()}".encode() for holder in holders]
        self._buckets = {
            id(holder): Bucket(holder.requests_per_s, holder.burst, clock)
            for holder in self._holders
            if holder.requests_per_s is not None
        }

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return not self._holders

    def holder(self, authorization: bytes) -> Access | None:
        """Whose token a header holds; every token is compared, each in constant time."""
        found = None
        for holder, expected in zip(self._holders, self._headers, strict=True):
            if hmac.compare_digest(authorization, expected):
                found = holder
        return found

    def retry_after_s(self, holder: Access) -> int:
        """0 where the holder may ask now, and has; else the whole seconds until then."""
        bucket = self._buckets.get(id(holder))
        return 0 if bucket is None else math.ceil(bucket.wait_s())
