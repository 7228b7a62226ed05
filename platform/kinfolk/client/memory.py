"""Answers that are kept, so that the server need not make or send again what has not changed."""

import httpx

from kinfolk.client.calls import Call


class Memory:
    """The last ``size`` answers that have an ETag, those asked for last. Source: RFC 9110, section 13.1.2."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[Call, httpx.Response] = {}

    def held(self, call: Call) -> httpx.Response | None:
        """The answer that was kept for ``call``."""
        return self._kept.get(call)

    def settle(self, call: Call, answer: httpx.Response, held: httpx.Response | None) -> httpx.Response:
        """The whole answer to ``call``: ``answer``, or what was ``held`` where the server says that it still holds."""
        if held is not None and answer.status_code == httpx.codes.NOT_MODIFIED:
            answer = held
        if self._size > 0 and "etag" in answer.headers:
            self._kept.pop(call, None)
            self._kept[call] = answer
            for oldest in list(self._kept)[: -self._size]:
                self._kept.pop(oldest, None)
        return answer
