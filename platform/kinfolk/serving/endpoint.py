"""One request for one task of the model in service: what it asks for, and the answer."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from kinfolk.contract import RequestError
from kinfolk.errors import nearest
from kinfolk.serving.batcher import Job, Outcome, OverloadError, Preview, SamplingError
from kinfolk.serving.bodies import read_body, settings_in
from kinfolk.serving.guard import RefusalError, refusal
from kinfolk.serving.host import ModelHost, Service, Version
from kinfolk.serving.media import EVENTS, encode, event, negotiate, offered, shown
from kinfolk.serving.schema import Asked, ask, check_values

_INLINE_ELEMENTS = 65_536  # larger answers are encoded on another thread, so that they hold up nobody
_PREVIEWS, _MOST_PREVIEWS = 10, 100  # of one request
_SHOWN = 60  # characters of a refused value that an error repeats


@dataclass(frozen=True, slots=True)
class Exchange:
    """A checked request with what answers it."""

    version: Version
    service: Service
    asked: Asked
    kind: str  # media type of the answer
    etag: str | None  # of the answer; None where the same request gives another next time
    previews: int


def etag_of(name: str, version: Version, task: str, kind: str, values: Mapping[str, Any]) -> str:
    """A digest of everything that decides an answer."""
    told = json.dumps([name, version.version, task, kind, values], sort_keys=True, default=_digest)
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


def is_known(etag: str | None, request: Request) -> bool:
    """Whether the client has the answer already. Source: RFC 9110, section 13.1.2."""
    given = request.headers.get("if-none-match", "")
    return etag is not None and etag in (each.strip().removeprefix("W/") for each in given.split(","))


def _previews(request: Request) -> int:
    text = request.query_params.get("previews", str(_PREVIEWS))
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= _MOST_PREVIEWS:
        raise RequestError("previews", f"previews={text[:_SHOWN]!r}: use a number from 0 to {_MOST_PREVIEWS}.")
    return int(text)


def refused(error: Exception) -> Response:
    """What a request that could not be answered is told; faults that are not foreseen are raised again."""
    match error:
        case RequestError():
            return refusal(400 if error.field == "body" else 422, str(error), error.field)
        case RefusalError():
            return refusal(error.status, str(error), error.field)
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
            async with asyncio.timeout(limits.request_timeout_s):
                body = await read_body(request, limits.max_body_bytes)
                values = await settings_in(request.headers, request.query_params, body)
                exchange = self._exchange(request, task, values)
                if is_known(exchange.etag, request):
                    return Response(status_code=304, headers={"ETag": exchange.etag or ""})
                if exchange.kind == EVENTS:
                    return self._stream(exchange)
                job = self._take(exchange)
                return await self._respond(exchange, await exchange.version.batcher.finished(job))
        except Exception as error:
            return refused(error)

    def _service(self, version: Version, task: str) -> Service:
        service = version.services.get(task)
        if service is None:
            name, known = self.host.served.name, ", ".join(version.services)
            text = f"{name} has no task {task[:_SHOWN]!r}.{nearest(task, version.services)} Its tasks: {known}."
            raise RefusalError(404, "task", text)
        return service

    def _exchange(self, request: Request, task: str, values: Mapping[str, Any]) -> Exchange:
        """The request checked against the version in service; nothing is awaited, so that it cannot be another one."""
        version, host = self.host.current, self.host
        service = self._service(version, task)
        offers, accept = offered(service.ability), request.headers.get("accept", "")
        kind = negotiate(accept, offers)
        if kind is None:
            text = f"{task} of this model can be had as {', '.join(offers)}; Accept is {accept[:_SHOWN]!r}."
            raise RefusalError(406, "Accept", text)
        previews = _previews(request) if kind == EVENTS else 0
        check_values(values, service.body)
        asked = ask(version.model, service.ability, values, host.served.limits.max_n)
        etag = etag_of(host.served.name, version, task, kind, values) if asked.repeatable and not previews else None
        return Exchange(version, service, asked, kind, etag, previews)

    def _take(self, exchange: Exchange, queue: "asyncio.Queue[Preview | None] | None" = None) -> Job:
        return exchange.version.batcher.take(
            exchange.asked.request,
            exchange.service.ability.name,
            within_s=self.host.served.limits.request_timeout_s,
            previews=exchange.previews,
            on_preview=None if queue is None else queue.put_nowait,
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
        headers = {f"Kinfolk-{name.replace('_', '-').title()}": str(value) for name, value in facts.items()}
        if exchange.etag is not None:
            headers["ETag"] = exchange.etag
        return Response(content, media_type=exchange.kind, headers=headers)

    def _stream(self, exchange: Exchange) -> Response:
        queue: asyncio.Queue[Preview | None] = asyncio.Queue()
        job = self._take(exchange, queue)
        job.future.add_done_callback(lambda _: queue.put_nowait(None))
        return StreamingResponse(
            self._events(exchange, job, queue), headers={"Cache-Control": "no-store"}, media_type=EVENTS
        )

    async def _events(
        self, exchange: Exchange, job: Job, queue: "asyncio.Queue[Preview | None]"
    ) -> AsyncIterator[bytes]:
        """Previews until the samples are done, then those; or what went wrong."""
        spec, batcher = exchange.service.ability.gives, exchange.version.batcher
        try:
            async with asyncio.timeout(self.host.served.limits.request_timeout_s):
                while (preview := await queue.get()) is not None:
                    yield event(
                        "preview", {"call": preview.call, "calls": preview.calls, **shown(preview.samples, spec)}
                    )
                outcome = await batcher.finished(job)
            yield event("done", {**self._facts(exchange, outcome), **shown(outcome.samples, spec)})
        except Exception as error:
            yield event("error", json.loads(bytes(refused(error).body)))
        finally:
            batcher.leave(job)
