"""One request for one task of the model in service: what it asks for, and the answer."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN
from kinfolk.pictures import draw
from kinfolk.serving.batcher import Outcome, SamplingError
from kinfolk.serving.bodies import read_body, settings_in
from kinfolk.serving.deadlines import Deadline, deadline_of
from kinfolk.serving.exchange import Exchange
from kinfolk.serving.host import ModelHost, Service, Version
from kinfolk.serving.media import EVENTS, INLINE_ELEMENTS, PNG, encode, negotiate, offered
from kinfolk.serving.refusals import RefusalError, no_task, refused
from kinfolk.serving.schema import ask, check_values
from kinfolk.serving.streaming import stream

_PREVIEWS, _MOST_PREVIEWS = 10, 100  # of one request
_COUNT = re.compile(r"[0-9]{1,9}", re.ASCII)


def etag_of(name: str, version: Version, task: str, kind: str, values: Mapping[str, Any]) -> str:
    """A digest of everything that decides an answer."""
    told = _CANONICAL.encode([name, version.version, task, kind, values])
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, default=_digest)


@cache
def _header(name: str) -> str:
    return f"Kinfolk-{name.replace('_', '-').title()}"


def is_known(etag: str | None, request: Request) -> bool:
    """Whether the client has the answer already. Source: RFC 9110, section 13.1.2."""
    given = request.headers.get("if-none-match", "")
    return etag is not None and etag in (each.strip().removeprefix("W/") for each in given.split(","))


def _previews(request: Request) -> int:
    text = request.query_params.get("previews", str(_PREVIEWS))
    if not _COUNT.fullmatch(text) or int(text) > _MOST_PREVIEWS:
        raise RequestError("previews", f"previews={text[:SHOWN]!r}: use a number from 0 to {_MOST_PREVIEWS}.")
    return int(text)


class Endpoint:
    """The tasks of one model."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host

    async def answer(self, request: Request, task: str) -> Response:
        """What the task gives, or the refusal that says what to change."""
        limits = self.host.served.limits
        try:
            deadline = deadline_of(request, limits.request_timeout_s)
            async with asyncio.timeout_at(deadline.at):
                body = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
                values = await settings_in(request.headers, request.query_params, body)
                return await self._answer(partial(self._exchange, request, task, values, deadline), request)
        except Exception as error:
            return refused(error)

    async def _answer(self, exchange_with: Callable[[Version], Exchange], request: Request) -> Response:
        """The answer of the version whose turn it is; what one on trial fails is answered by the one in service."""
        exchange = exchange_with(self.host.choose())
        if is_known(exchange.etag, request):
            return Response(status_code=304, headers={"ETag": exchange.etag or ""})
        if exchange.kind == EVENTS:
            return stream(exchange, lambda: exchange_with(self.host.current))
        return await _respond(*await self._outcome(exchange, exchange_with))

    async def pictures(self, values: Mapping[str, Any], deadline: Deadline) -> list[bytes]:
        """A PNG file for each sample that ``values``, the body of a request for samples, asks for.

        Raises whatever ``refused`` has an answer for.
        """
        exchange_with = partial(self._checked, "sample", values, PNG, 0, deadline)
        async with asyncio.timeout_at(deadline.at):
            exchange, outcome = await self._outcome(exchange_with(self.host.choose()), exchange_with)
        spec = exchange.version.model.spec
        return [draw(sample[None], spec) for sample in outcome.samples]

    async def _outcome(
        self, exchange: Exchange, exchange_with: Callable[[Version], Exchange]
    ) -> tuple[Exchange, Outcome]:
        """What a request got, of the version in service where one on trial has failed it."""
        try:
            return exchange, await exchange.finished(exchange.take())
        except SamplingError as error:
            if not self.host.blame(exchange.version, error):
                raise
        again = exchange_with(self.host.current)
        return again, await again.finished(again.take())

    def _service(self, version: Version, task: str) -> Service:
        service = version.services.get(task)
        if service is None:
            raise no_task(self.host.served.name, task, version.services)
        return service

    def _exchange(
        self, request: Request, task: str, values: Mapping[str, Any], deadline: Deadline, version: Version
    ) -> Exchange:
        """The request checked against a version; nothing is awaited, so that it goes on being in service."""
        offers, accept = offered(self._service(version, task).ability), request.headers.get("accept", "")
        kind = negotiate(accept, offers)
        if kind is None:
            text = f"{task} of this model can be had as {', '.join(offers)}; Accept is {accept[:SHOWN]!r}."
            raise RefusalError(406, "Accept", text)
        return self._checked(task, values, kind, _previews(request) if kind == EVENTS else 0, deadline, version)

    def _checked(
        self, task: str, values: Mapping[str, Any], kind: str, previews: int, deadline: Deadline, version: Version
    ) -> Exchange:
        service, served = self._service(version, task), self.host.served
        check_values(values, service.body)
        asked = ask(version.model, service.ability, values, served.limits.max_n)
        etag = etag_of(served.name, version, task, kind, values) if asked.repeatable and kind != EVENTS else None
        return Exchange(self.host, version, service, asked, kind, etag, previews, deadline)


async def _respond(exchange: Exchange, outcome: Outcome) -> Response:
    facts = exchange.facts(outcome)
    arguments = outcome.samples, exchange.service.ability.gives, exchange.kind, facts
    large = outcome.samples.numel() > INLINE_ELEMENTS
    content = await asyncio.to_thread(encode, *arguments) if large else encode(*arguments)
    headers = {_header(name): str(value) for name, value in facts.items()}
    if exchange.etag is not None:
        headers["ETag"] = exchange.etag
    return Response(content, media_type=exchange.kind, headers=headers)
