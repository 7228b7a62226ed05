"""What is said to those who do not get what they asked for."""

import json
import logging
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN, nearest
from kinfolk.serving.batcher import OverloadError, SamplingError

_LOG = logging.getLogger(__name__)


class RefusalError(Exception):
    """A request that is answered with an error; ``field`` names the part of it that must change."""

    def __init__(self, status: int, field: str, message: str) -> None:
        super().__init__(message)
        self.status, self.field = status, field


def refusal(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """An error as every endpoint answers it: ``{"error": {"field", "message"}}``."""
    body = json.dumps({"error": {"field": field, "message": message}}).encode()
    return Response(body, status, headers, "application/json")


def fault() -> Response:
    """The answer to a request on which the server failed."""
    return refusal(500, "The server failed on this request; its log has the cause.")


def no_task(name: str, task: str, known: Collection[str]) -> RefusalError:
    """What is said of a task that a model lacks."""
    text = f"{name} has no task {task[:SHOWN]!r}.{nearest(task, known)} Its tasks: {', '.join(known)}."
    return RefusalError(404, "task", text)


def refused(error: Exception) -> Response:
    """What a request that could not be answered is told; faults that are not foreseen are raised again."""
    match error:
        case RequestError():
            return refusal(400 if error.field == "body" else 422, str(error), error.field)
        case RefusalError():
            leaves = {"Connection": "close"} if error.status == 408 else None  # what still comes is not read
            return refusal(error.status, str(error), error.field, leaves)
        case OverloadError():
            return refusal(503, str(error), headers={"Retry-After": str(error.retry_after_s)})
        case SamplingError():
            _LOG.error("A request is answered with 500: the model failed in a call that it had rows in.")
            return refusal(500, str(error))
        case ClientDisconnect():
            return refusal(400, "The client left before the request was whole.")
        case TimeoutError():
            return refusal(504, "Not done in time: ask for less, or later.")
    raise error
