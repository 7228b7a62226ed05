"""Clients who leave before they are answered; for apps without Serve, which does the same for its replicas."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UntilLeft:
    """ASGI middleware that ends what goes on for a client once the client is gone.

    The body is read by the app alone, as fast as it likes; only what comes after it is listened to here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        whole, left = asyncio.Event(), asyncio.Event()  # the body has come; the client is gone, or answered

        async def received() -> Message:
            if whole.is_set():
                await left.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if not message.get("more_body", False):
                whole.set()
            return message

        async def listen() -> None:
            await whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        async def answer() -> None:
            await self._app(scope, received, send)

        await _first_to_end(asyncio.create_task(answer()), asyncio.create_task(listen()))


async def _first_to_end(answering: asyncio.Task[None], listening: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        listening.cancel()
        if not answering.done():
            answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
