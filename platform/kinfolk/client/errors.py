"""What can go wrong between a client and an endpoint, and whose turn it is then."""

from typing import Any

import httpx

from kinfolk.errors import KinfolkError, RequestError

_SHOWN = 200  # characters of an answer that is no error of Kinfolk's


class ClientError(KinfolkError):
    """A request got no usable answer.

    ``status`` is that of HTTP, None where no answer came or a stream broke off; ``field`` names the setting to change,
    empty where it is none.
    """

    def __init__(self, message: str, status: int | None = None, field: str = "") -> None:
        KinfolkError.__init__(self, message)
        self.status, self.field = status, field

    @property
    def message(self) -> str:
        """What happened and what to do, in one paragraph."""
        return str(self)


class RefusedError(ClientError, RequestError):
    """The request must be changed before it is sent again: 4xx, or, with no status, it cannot be sent as it is."""


class OverloadedError(ClientError):
    """Too much was queued (503), or the holder of the token asked too often (429 with Retry-After), at every try.

    ``retry_after_s`` is what the server asked for last, if anything.
    """

    retry_after_s: float | None = None


class FaultError(ClientError):
    """The server failed, was too slow by its own limit (504), or does not answer as Kinfolk does."""


class NoAnswerError(ClientError):
    """Nothing listens there, the connection broke, or nothing came in time."""


def turned_away(status: int, retry_after_s: float | None) -> bool:
    """Whether the same request may be answered later: of 429, only where the server says when."""
    return status == httpx.codes.SERVICE_UNAVAILABLE or (
        status == httpx.codes.TOO_MANY_REQUESTS and retry_after_s is not None
    )


def error_in(response: httpx.Response, retry_after_s: float | None = None) -> ClientError:
    """The error that an answer other than 200 stands for."""
    told, status = _told(response), response.status_code
    field, message = str(told.get("field") or ""), str(told.get("message") or _plain(response))
    if turned_away(status, retry_after_s):
        overloaded = OverloadedError(message, status, field)
        overloaded.retry_after_s = retry_after_s
        return overloaded
    return (RefusedError if response.is_client_error else FaultError)(message, status, field)


def _told(response: httpx.Response) -> dict[str, Any]:
    """What stands below ``error`` in the answer; nothing where somebody else than Kinfolk wrote it."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return {}
    return error if isinstance(error, dict) else {}


def _plain(response: httpx.Response) -> str:
    try:
        text = response.text[:_SHOWN].strip()
    except httpx.ResponseNotRead:
        text = ""
    return f"{response.request.url} answered {response.status_code} {response.reason_phrase}. {text}".strip()


def no_answer(error: httpx.RequestError, begun: bool = False) -> NoAnswerError:
    """The error of a request to which no answer came, or one that ``begun`` and broke off."""
    cause = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return NoAnswerError(
            f"{error.request.url} was silent for too long ({cause}): ask for less, or raise timeout_s."
        )
    if begun:
        return NoAnswerError(f"The answer of {error.request.url} broke off ({cause}). Ask again.")
    return NoAnswerError(f"No answer from {error.request.url}: {cause}. Is the server up, and the address right?")
