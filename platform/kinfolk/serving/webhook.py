"""What the registry says when an alias moves: a signed message, and those who wait for one.

Source of the signature: MLflow's webhooks, https://mlflow.org/docs/latest/ml/webhooks, after Standard Webhooks.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kinfolk.contract import RequestError
from kinfolk.serving.refusals import RefusalError
from kinfolk.serving.schema import parse_json

ADDRESS = "/v1/registry/events"
_ALIAS_MOVED = "model_version_alias"  # the entity of a message
_OLDEST_S = 300.0  # of a message, so that one that was overheard cannot be sent again for ever


def genuine(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether a message was signed with ``secret``, and lately; ``now_s`` in Unix time."""
    sent, name = headers.get("x-mlflow-timestamp", ""), headers.get("x-mlflow-delivery-id", "")
    signed = b".".join([name.encode(), sent.encode(), body])
    wanted = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())
    given = headers.get("x-mlflow-signature", "").encode()
    fresh = sent.isascii() and sent.isdigit() and abs(now_s - int(sent[:12])) <= _OLDEST_S
    return hmac.compare_digest(given, b"v1," + wanted) and fresh


def moved_model(values: Mapping[str, Any]) -> str | None:
    """The model whose alias has moved, by what a message says; None of messages of other things.

    Raises:
        RequestError: it says so of no model.
    """
    if values.get("entity") != _ALIAS_MOVED:
        return None
    data = values.get("data")
    name = data.get("name") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise RequestError("data", "data: a message about an alias names its model in data.name.")
    return name


class Board:
    """How often the aliases of each model have moved; used in one event loop."""

    def __init__(self) -> None:
        self._moves: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def move(self, name: str) -> None:
        """An alias of a model has moved."""
        async with self._changed:
            self._moves[name] += 1
            self._changed.notify_all()

    async def wait(self, name: str, seen: int, timeout_s: float) -> int:
        """How often they have moved, once that is not ``seen``, or after ``timeout_s``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._moves[name] != seen)
        return self._moves[name]


class Inbox:
    """Messages of the registry, passed on to those who wait."""

    def __init__(self, secret: str, board: Board) -> None:
        self._secret, self._board = secret, board

    async def take(self, headers: Mapping[str, str], body: bytes) -> None:
        """Pass a message on.

        Raises:
            RefusalError: it is not signed, or too old.
            RequestError: it is not what such messages are.
        """
        if not genuine(self._secret, headers, body, time.time()):
            raise RefusalError(401, "X-MLflow-Signature", "The message is not signed with this server's secret.")
        name = moved_model(parse_json(body))
        if name is not None:
            await self._board.move(name)
