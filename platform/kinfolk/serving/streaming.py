"""Answers as server-sent events: previews while rows are on their way, then what was asked for, or what went wrong."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor

from kinfolk.serving.batcher import Job, Preview, SamplingError
from kinfolk.serving.exchange import Exchange
from kinfolk.serving.media import EVENTS, INLINE_ELEMENTS, event, shown
from kinfolk.serving.refusals import refused

_HELD_ELEMENTS = 1_048_576  # of previews of one request that wait to be sent
_READ_S = 5.0  # after its deadline a client may take so long to read what it was sent


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request that was taken, whose caller is told how far it is."""

    exchange: Exchange
    job: Job
    previews: asyncio.Queue[Preview | None]  # that were not sent yet; None: the request has ended


class _Bounded(StreamingResponse):
    """A stream that ends at a time, also where its client has stopped to read."""

    def __init__(self, begun: _Begun, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"}, media_type=EVENTS)
        self._begun, self._events = begun, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._begun.exchange
        try:
            with suppress(TimeoutError):  # the connection is closed without an end
                async with asyncio.timeout_at(exchange.deadline.at + _READ_S), aclosing(self._events):
                    await super().__call__(scope, receive, send)
        finally:
            exchange.version.batcher.leave(self._begun.job)  # also where no event was asked for


def stream(exchange: Exchange, again: Callable[[], Exchange]) -> Response:
    """Events of a request that is taken, or refused, before the first of them.

    ``again`` gives the same request to the version in service, which answers what one on trial has failed.
    """
    try:
        begun = _begin(exchange)
    except SamplingError as error:
        if not exchange.host.blame(exchange.version, error):
            raise
        begun = _begin(again())
    return _Bounded(begun, _events(begun, again))


def _begin(exchange: Exchange) -> _Begun:
    previews: asyncio.Queue[Preview | None] = asyncio.Queue()

    def put(preview: Preview) -> None:
        held = max(_HELD_ELEMENTS // preview.samples.numel(), 1)
        while previews.qsize() >= held:  # who reads more slowly than rows advance misses some
            previews.get_nowait()
        previews.put_nowait(preview)

    job = exchange.take(put)
    job.future.add_done_callback(lambda _: previews.put_nowait(None))
    return _Begun(exchange, job, previews)


async def _events(begun: _Begun, again: Callable[[], Exchange]) -> AsyncGenerator[bytes, None]:
    """Previews until the samples are done, then those; or what went wrong."""
    try:
        try:
            async with aclosing(_told(begun)) as events:
                async for each in events:
                    yield each
        except SamplingError as error:
            if not begun.exchange.host.blame(begun.exchange.version, error):
                raise
            async with aclosing(_told(_begin(again()))) as events:
                async for each in events:
                    yield each
    except Exception as error:
        yield event("error", json.loads(bytes(refused(error).body)))


async def _told(begun: _Begun) -> AsyncGenerator[bytes, None]:
    exchange = begun.exchange
    try:
        while (preview := await _next_preview(begun)) is not None:
            facts = {"call": preview.call, "calls": preview.calls}
            yield event("preview", {**facts, **await _shown(preview.samples, exchange)})
        async with asyncio.timeout_at(exchange.deadline.at):
            outcome = await exchange.finished(begun.job)
        yield event("done", {**exchange.facts(outcome), **await _shown(outcome.samples, exchange)})
    finally:
        exchange.version.batcher.leave(begun.job)


async def _next_preview(begun: _Begun) -> Preview | None:
    try:
        async with asyncio.timeout_at(begun.exchange.deadline.at):
            return await begun.previews.get()
    except TimeoutError:
        begun.exchange.given_up(begun.job)
        raise


async def _shown(samples: Tensor, exchange: Exchange) -> dict[str, Any]:
    spec = exchange.service.ability.gives
    large = samples.numel() > INLINE_ELEMENTS
    return await asyncio.to_thread(shown, samples, spec) if large else shown(samples, spec)
