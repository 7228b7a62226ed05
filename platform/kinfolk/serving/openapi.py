"""What a model's tasks take and answer, in the words of OpenAPI."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from kinfolk.abilities import Ability
from kinfolk.serving.bodies import FILES, FORM
from kinfolk.serving.host import ModelHost
from kinfolk.serving.media import JSON, offered


def openapi(app: FastAPI, host: ModelHost) -> dict[str, Any]:
    """The schema of the app with a path for each task of the version in service, and its request body."""
    schema = get_openapi(title=app.title, version="1", routes=app.routes)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name, service in host.current.services.items():
        body = service.body.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(body.pop("$defs", {}))
        content = {JSON: {"schema": body}, **_file_bodies(service.ability)}
        schema["paths"][f"/{name}"] = {
            "post": {
                "summary": name,
                "operationId": name,
                "parameters": [_TIMEOUT],
                "requestBody": {"content": content, "required": bool(service.ability.needs)},
                "responses": {str(status): said for status, said in _answers(service.ability).items()},
            }
        }
    return schema


def _file_bodies(ability: Ability) -> dict[str, Any]:
    return {} if ability.takes is None else {kind: {"schema": {"type": "string"}} for kind in (FORM, *FILES)}


def _answers(ability: Ability) -> dict[int, dict[str, Any]]:
    return {
        200: {"description": "What the task gives.", "content": {kind: {} for kind in offered(ability)}},
        304: {"description": "The client has this answer already."},
        **_REFUSALS,
    }


_TIMEOUT = {
    "name": "Kinfolk-Timeout",
    "in": "header",
    "description": "Seconds that the caller waits: what cannot be done in them is refused. Left out: the limit.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_REFUSALS: dict[int, dict[str, Any]] = {
    400: {"description": "The body cannot be read."},
    401: {"description": "The bearer token is missing or wrong."},
    403: {"description": "The role of the token's holder is not enough, or a form of another site's page asks."},
    429: {"description": "The holder of the token has asked too often; Retry-After says when to come back."},
    404: {"description": "The model has no such task."},
    406: {"description": "No acceptable form of what the task gives."},
    408: {"description": "The body did not come whole in time."},
    413: {"description": "The body is too large."},
    415: {"description": "No readable type of body."},
    422: {"description": "A setting is unknown, malformed or beyond a limit; error.field names it."},
    503: {"description": "Too much is queued; Retry-After says when to come back."},
    504: {"description": "Not done in time."},
}
