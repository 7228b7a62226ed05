"""The HTTP face of one model, without Ray, and what every app is made of."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kinfolk.contract import DataSpec
from kinfolk.serving.access import Access, Gate
from kinfolk.serving.endpoint import Endpoint
from kinfolk.serving.guard import ADMIN, Guard, path_in_app
from kinfolk.serving.host import ModelHost
from kinfolk.serving.media import offered
from kinfolk.serving.openapi import openapi
from kinfolk.serving.origins import open_to
from kinfolk.serving.page import PageFile, page_routes
from kinfolk.serving.refusals import fault, refusal

SERVING = {"ready", "asleep", "unloaded"}  # states in which a request is answered; the last two wait for a start

Lifespan = Callable[
    [FastAPI], AbstractAsyncContextManager[None]
]  # entered before the first request, left after the last


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _fault(*_: object) -> Response:
    return fault()


class Guarded(FastAPI):
    """An app behind the guard, which stands before all that FastAPI does for a request."""

    def __init__(
        self,
        title: str,
        gate: Gate,
        free: Sequence[str],
        signed: Sequence[str],
        origins: Sequence[str],
        lifespan: Lifespan | None,
    ) -> None:
        super().__init__(title=title, docs_url=None, redoc_url=None, lifespan=lifespan)
        self._gate, self._free, self._signed, self._origins = gate, free, signed, origins
        # What looks at a request first, right behind the guard.
        self.before: Callable[[ASGIApp], ASGIApp] = lambda app: app

    def build_middleware_stack(self) -> ASGIApp:
        """The app as it is called."""
        app = self.before(super().build_middleware_stack())
        return open_to(Guard(app, self._gate, self._free, self._origins, self._signed), self._origins)


class _TasksFirst:
    """``POST /TASK``, as most requests are, goes straight to the endpoint, anything else to the app."""

    def __init__(self, endpoint: Endpoint, app: ASGIApp) -> None:
        self._endpoint, self._app = endpoint, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            task = path_in_app(scope)[1:]
            if task and "/" not in task:
                response = await self._endpoint.answer(Request(scope, receive), task)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def bare_app(
    title: str,
    access: Sequence[Access],
    origins: Sequence[str],
    lifespan: Lifespan | None = None,
    page: Mapping[str, PageFile] = MappingProxyType({}),
    free: Sequence[str] = (),
    signed: Sequence[str] = (),
) -> Guarded:
    """An app with its health.

    ``page`` are files that anyone may have, by their paths, ``free`` other such paths, and what is posted to ``signed``
    needs no token.
    """
    app = Guarded(title, Gate(access), (*page, *free), signed, origins, lifespan)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    app.router.routes.extend(page_routes(page))

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    return app


def _state(host: ModelHost) -> str:
    if not host.loaded:
        return "unloaded"
    return "ready" if host.ready else "stopping"


def describe(host: ModelHost) -> dict[str, Any]:
    """Name, addresses, state, what version is in service, and how busy it is."""
    served = host.served
    if not host.loaded:
        now = {"name": served.name, "address": served.path, "state": _state(host), "stale": host.stale}
        return {**host.remembered, **now}
    current = host.current
    tasks = {
        name: {
            "address": f"{served.path}/{name}",
            "needs": service.ability.needs,
            "takes": _data(service.ability.takes),
            "gives": _data(service.ability.gives),
            "accept": offered(service.ability),
            **({"unit": service.ability.unit} if service.ability.unit else {}),
        }
        for name, service in current.services.items()
    }
    return {
        "name": served.name,
        "address": served.path,
        "state": _state(host),
        "version": current.version,
        "stale": host.stale,
        "family": current.model.family.name,
        "data": _data(current.model.spec),
        "tasks": tasks,
        "requests": current.batcher.requests,
        "evaluations_queued": current.batcher.evaluations,
        "made": {"calls": current.batcher.counts.calls, "evaluations": current.batcher.counts.evaluations},
    }


def _data(spec: DataSpec | None) -> dict[str, Any] | None:
    return None if spec is None else spec.model_dump(exclude_none=True)


def endpoint_app(
    host: ModelHost, access: Sequence[Access] = (), lifespan: Lifespan | None = None, origins: Sequence[str] = ()
) -> FastAPI:
    """One model's app, to be mounted at its path: ``/TASK``, ``/``, ``/openapi.json``, ``/healthz``, ``/readyz``.

    For an admin also ``/-/look``; no task has an address of two parts. Pages of ``origins`` may read the answers.
    """
    app = bare_app(f"Kinfolk: {host.served.name}", access, origins, lifespan)
    endpoint = Endpoint(host)
    app.before = lambda rest: _TasksFirst(endpoint, rest)
    app.openapi = lambda: openapi(app, host)  # type: ignore[method-assign]

    @app.get("/")
    async def described() -> dict[str, Any]:
        return describe(host)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        response.status_code = 200 if _state(host) in SERVING else 503
        return {"status": _state(host)}

    @app.post(f"{ADMIN}look")
    async def look() -> dict[str, Any]:
        if host.look is None:
            raise HTTPException(404, "This server follows no registry: there is nothing to look at.")
        await host.look()
        trial = host.trial and host.trial.version.version
        return {"version": host.current.version, "trial": trial, "stale": host.stale}

    async def answer(request: Request) -> Response:
        return await endpoint.answer(request, request.path_params["task"])

    # For those who read the routes; the first, as Serve looks for that of each request.
    app.router.routes.insert(0, Route("/{task}", answer, methods=["POST"]))
    return app
