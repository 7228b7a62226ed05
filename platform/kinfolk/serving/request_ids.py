"""A name for each request, in its answer and in what is logged of it; for apps without Serve, which does the same."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
FORM = "^[A-Za-z0-9._-]{1,64}$"
_FORM = re.compile(FORM.encode())


def request_id(scope: Scope) -> str:
    """The name of a request; empty where nobody gave it one."""
    given: bytes = dict(scope["headers"]).get(_HEADER, b"")
    return given.decode("latin-1")


class RequestIds:
    """ASGI middleware that keeps the name a client gives, where it is a plain one, and otherwise makes one up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == _HEADER]
        name = given[0] if len(given) == 1 and _FORM.fullmatch(given[0]) else uuid.uuid4().hex.encode()
        others = [header for header in scope["headers"] if header[0] != _HEADER]

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (_HEADER, name)]}
            await send(message)

        await self._app({**scope, "headers": [*others, (_HEADER, name)]}, receive, named)
