"""The client that waits."""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
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


class Client:
    """Asks the models of one server; threads may share it.

    ``timeout_s``: seconds without a byte after which a try is given up; the server's own limit is 60. ``retries``: how
    often a request is sent again that was turned away (503, or 429 with Retry-After) or lost before it was answered.
    ``remember``: how many answers are kept to be used again if the server says that they still hold.

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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        randbelow: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._terms = Terms(
            url, token=token, timeout_s=timeout_s, retries=retries, remember=remember, randbelow=randbelow
        )
        self._http = httpx.Client(transport=transport, **self._terms.http)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def models(self) -> list[ModelRecord]:
        """What is served; raises ClientError."""
        return models_in(self._whole(Call(LISTING)))

    def describe(self, name: str) -> ModelRecord:
        """One model, with its tasks; raises ClientError."""
        return model_in(self._whole(Call(path_of(name))))

    def model(self, name: str) -> "Model":
        """The model that answers at /v1/models/NAME, to be asked; nothing is sent yet."""
        return Model(self, name)

    def run(self, name: str, task: str, /, **settings: Any) -> Result:
        """One task of one model; raises ClientError."""
        return result_in(self._whole(self._terms.call(name, task, settings)))

    def stream(self, name: str, task: str, /, *, previews: int = 10, **settings: Any) -> Iterator[Preview | Result]:
        """A sampling task with its samples seen on their way; the last is the result. Raises ClientError."""
        events = Events()
        with closing(self._opened(self._terms.stream(name, task, previews, settings))) as response:
            try:
                for line in response.iter_lines():
                    if (told := events.feed(line)) is not None:
                        yield told
            except httpx.RequestError as error:
                raise no_answer(error, begun=True) from None
        events.check_whole()

    def _whole(self, call: Call) -> httpx.Response:
        held = self._terms.memory.held(call)
        response = self._opened(call, held)
        try:
            response.read()
        except httpx.RequestError as error:
            raise no_answer(error, begun=True) from None
        return self._terms.memory.settle(call, response, held)

    def _opened(self, call: Call, held: httpx.Response | None = None) -> httpx.Response:
        """The answer, its body still to be read, after as many tries as it takes."""
        for tried in itertools.count():
            got = self._tried(call, held)
            wait_s = self._terms.wait_s(tried, got)
            if wait_s is None:
                return self._terms.opened(got)
            self._sleep(wait_s)
        raise AssertionError

    def _tried(self, call: Call, held: httpx.Response | None) -> Got:
        request = call.request(self._http.build_request, held.headers["etag"] if held else None)
        try:
            response = self._http.send(request, stream=True)
        except httpx.RequestError as error:
            return error
        if not response.is_success:
            with closing(response), suppress(httpx.RequestError):
                response.read()
        return response


class Model(TaskCalls[Result]):
    """One served model."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self.name = client, name

    def describe(self) -> ModelRecord:
        """What it is, what it can do, and how busy it is; raises ClientError."""
        return self._client.describe(self.name)

    def run(self, task: str, /, **settings: Any) -> Result:
        """Any task by name, with whatever settings it takes; raises ClientError."""
        return self._client.run(self.name, task, **settings)

    def stream(self, task: str = "sample", /, *, previews: int = 10, **settings: Any) -> Iterator[Preview | Result]:
        """A sampling task with about ``previews`` looks at the samples on their way; the last item is the result.

        Leaving early frees what the server computes. Raises ClientError.
        """
        return self._client.stream(self.name, task, previews=previews, **settings)
