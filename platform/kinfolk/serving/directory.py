"""The root of what is served: the list of models, the images API and the registry's messages, without Ray."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN, nearest
from kinfolk.serving import images_api, webhook
from kinfolk.serving.access import Access
from kinfolk.serving.app import SERVING, bare_app, describe, endpoint_app
from kinfolk.serving.bodies import json_in, read_body
from kinfolk.serving.config import MODELS, Limits
from kinfolk.serving.deadlines import Deadline, timeout_in
from kinfolk.serving.endpoint import Endpoint
from kinfolk.serving.host import ModelHost
from kinfolk.serving.leaving import UntilLeft
from kinfolk.serving.media import JSON
from kinfolk.serving.page import page_files
from kinfolk.serving.refusals import RefusalError, refusal, refused
from kinfolk.serving.request_ids import RequestIds
from kinfolk.serving.webhook import Inbox

_IMAGES_BYTES = 262_144  # of a request of the images API
_MESSAGE_BYTES = 65_536  # of the registry
_BODY_TIMEOUT_S = Limits().body_timeout_s  # of either

ImagesAnswer = tuple[int, dict[str, Any], dict[str, str]]  # status, body, headers
Images = Callable[[str, Mapping[str, Any], Headers], Awaitable[ImagesAnswer]]  # of a model's place and a request
Listing = Callable[[], Awaitable[list[dict[str, Any]]]]  # what ``describe`` says of every model


def _add_images(app: FastAPI, listing: Listing, images: Images, max_bytes: int) -> None:
    body = {"content": {JSON: {"schema": images_api.ImagesRequest.model_json_schema()}}, "required": True}

    @app.post(images_api.ADDRESS, openapi_extra={"requestBody": body})
    async def generate(request: Request) -> Response:
        try:
            values = json_in(request.headers, await read_body(request, max_bytes, _BODY_TIMEOUT_S))
            name = images_api.model_name(images_api.parse(values), [_route(model) for model in await listing()])
            status, told, headers = await images(name, values, request.headers)
        except (RequestError, RefusalError) as error:
            status = error.status if isinstance(error, RefusalError) else 404 if error.field == "model" else 400
            return JSONResponse(images_api.error(str(error), status, error.field), status)
        return JSONResponse(told, status, headers)


def _route(model: Mapping[str, Any]) -> str:
    return str(model["address"].rpartition("/")[2])


async def images_of(
    held: AbstractAsyncContextManager[ModelHost], values: Mapping[str, Any], deadline: Deadline
) -> ImagesAnswer:
    """What OpenAI's images API answers for the model whose host is entered."""
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

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        ready = all(model["state"] in SERVING for model in await listing())
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

    def images(name: str, values: Mapping[str, Any], headers: Headers) -> Awaitable[ImagesAnswer]:
        host = by_route[name]
        most_s = host.served.limits.request_timeout_s
        return images_of(nullcontext(host), values, Deadline.after(timeout_in(headers, most_s), most_s))

    app.mount("", directory_app(listing, images, access, origins=origins))
    return app
