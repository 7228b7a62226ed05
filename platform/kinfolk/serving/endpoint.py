"""One request for one task of the model in service: what it asks for, and the answer."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from torch import Tensor

from kinfolk.contract import RequestError
from kinfolk.errors import SHOWN, nearest
from kinfolk.pictures import draw
from kinfolk.serving.batcher import Job, Outcome, OverloadError, Preview, SamplingError
from kinfolk.serving.bodies import read_body, settings_in
from kinfolk.serving.guard import RefusalError, refusal
from kinfolk.serving.host import ModelHost, Service, Version
from kinfolk.serving.media import EVENTS, PNG, encode, event, negotiate, offered, shown
from kinfolk.serving.schema import Asked, ask, check_values

_WHOLE = 0.9  # share of the time a request may take after which one that is given up counts as late
_INLINE_ELEMENTS = 65_536  # larger answers are encoded on another thread, so that they hold up nobody
_HELD_ELEMENTS = 1_048_576  # of previews of one request that wait to be sent
_PREVIEWS, _MOST_PREVIEWS = 10, 100  # of one request
TIMEOUT = "Kinfolk-Timeout"  # seconds that a caller waits for an answer
DEADLINE = "kinfolk.deadline"  # of a request's scope: when, by the event loop's clock, its caller leaves
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A checked request with what answers it."""

    version: Version
    service: Service
    asked: Asked
    kind: str  # media type of the answer
    etag: str | None  # of the answer; None where the same request gives another next time
    previews: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Streamed:
    """A request that was taken, whose caller is told how far it is."""

    exchange: Exchange
    job: Job
    previews: asyncio.Queue[Preview | None]  # that were not sent yet; None: the request has ended
    until_s: float  # when it must have ended, by the event loop's clock


def etag_of(name: str, version: Version, task: str, kind: str, values: Mapping[str, Any]) -> str:
    """A digest of everything that decides an answer."""
    told = json.dumps([name, version.version, task, kind, values], sort_keys=True, default=_digest)
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def _header(name: str) -> str:
    return f"Kinfolk-{name.replace('_', '-').title()}"


def is_known(etag: str | None, request: Request) -> bool:
    """Whether the client has the answer already. Source: RFC 9110, section 13.1.2."""
    given = request.headers.get("if-none-match", "")
    return etag is not None and etag in (each.strip().removeprefix("W/") for each in given.split(","))


def _previews(request: Request) -> int:
    text = request.query_params.get("previews", str(_PREVIEWS))
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= _MOST_PREVIEWS:
        raise RequestError("previews", f"previews={text[:SHOWN]!r}: use a number from 0 to {_MOST_PREVIEWS}.")
    return int(text)


def timeout_in(headers: Mapping[str, str], most_s: float) -> float:
    """How many seconds the caller waits; as long as the serve file allows where it does not say.

    Raises:
        RequestError: it may not wait for so long, or has not written it as a number.
    """
    text = headers.get(TIMEOUT)
    if text is None:
        return most_s
    if not _SECONDS.fullmatch(text) or not 0 < float(text) <= most_s:
        message = f"{TIMEOUT} is {text[:SHOWN]!r}: use seconds above 0, at most {most_s:g}, such as 2.5."
        raise RequestError(TIMEOUT, message)
    return float(text)


def deadline_of(request: Request, most_s: float) -> float:
    """When its caller leaves, as whoever had the request first has found it; raises as ``timeout_in`` does."""
    known: float | None = request.scope.get(DEADLINE)
    return asyncio.get_running_loop().time() + timeout_in(request.headers, most_s) if known is None else known


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
            return refusal(500, str(error))
        case ClientDisconnect():
            return refusal(400, "The client left before the request was whole.")
        case TimeoutError():
            return refusal(504, "Not done in time: ask for less, or later.")
    raise error


