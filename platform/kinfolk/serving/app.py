"""The HTTP face of models, without Ray: one app for each model, one that lists them all, or both in one process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kinfolk.contract import RequestError
from kinfolk.errors import nearest
from kinfolk.serving.batcher import OverloadError, SamplingError
from kinfolk.serving.guard import Guard, RefusalError, refusal
from kinfolk.serving.host import ModelHost, Version
from kinfolk.serving.media import JSON, NPY, PNG, encode, negotiate, offered
from kinfolk.serving.schema import Asked, ask, parse_body

_INLINE_ELEMENTS = 65_536  # larger answers are encoded on another thread, so that they hold up nobody
_SERVING = {"ready", "asleep"}  # states in which a request is answered; an endpoint asleep wakes for it

Listing = Callable[[], Awaitable[list[dict[str, Any]]]]  # what ``describe`` says of every model
Lifespan = Callable[
    [FastAPI], AbstractAsyncContextManager[None]
]  # entered before the first request, left after the last


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _bare_app(title: str, token: str | None, lifespan: Lifespan | None = None) -> FastAPI:
    app = FastAPI(title=title, redoc_url=None, exception_handlers={HTTPException: _http_error}, lifespan=lifespan)
    app.add_middleware(Guard, token=token)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    return app


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    body = b""
    if int(request.headers.get("content-length") or 0) <= max_bytes:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                break
        else:
            return body
    raise RefusalError(413, "body", f"The body is larger than {max_bytes} bytes.")


def _check_content_type(request: Request, body: bytes) -> None:
    """A browser sends JSON to a foreign site only after asking that site, which other types do not ensure."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and given != JSON:
        raise RefusalError(415, "Content-Type", f"Send the body as {JSON}, with the header 'Content-Type: {JSON}'.")


def _state(host: ModelHost) -> str:
    return "ready" if host.ready else "stopping"


class Endpoint:
    """The routes of one model."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host

    def describe(self) -> dict[str, Any]:
        """Name, address, state, what version is in service, and how busy it is."""
        served, current = self.host.served, self.host.current
        return {
            "name": served.name,
            "address": f"{served.path}/sample",
            "state": _state(self.host),
            "version": current.version,
            "stale": self.host.refused is not None,
            "family": current.model.family.name,
            "data": current.model.spec.model_dump(exclude_none=True),
            "accept": offered(current.model.spec),
            "requests": current.batcher.requests,
            "evaluations_queued": current.batcher.evaluations,
        }

    async def sample(self, request: Request) -> Response:
        """Samples, or the refusal that says what to change."""
        limits = self.host.served.limits
        try:
            async with asyncio.timeout(limits.request_timeout_s):
                body = await _read_body(request, limits.max_body_bytes)
                _check_content_type(request, body)
                return await self._sample(body, request.headers.get("accept", ""))
        except RequestError as error:
            return refusal(400 if error.field == "body" else 422, str(error), error.field)
        except RefusalError as error:
            return refusal(error.status, str(error), error.field)
        except OverloadError as error:
            return refusal(503, str(error), headers={"Retry-After": str(error.retry_after_s)})
        except SamplingError as error:
            return refusal(500, str(error))
        except ClientDisconnect:
            return refusal(400, "The client left before the request was whole.")
        except TimeoutError:
            return refusal(504, f"Not done within {limits.request_timeout_s:g} s: ask for less, or later.")

    async def _sample(self, body: bytes, accept: str) -> Response:
        version = self.host.current
        offers = offered(version.model.spec)
        kind = negotiate(accept, offers)
        if kind is None:
            text = f"Samples of this model can be had as {', '.join(offers)}; Accept is {accept[:60]!r}."
            raise RefusalError(406, "Accept", text)
        asked = ask(version.model, parse_body(body, version.body))
        samples = await version.batcher.sample(asked.request)
        return await self._respond(version, asked, samples, kind)

    async def _respond(self, version: Version, asked: Asked, samples: Any, kind: str) -> Response:
        facts = {"model": self.host.served.name, "version": version.version, "seed": asked.seed}
        arguments = samples, version.model.spec, kind, facts
        large = samples.numel() > _INLINE_ELEMENTS
        content = await asyncio.to_thread(encode, *arguments) if large else encode(*arguments)
        headers = {f"Kinfolk-{name.title()}": str(value) for name, value in facts.items()}
        return Response(content, media_type=kind, headers=headers)

    def openapi(self, app: FastAPI) -> dict[str, Any]:
        """The schema of the app with the request body of the version in service."""
        schema = get_openapi(title=app.title, version="1", routes=app.routes)
        body = self.host.current.body.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(body.pop("$defs", {}))
        schema["paths"]["/sample"]["post"]["requestBody"] = {"content": {JSON: {"schema": body}}}
        return schema


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Samples.", "content": {PNG: {}, NPY: {}, JSON: {}}},
    401: {"description": "The bearer token is missing or wrong."},
    406: {"description": "No acceptable form of these samples."},
    413: {"description": "The body is too large."},
    422: {"description": "A setting is unknown, malformed or beyond a limit; error.field names it."},
    503: {"description": "Too much is queued; Retry-After says when to come back."},
    504: {"description": "Not done in time."},
}


def endpoint_app(host: ModelHost, token: str | None = None, lifespan: Lifespan | None = None) -> FastAPI:
    """The app of one model, to be mounted at its path: ``/sample``, ``/``, ``/healthz``, ``/readyz``, ``/docs``."""
    endpoint, app = Endpoint(host), _bare_app(f"Kinfolk: {host.served.name}", token, lifespan)
    app.openapi = lambda: endpoint.openapi(app)  # type: ignore[method-assign]
    app.post("/sample", responses=_ANSWERS, response_class=Response)(endpoint.sample)

    @app.get("/")
    async def describe() -> dict[str, Any]:
        return endpoint.describe()

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        response.status_code = 200 if host.ready else 503
        return {"status": _state(host)}

    return app


def directory_app(listing: Listing, token: str | None = None) -> FastAPI:
    """The app at the root: the list of models, health of the whole, and 404 for models there are not."""
    app = _bare_app("Kinfolk", token)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"models": await listing()}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        ready = all(model["state"] in _SERVING for model in await listing())
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "not every model answers"}

    @app.api_route("/v1/models/{name}/{_:path}", methods=["GET", "POST"], include_in_schema=False)
    async def unknown(name: str) -> Response:
        known = [model["address"].split("/")[3] for model in await listing()]
        text = f"No model is served as {name[:60]!r}.{nearest(name, known)} Models: {', '.join(known) or 'none'}."
        return refusal(404, text, "name")

    return app


def build_app(hosts: Sequence[ModelHost], token: str | None = None) -> FastAPI:
    """Every endpoint in one process, without Ray, for models embedded in another program, which closes the hosts."""

    async def listing() -> list[dict[str, Any]]:
        return [Endpoint(host).describe() for host in hosts]

    app = FastAPI(openapi_url=None)
    for host in hosts:
        app.mount(host.served.path, endpoint_app(host, token))
    app.mount("", directory_app(listing, token))
    return app
