"""The HTTP face of models that share a replica, each in memory for as long as a request of it is answered."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kinfolk.serving.access import Access
from kinfolk.serving.app import Guarded, bare_app, endpoint_app
from kinfolk.serving.bodies import read_body
from kinfolk.serving.deadlines import DEADLINE, deadline_of
from kinfolk.serving.directory import Listing, add_models
from kinfolk.serving.guard import ADMIN, HEALTH, path_in_app
from kinfolk.serving.host import ModelHost
from kinfolk.serving.refusals import no_task, refused
from kinfolk.serving.shared import SharedModels

_LOOK, _SCHEMA = f"{ADMIN}look", "/openapi.json"  # what a model must be loaded for, beside its tasks


def _takes_model(host: ModelHost, method: str, path: str) -> bool:
    """Whether the model must be in memory to answer.

    Raises:
        RefusalError: it is not known to have such a task.
    """
    task = path[1:]
    if method != "POST" or path == _LOOK or not task or "/" in task:
        return (method, path) in {("POST", _LOOK), ("GET", _SCHEMA), ("HEAD", _SCHEMA)}
    if path in HEALTH or (host.tasks and task not in host.tasks):
        raise no_task(host.served.name, task, host.tasks)
    return True


def _after(body: bytes, receive: Receive) -> Receive:
    """What is received once the body has been read: the body, as one message, then what comes after it."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Message:
        message = next(messages, None)
        return await receive() if message is None else message

    return received


class _ByModel:
    """What is asked of a shared model goes to its app, for so long held in memory; anything else to ``rest``."""

    def __init__(self, pool: SharedModels, apps: Mapping[str, ASGIApp], rest: ASGIApp) -> None:
        self._pool, self._apps, self._rest = pool, apps, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = path_in_app(scope)[1:].partition("/")[0] if scope["type"] == "http" else ""
        if name not in self._apps:
            await self._rest(scope, receive, send)
            return
        scope = {**scope, "root_path": f"{scope.get('root_path', '')}/{name}"}
        async with AsyncExitStack() as held:
            try:
                host = self._pool.hosts[name]
                if _takes_model(host, scope["method"], path_in_app(scope)):
                    limits = host.served.limits
                    scope[DEADLINE] = deadline = deadline_of(Request(scope), limits.request_timeout_s)
                    async with asyncio.timeout_at(deadline.at):  # who sends slowly keeps no model in memory meanwhile
                        body = await read_body(Request(scope, receive), limits.max_body_bytes, limits.body_timeout_s)
                    receive = _after(body, receive)
                    await held.enter_async_context(self._pool.lease(name, deadline.at))
            except Exception as error:
                await refused(error)(scope, receive, send)
                return
            await self._apps[name](scope, receive, send)


def shared_app(
    pool: SharedModels, listing: Listing, access: Sequence[Access] = (), origins: Sequence[str] = ()
) -> Guarded:
    """The app of all shared models, to be mounted above them; ``listing`` is that of the root."""
    free = [f"/{name}{path}" for name in pool.hosts for path in HEALTH]
    app = bare_app("Kinfolk: shared models", access, origins, pool.life, free=free)
    apps = {name: endpoint_app(host) for name, host in pool.hosts.items()}
    app.before = lambda rest: _ByModel(pool, apps, rest)
    add_models(app, listing, "")
    return app
