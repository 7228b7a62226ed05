"""Bodies of requests as the settings in them: JSON, a form with files, or one file with settings in the address."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN
from kinfolk.serving.media import JSON, NPY
from kinfolk.serving.refusals import RefusalError
from kinfolk.serving.schema import parse_json

FORM = "multipart/form-data"
FILES = ("image/png", "image/jpeg", "image/webp", NPY)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)  # in digits that Python reads
_FIELDS = 100  # of a form
_FILE_FIELDS = ("x", "mask")


async def read_body(request: Request, max_bytes: int, within_s: float) -> bytes:
    """The body, refused as soon as it is known to be too large, or has not come whole in ``within_s`` seconds.

    Raises:
        RefusalError: 413 or 408.
    """
    try:
        async with asyncio.timeout(within_s):
            return await _whole(request, max_bytes)
    except TimeoutError:
        raise RefusalError(408, "body", f"The body did not come whole within {within_s:g} s.") from None


async def _whole(request: Request, max_bytes: int) -> bytes:
    parts, size, length = [], 0, request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise RequestError("body", f"Content-Length is {length[:SHOWN]!r}: send the number of bytes.")
    if int(length) <= max_bytes:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                break
            parts.append(part)
        else:
            return b"".join(parts)
    raise RefusalError(413, "body", f"The body is larger than {max_bytes} bytes.")


async def settings_in(headers: Headers, query: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The settings of a request by the type of its body; files stay bytes.

    Raises:
        RefusalError: 415, a type that is none of these.
        RequestError: the body is not what its type says.
    """
    kind = _kind(headers)
    if not body or kind == JSON:
        return parse_json(body)
    if kind in FILES:
        return {**{name: _value(text) for name, text in query.items()}, "x": body}
    if kind == FORM:
        return await _form(headers, body, max_files=_FIELDS)
    text = f"Send the body as {JSON}, as {FORM}, or as one file ({', '.join(FILES)}), and say so in 'Content-Type'."
    raise RefusalError(415, "Content-Type", text)


def json_in(headers: Headers, body: bytes) -> dict[str, Any]:
    """The settings of a request that takes no file.

    Raises:
        RefusalError: 415, it is not declared as JSON.
        RequestError: it is none.
    """
    if body and _kind(headers) != JSON:
        raise RefusalError(415, "Content-Type", f"Send the body as {JSON}, and say so in 'Content-Type'.")
    return parse_json(body)


def _kind(headers: Headers) -> str:
    """The type of a body."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _value(text: str) -> Any:
    """A setting that was given as text: JSON where it is, else the text itself."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


async def _form(headers: Headers, body: bytes, max_files: int) -> dict[str, Any]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(
            headers, whole(), max_files=max_files, max_fields=_FIELDS, max_part_size=len(body)
        ).parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise RequestError("body", f"The body is no readable form: {error}.") from None
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else _value(value)
        if name in _FILE_FIELDS:
            values.setdefault(name, []).append(content)
        elif isinstance(content, bytes) or name in values:
            raise RequestError(
                name[:SHOWN], f"{name[:SHOWN]!r} is given twice, or as a file: only {_FILE_FIELDS} may be."
            )
        else:
            values[name] = content
    return values
