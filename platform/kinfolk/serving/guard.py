"""What stands before every route: the bearer token, the size of a body, and no stack trace ever leaving."""

import hmac
import json
import logging
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LOG = logging.getLogger(__name__)
_FREE = ("/healthz", "/readyz")  # a load balancer asks without a token


class RefusalError(Exception):
    """A request that is answered with an error; ``field`` names the part of it that must change."""

    def __init__(self, status: int, field: str, message: str) -> None:
        super().__init__(message)
        self.status, self.field = status, field


def refusal(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """An error as every endpoint answers it: ``{"error": {"field", "message"}}``."""
    body = json.dumps({"error": {"field": field, "message": message}}).encode()
    return Response(body, status, headers, "application/json")


class Guard:
    """ASGI middleware that lets through requests with the token, if there is one, and turns faults into a plain 500.

    ``free`` are paths that are answered without the token, beside those of health.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, free: Collection[str] = ()) -> None:
        self._app, self._free = app, frozenset((*_FREE, *free))
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        root = scope.get("root_path", "")
        if root and scope["path"] == root:  # the model's own address answers without a redirect
            scope = {**scope, "path": f"{root}/"}
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._allowed(scope):
            await self._shielded(scope, receive, send)
        else:
            text = "A bearer token is needed: send the header 'Authorization: Bearer TOKEN'."
            await refusal(401, text, "Authorization", {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._expected is None or path in self._free:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)

    async def _shielded(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            _LOG.exception("A request failed.")
            if started:
                raise
            await refusal(500, "The server failed on this request; its log has the cause.")(scope, receive, send)
