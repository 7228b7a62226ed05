"""The HTTP face of models, without Ray: one app for each model, one that lists them all, or both in one process."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kinfolk.contract import DataSpec, RequestError
from kinfolk.errors import SHOWN, nearest
from kinfolk.serving import images_api, webhook
from kinfolk.serving.access import Access, Gate
from kinfolk.serving.bodies import json_in, read_body
from kinfolk.serving.config import MODELS, Limits
from kinfolk.serving.endpoint import Endpoint, refused
from kinfolk.serving.guard import ADMIN, Guard, RefusalError, fault, refusal, route
from kinfolk.serving.host import ModelHost
from kinfolk.serving.leaving import UntilLeft
from kinfolk.serving.media import JSON, offered
from kinfolk.serving.openapi import openapi
from kinfolk.serving.origins import open_to
from kinfolk.serving.page import PageFile, page_files, page_routes
from kinfolk.serving.request_ids import RequestIds
from kinfolk.serving.webhook import Inbox

_IMAGES_BYTES = 262_144  # of a request of the images API
_MESSAGE_BYTES = 65_536  # of the registry
_BODY_TIMEOUT_S = Limits().body_timeout_s  # of either
_SERVING = {"ready", "asleep", "unloaded"}  # states in which a request is answered; the last two wait for a start

Images = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, dict[str, Any], dict[str, str]]]]
Listing = Callable[[], Awaitable[list[dict[str, Any]]]]  # what ``describe`` says of every model
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
            task = route(scope)[1:]
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

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        response.status_code = 200 if _state(host) in _SERVING else 503
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


def _add_images(app: FastAPI, listing: Listing, images: Images, max_bytes: int) -> None:
    body = {"content": {JSON: {"schema": images_api.Asked.model_json_schema()}}, "required": True}

    @app.post(images_api.ADDRESS, openapi_extra={"requestBody": body})
    async def generate(request: Request) -> Response:
        try:
            values = json_in(request.headers, await read_body(request, max_bytes, _BODY_TIMEOUT_S))
            name = images_api.model_name(images_api.parse(values), [_route(model) for model in await listing()])
        except (RequestError, RefusalError) as error:
            status = error.status if isinstance(error, RefusalError) else 404 if error.field == "model" else 400
            return JSONResponse(images_api.error(str(error), status, error.field), status)
        status, told, headers = await images(name, values)
        return JSONResponse(told, status, headers)


def _route(model: Mapping[str, Any]) -> str:
    return str(model["address"].rpartition("/")[2])


async def images_of(
    held: AbstractAsyncContextManager[ModelHost], values: Mapping[str, Any], deadline: float | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """What OpenAI's images API answers for the model whose host is entered, by ``deadline``: status, body, headers."""
    try:
        asked = images_api.parse(values)
        async with held as host:
            model = host.current.model
            settings = images_api.settings_for(asked, model.tasks.conditions, model.spec)
            return 200, images_api.answer(asked, await Endpoint(host).pictures(settings, deadline)), {}
    except Exception as error:
        refused_ = refused(error)
        field, retry = getattr(error, "field", None), refused_.headers.get("Retry-After")
        status = 400 if refused_.status_code == 422 else refused_.status_code
        told = json.loads(bytes(refused_.body))["error"]["message"]
        return status, images_api.error(told, status, field), {"Retry-After": retry} if retry else {}


def _add_inbox(app: FastAPI, inbox: Inbox) -> None:
    @app.post(webhook.ADDRESS, include_in_schema=False)
    async def take(request: Request) -> Response:
        try:
            await inbox.take(request.headers, await read_body(request, _MESSAGE_BYTES, _BODY_TIMEOUT_S))
        except (RequestError, RefusalError) as error:
            return refused(error)
        return Response(status_code=204)


def add_models(app: FastAPI, listing: Listing, address: str) -> None:
    """The list of models, at an address within the app, and below it 404 for models there are not."""

    @app.get(address or "/")
    async def models() -> dict[str, Any]:
        return {"models": await listing()}

    @app.api_route(f"{address}/{{name}}/{{_:path}}", methods=["GET", "POST"], include_in_schema=False)
    async def unknown(name: str) -> Response:
        known = [_route(model) for model in await listing()]
        text = f"No model is served as {name[:SHOWN]!r}.{nearest(name, known)} Models: {', '.join(known) or 'none'}."
        return refusal(404, text, "name")


def directory_app(
    listing: Listing,
    images: Images,
    access: Sequence[Access] = (),
    inbox: Inbox | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The app at the root: the playground, the list of models, their health, and 404 for models there are not.

    ``images`` answers a request of OpenAI's images API for the model of a name; ``inbox`` takes what the registry says,
    signed and so without a token; pages of ``origins`` may read the answers.
    """
    app = bare_app("Kinfolk", access, origins, page=page_files(), signed=(webhook.ADDRESS,) if inbox else ())
    _add_images(app, listing, images, _IMAGES_BYTES)
    if inbox is not None:
        _add_inbox(app, inbox)

    add_models(app, listing, MODELS)

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        ready = all(model["state"] in _SERVING for model in await listing())
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "not every model answers"}

    return app


def build_app(hosts: Sequence[ModelHost], access: Sequence[Access] = (), origins: Sequence[str] = ()) -> FastAPI:
    """Every endpoint in one process, without Ray, for models embedded in another program, which closes the hosts.

    Pages of ``origins`` may read the answers.
    """

    async def listing() -> list[dict[str, Any]]:
        return [describe(host) for host in hosts]

    by_route = {host.served.place: host for host in hosts}
    app = FastAPI(openapi_url=None)
    app.add_middleware(RequestIds)
    app.add_middleware(UntilLeft)
    for host in hosts:
        app.mount(host.served.path, endpoint_app(host, access, origins=origins))

    def images(name: str, values: Mapping[str, Any]) -> Awaitable[tuple[int, dict[str, Any], dict[str, str]]]:
        return images_of(nullcontext(by_route[name]), values)

    app.mount("", directory_app(listing, images, access, origins=origins))
    return app
