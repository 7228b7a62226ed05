"""What both clients are given and decide alike: the address, the token, when to try again, what to keep."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx

from kinfolk.client.calls import EVENTS, Call, task_call
from kinfolk.client.errors import error_in, no_answer
from kinfolk.client.memory import Memory
from kinfolk.client.retries import Got, Retries, retry_after_s
from kinfolk.errors import ConfigError

_CONNECT_S = 10.0  # to reach the server
_GRAIN = 2**32  # of the jitter
_ANSWERS = (httpx.codes.OK, httpx.codes.NOT_MODIFIED)


class Terms:
    """The decisions of a client; nothing here waits, sends or receives."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout_s: float,
        retries: int | Retries,
        remember: int,
        randbelow: Callable[[int], int],
    ) -> None:
        self.http: Mapping[str, Any] = {
            "base_url": checked(url),
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        }
        self.memory = Memory(remember)
        self._retries = Retries(retries) if isinstance(retries, int) else retries
        self._randbelow = randbelow

    def call(self, model: str, task: str, settings: Mapping[str, Any]) -> Call:
        """The request for one task; raises as ``task_call``."""
        return task_call(model, task, settings, self._randbelow)

    def stream(self, model: str, task: str, previews: int, settings: Mapping[str, Any]) -> Call:
        """The same request with the samples seen on their way."""
        return replace(self.call(model, task, settings), accept=EVENTS, query=(("previews", str(previews)),))

    def wait_s(self, tried: int, got: Got) -> float | None:
        """Seconds until the next try; None where what was got is final."""
        return self._retries.wait_s(tried, got, self._randbelow(_GRAIN) / _GRAIN, datetime.now(UTC))

    def opened(self, got: Got) -> httpx.Response:
        """The answer whose body is to be read.

        Raises:
            ClientError: it is an error, or there is none.
        """
        if isinstance(got, httpx.RequestError):
            raise no_answer(got) from None
        if got.status_code not in _ANSWERS:
            raise error_in(got, retry_after_s(got, datetime.now(UTC)))
        return got


def checked(url: str) -> str:
    """The address of a server, if it is one.

    Raises:
        ConfigError: it is not.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"{url!r} is no address of a server: use one such as http://127.0.0.1:8000.")
    return url
