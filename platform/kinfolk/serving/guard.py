"""What stands before every route: who may ask, and no stack trace ever leaving."""

import logging
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinfolk.errors import SHOWN
from kinfolk.serving.access import Access, Gate
from kinfolk.serving.origins import stranger
from kinfolk.serving.refusals import fault, refusal
from kinfolk.serving.request_ids import request_id

_LOG = logging.getLogger(__name__)
HEALTH = ("/healthz", "/readyz")  # a load balancer asks without a token
ADMIN = "/-/"  # what is below it takes a token of the role admin
_ADMITTED = "kinfolk.admitted"  # of a request that another guard has let through

_NO_ADMIN = (
    "This takes a token of the role admin, and the server has no tokens: "
    "set api_tokens: [{name: NAME, token: TOKEN, role: admin}] in its settings. Everyone else will then need one too."
)


def path_in_app(scope: Scope) -> str:
    """The path within the app."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class Guard:
    """ASGI middleware that lets through those who may ask, and turns faults into a plain 500.

    ``free`` are paths that are read without a token, beside those of health, and ``signed`` those to which one may post
    without; forms on pages of other sites than ``origins`` cannot make the server work.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        free: Collection[str] = (),
        origins: Collection[str] = (),
        signed: Collection[str] = (),
    ) -> None:
        self._app, self._gate, self._origins = app, gate, origins
        read = frozenset((*HEALTH, *free))
        self._free = {"GET": read, "HEAD": read, "POST": frozenset(signed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        root = scope.get("root_path", "")
        if root and scope["path"] == root:  # the model's own address answers without a redirect
            scope = {**scope, "path": f"{root}/"}
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif refused := self._refused(scope):
            await refused(scope, receive, send)
        else:
            await self._shielded({**scope, _ADMITTED: True}, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        """What is answered to those who may not ask, or not yet; nothing where another guard has let them through."""
        if scope.get(_ADMITTED):
            return None
        path, headers = path_in_app(scope), dict(scope["headers"])
        if scope["method"] == "POST" and (site := stranger(headers, self._origins)):
            text = f"A form on a page of {site[:SHOWN]!r} may not ask this: the server's cors_origins has no such site."
            return refusal(403, text, "Origin")
        if self._gate.open:
            return refusal(403, _NO_ADMIN, "Authorization") if ADMIN in path else None
        if path in self._free.get(scope["method"], ()):
            return None
        holder = self._gate.holder(headers.get(b"authorization", b""))
        if holder is None:
            text = "A bearer token is needed: send the header 'Authorization: Bearer TOKEN'."
            return refusal(401, text, "Authorization", {"WWW-Authenticate": "Bearer"})
        return self._refused_to(holder, path)

    def _refused_to(self, holder: Access, path: str) -> Response | None:
        if ADMIN in path and holder.role != "admin":
            text = f"{holder.name} has the role {holder.role}; this takes a token of the role admin."
            return refusal(403, text, "Authorization")
        wait_s = self._gate.retry_after_s(holder)
        if not wait_s:
            return None
        text = f"{holder.name} may ask {holder.requests_per_s:g} times a second: try again in {wait_s} s."
        return refusal(429, text, "Authorization", {"Retry-After": str(wait_s)})

    async def _shielded(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = finished = False

        async def watched(message: Message) -> None:
            nonlocal started, finished
            started, finished = True, message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            _LOG.exception("Request %s failed.", request_id(scope))
            if started and not finished:
                raise
            if not started:
                await fault()(scope, receive, send)
