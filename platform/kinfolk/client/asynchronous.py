"""The client that is awaited. Every decision is shared with the one that waits; what differs is how bytes move."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import httpx

from kinfolk.client.answers import Events, Preview, Result, result_in
from kinfolk.client.calls import LISTING, Call, path_of
from kinfolk.client.errors import no_answer
from kinfolk.client.records import ModelRecord, model_in, models_in
from kinfolk.client.retries import Got, Retries
from kinfolk.client.tasks import TaskCalls
from kinfolk.client.terms import Terms


class AsyncClient:
    """Asks the models of one server from an event loop; the arguments are those of ``Client``.

    Raises:
        ConfigError: ``url`` is no address.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 65.0,
        retries: int | Retries = 4,
        remember: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        randbelow: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._terms = Terms(
            url, token=token, timeout_s=timeout_s, retries=retries, remember=remember, randbelow=randbelow
        )
        self._http = httpx.AsyncClient(transport=transport, **self._terms.http)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def models(self) -> list[ModelRecord]:
        """What is served; raises ClientError."""
        return models_in(await self._whole(Call(LISTING)))

    async def describe(self, name: str) -> ModelRecord:
        """One model, with its tasks; raises ClientError."""
        return model_in(await self._whole(Call(path_of(name))))

    def model(self, name: str) -> "AsyncModel":
        """The model that answers at /v1/models/NAME, to be asked; nothing is sent yet."""
        return AsyncModel(self, name)

    async def run(self, name: str, task: str, /, **settings: Any) -> Result:
        """One task of one model; raises ClientError."""
        return result_in(await self._whole(self._terms.call(name, task, settings)))

    async def stream(
        self, name: str, task: str, /, *, previews: int = 10, **settings: Any
    ) -> AsyncIterator[Preview | Result]:
        """A sampling task with its samples seen on their way; the last is the result. Raises ClientError."""
        events = Events()
        async with aclosing(await self._opened(self._terms.stream(name, task, previews, settings))) as response:
            try:
                async for line in response.aiter_lines():
                    if (told := events.feed(line)) is not None:
                        yield told
            except httpx.RequestError as error:
                raise no_answer(error, begun=True) from None
        events.check_whole()

    async def _whole(self, call: Call) -> httpx.Response:
        held = self._terms.memory.held(call)
        response = await self._opened(call, held)
        try:
            await response.aread()
        except httpx.RequestError as error:
            raise no_answer(error, begun=True) from None
        return self._terms.memory.settle(call, response, held)

    async def _opened(self, call: Call, held: httpx.Response | None = None) -> httpx.Response:
        """The answer, its body still to be read, after as many tries as it takes."""
        for tried in itertools.count():
            got = await self._tried(call, held)
            wait_s = self._terms.wait_s(tried, got)
            if wait_s is None:
                return self._terms.opened(got)
            await self._sleep(wait_s)
        raise AssertionError

    async def _tried(self, call: Call, held: httpx.Response | None) -> Got:
        request = call.request(self._http.build_request, held.headers["etag"] if held else None)
        try:
            response = await self._http.send(request, stream=True)
        except httpx.RequestError as error:
            return error
        if not response.is_success:
            async with aclosing(response):
                with suppress(httpx.RequestError):
                    await response.aread()
        return response


class AsyncModel(TaskCalls[Awaitable[Result]]):
    """One served model; its tasks are awaited."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client, self.name = client, name

    async def describe(self) -> ModelRecord:
        """What it is, what it can do, and how busy it is; raises ClientError."""
        return await self._client.describe(self.name)

    async def run(self, task: str, /, **settings: Any) -> Result:
        """Any task by name, with whatever settings it takes; raises ClientError."""
        return await self._client.run(self.name, task, **settings)

    def stream(
        self, task: str = "sample", /, *, previews: int = 10, **settings: Any
    ) -> AsyncIterator[Preview | Result]:
        """A sampling task with about ``previews`` looks at the samples on their way; the last item is the result.

        Who leaves early frees what the server computes by closing it, as ``contextlib.aclosing`` does. Raises
        ClientError.
        """
        return self._client.stream(self.name, task, previews=previews, **settings)