class Endpoint:
    """The tasks of one model."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host

    async def answer(self, request: Request, task: str) -> Response:
        """What the task gives, or the refusal that says what to change."""
        limits = self.host.served.limits
        try:
            deadline = deadline_of(request, limits.request_timeout_s)
            async with asyncio.timeout_at(deadline):
                body = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
                values = await settings_in(request.headers, request.query_params, body)
                left_s = deadline - asyncio.get_running_loop().time()
                return await self._answer(partial(self._exchange, request, task, values, left_s), request)
        except Exception as error:
            return refused(error)

    async def _answer(self, exchange_with: Callable[[Version], Exchange], request: Request) -> Response:
        """The answer of the version whose turn it is; what one on trial fails is answered by the one in service."""
        exchange = exchange_with(self.host.choose())
        if is_known(exchange.etag, request):
            return Response(status_code=304, headers={"ETag": exchange.etag or ""})
        if exchange.kind == EVENTS:
            return self._stream(exchange, lambda: exchange_with(self.host.current))
        return await self._respond(*await self._outcome(exchange, exchange_with))

    async def pictures(self, values: Mapping[str, Any], deadline: float) -> list[bytes]:
        """A PNG file for each sample that ``values``, the body of a request for samples, asks for.

        They are to be had by ``deadline``, of the event loop's clock. Raises whatever ``refused`` has an answer for.
        """
        left_s = deadline - asyncio.get_running_loop().time()
        exchange_with = partial(self._checked, "sample", values, PNG, 0, left_s)
        async with asyncio.timeout_at(deadline):
            exchange, outcome = await self._outcome(exchange_with(self.host.choose()), exchange_with)
        spec = exchange.version.model.spec
        return [draw(sample[None], spec) for sample in outcome.samples]

    async def _outcome(
        self, exchange: Exchange, exchange_with: Callable[[Version], Exchange]
    ) -> tuple[Exchange, Outcome]:
        """What a request got, of the version in service where one on trial has failed it."""
        try:
            return exchange, await self._finished(exchange, self._take(exchange))
        except SamplingError as error:
            if not self.host.blame(exchange.version, error):
                raise
        again = exchange_with(self.host.current)
        return again, await self._finished(again, self._take(again))

    async def _finished(self, exchange: Exchange, job: Job) -> Outcome:
        try:
            outcome = await exchange.version.batcher.finished(job)
        except asyncio.CancelledError:
            if time.perf_counter() - job.taken_at >= _WHOLE * self.host.served.limits.request_timeout_s:
                self.host.late(exchange.version)
            raise
        self.host.answered(exchange.version, exchange.service.ability.name, outcome)
        return outcome

    def _service(self, version: Version, task: str) -> Service:
        service = version.services.get(task)
        if service is None:
            raise no_task(self.host.served.name, task, version.services)
        return service

    def _exchange(
        self, request: Request, task: str, values: Mapping[str, Any], timeout_s: float, version: Version
    ) -> Exchange:
        """The request checked against a version; nothing is awaited, so that it goes on being in service."""
        offers, accept = offered(self._service(version, task).ability), request.headers.get("accept", "")
        kind = negotiate(accept, offers)
        if kind is None:
            text = f"{task} of this model can be had as {', '.join(offers)}; Accept is {accept[:SHOWN]!r}."
            raise RefusalError(406, "Accept", text)
        return self._checked(task, values, kind, _previews(request) if kind == EVENTS else 0, timeout_s, version)

    def _checked(
        self, task: str, values: Mapping[str, Any], kind: str, previews: int, timeout_s: float, version: Version
    ) -> Exchange:
        service, served = self._service(version, task), self.host.served
        check_values(values, service.body)
        asked = ask(version.model, service.ability, values, served.limits.max_n)
        etag = etag_of(served.name, version, task, kind, values) if asked.repeatable and kind != EVENTS else None
        return Exchange(version, service, asked, kind, etag, previews, timeout_s)

    def _take(self, exchange: Exchange, on_preview: Callable[[Preview], None] | None = None) -> Job:
        return exchange.version.batcher.take(
            exchange.asked.request,
            exchange.service.ability.name,
            within_s=exchange.timeout_s,
            previews=exchange.previews,
            on_preview=on_preview,
        )

    def _facts(self, exchange: Exchange, outcome: Outcome) -> dict[str, Any]:
        """What an answer says of itself."""
        unit = {"unit": exchange.service.ability.unit} if exchange.service.ability.unit else {}
        return {
            "model": self.host.served.name,
            "version": exchange.version.version,
            "family": exchange.version.model.family.name,
            "task": exchange.service.ability.name,
            "seed": exchange.asked.seed,
            **unit,
            "calls": outcome.calls,
            "evaluations": outcome.evaluations,
            "queued_ms": round(outcome.queued_ms, 2),
            "computed_ms": round(outcome.computed_ms, 2),
        }

    async def _respond(self, exchange: Exchange, outcome: Outcome) -> Response:
        facts = self._facts(exchange, outcome)
        arguments = outcome.samples, exchange.service.ability.gives, exchange.kind, facts
        large = outcome.samples.numel() > _INLINE_ELEMENTS
        content = await asyncio.to_thread(encode, *arguments) if large else encode(*arguments)
        headers = {_header(name): str(value) for name, value in facts.items()}
        if exchange.etag is not None:
            headers["ETag"] = exchange.etag
        return Response(content, media_type=exchange.kind, headers=headers)

    def _stream(self, exchange: Exchange, again: Callable[[], Exchange]) -> Response:
        """Events; the request is taken, or refused, before the first of them."""
        first = self._begin(exchange, asyncio.get_running_loop().time() + exchange.timeout_s)
        return StreamingResponse(self._events(first, again), headers={"Cache-Control": "no-store"}, media_type=EVENTS)

    def _begin(self, exchange: Exchange, until_s: float) -> Streamed:
        previews: asyncio.Queue[Preview | None] = asyncio.Queue()

        def put(preview: Preview) -> None:
            held = max(_HELD_ELEMENTS // preview.samples.numel(), 1)
            while previews.qsize() >= held:  # who reads more slowly than rows advance misses some
                previews.get_nowait()
            previews.put_nowait(preview)

        job = self._take(exchange, put)
        job.future.add_done_callback(lambda _: previews.put_nowait(None))
        return Streamed(exchange, job, previews, until_s)

    async def _events(self, streamed: Streamed, again: Callable[[], Exchange]) -> AsyncGenerator[bytes, None]:
        """Previews until the samples are done, then those; or what went wrong."""
        try:
            try:
                async with aclosing(self._told(streamed)) as events:
                    async for each in events:
                        yield each
            except SamplingError as error:
                if not self.host.blame(streamed.exchange.version, error):
                    raise
                async with aclosing(self._told(self._begin(again(), streamed.until_s))) as events:
                    async for each in events:
                        yield each
        except Exception as error:
            yield event("error", json.loads(bytes(refused(error).body)))

    async def _told(self, streamed: Streamed) -> AsyncGenerator[bytes, None]:
        exchange = streamed.exchange
        try:
            while (preview := await self._next_preview(streamed)) is not None:
                facts = {"call": preview.call, "calls": preview.calls}
                yield event("preview", {**facts, **await _shown(preview.samples, exchange)})
            async with asyncio.timeout_at(streamed.until_s):
                outcome = await self._finished(exchange, streamed.job)
            yield event("done", {**self._facts(exchange, outcome), **await _shown(outcome.samples, exchange)})
        finally:
            exchange.version.batcher.leave(streamed.job)

    async def _next_preview(self, streamed: Streamed) -> Preview | None:
        async with asyncio.timeout_at(streamed.until_s):
            return await streamed.previews.get()


async def _shown(samples: Tensor, exchange: Exchange) -> dict[str, Any]:
    spec = exchange.service.ability.gives
    large = samples.numel() > _INLINE_ELEMENTS
    return await asyncio.to_thread(shown, samples, spec) if large else shown(samples, spec)
