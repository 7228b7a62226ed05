"""One HTTP connection that stays open, as cheap as can be: who puts load on a server must not be the slower one."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that was read to its end."""

    status: int  # of HTTP
    size: int  # bytes of the body
    queued_ms: float | None  # in the server, as it says
    computed_ms: float | None
    retry_after_s: float | None = None  # when to come back, as a refusal says


def head_of(place: SplitResult, token: str | None) -> bytes:
    """All of a request to ``place`` before the length of its body."""
    key = f"Authorization: Bearer {token}\r\n" if token else ""
    host = place.netloc.rpartition("@")[2]
    kind = "Content-Type: application/json\r\n"
    return f"POST {place.path} HTTP/1.1\r\nHost: {host}\r\n{kind}{key}Content-Length: ".encode()


def header(head: bytes, name: bytes) -> bytes:
    """The value of a header in a head in lower case; empty where it is not there."""
    return head.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()


def _number(text: bytes) -> float | None:
    with suppress(ValueError):  # a Retry-After may be a date
        return float(text)
    return None


class Wire:
    """A connection to ``place``, opened when it is first needed and again after it broke."""

    def __init__(self, place: SplitResult, token: str | None = None) -> None:
        self._place, self._head = place, head_of(place, token)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> Reply:
        """The answer to one request. One that was closed unread while it was idle is opened once more.

        Raises:
            OSError, EOFError: there is no connection, or it broke.
            ValueError: the answer is no HTTP.
        """
        used = self._streams is not None
        try:
            return await self._exchange(body)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self.close()
            if not used or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                raise
        return await self._exchange(body)

    def close(self) -> None:
        """Let go of the connection; the next request opens another one."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def _exchange(self, body: bytes) -> Reply:
        if self._streams is None:
            tls, port = self._place.scheme == "https", self._place.port
            self._streams = await asyncio.open_connection(
                self._place.hostname, port or (443 if tls else 80), ssl=tls or None
            )
        reader, writer = self._streams
        writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        except asyncio.LimitOverrunError:
            raise ValueError("The answer is no HTTP.") from None
        size = await self._body(reader, head)
        if header(head, b"connection") == b"close":
            self.close()
        names = b"kinfolk-queued-ms", b"kinfolk-computed-ms", b"retry-after"
        return Reply(int(head.split(None, 2)[1]), size, *(_number(header(head, name)) for name in names))

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> int:
        """Bytes of the body, which is read and dropped."""
        if length := header(head, b"content-length"):
            return len(await reader.readexactly(int(length)))
        if header(head, b"transfer-encoding") != b"chunked":
            raise ValueError("The answer has no length.")
        size = 0
        while part := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            size += len((await reader.readexactly(part + 2))[:-2])
        await reader.readuntil(b"\r\n")
        return size
