"""What the scripts that measure serving share: Kinfolk serving in processes of its own, and how it is asked."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from kinfolk.cluster import connect, free_port
from kinfolk.errors import KinfolkError
from kinfolk.serving.config import ServedModel, ServeFile
from kinfolk.serving.haproxy import haproxy_environment
from kinfolk.serving.versions import Registry
from kinfolk_pipelines.wire import Wire

READY_S = 60.0  # for a server to answer
_END_S = 30.0  # for a process to end when it is asked to


class NotInTimeError(KinfolkError):
    """What is measured did not happen."""


def alone(run: Callable[..., None], *arguments: Any) -> None:
    """Call ``run`` as the first of a process group."""
    os.setpgrp()
    run(*arguments)


def end(process: Any) -> None:
    """End a process that was started through ``alone``, and every one it has started."""
    process.terminate()
    process.join(_END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def serve(file: ServeFile, cpus: int, environment: Mapping[str, str], registry: Registry | None = None) -> None:
    """Serve on a Ray of this process until it is told to end."""
    from kinfolk.serving.launch import serve_models, stop_serving

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory() as state:
        connect(None, Path(state), cpus=cpus, environment=environment)
        serve_models(file, registry)
        try:
            signal.pause()
        finally:
            stop_serving()


async def answering(url: str, body: bytes = b'{"seed": 0}') -> None:
    """Return once there is a picture at ``url``.

    Raises:
        NotInTimeError: there was none.
    """
    try:
        async with asyncio.timeout(READY_S):
            while not await _answers(url, body):
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise NotInTimeError(f"{url} did not answer within {READY_S:g} s.") from None


async def _answers(url: str, body: bytes) -> bool:
    try:
        wire = Wire(urlsplit(url))
        reply = await wire.ask(body)
        wire.close()
    except (OSError, EOFError, ValueError):
        return False
    return reply.status == 200 and reply.size > 0


@dataclass(frozen=True, slots=True)
class Server:
    """Kinfolk as `kinfolk serve` starts it."""

    port: int
    pid: int

    def url(self, name: str, task: str = "sample") -> str:
        """Where a task is asked for."""
        return f"http://127.0.0.1:{self.port}/v1/models/{name}/{task}"

    def get(self, path: str) -> Any:
        """What a path answers, as JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=READY_S) as answer:
            return json.load(answer)

    def replicas(self, name: str) -> list[psutil.Process]:
        """The processes in which a model is."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline() and process.cmdline()[0].startswith(f"ray::ServeReplica:model-{name}:"):
                    found.append(process)
        return found


@contextmanager
def serving(
    models: Sequence[ServedModel], cpus: int = 1, registry: Registry | None = None, **variables: str
) -> Iterator[Server]:
    """Kinfolk behind HAProxy, in processes of its own that end with the block; every model answers."""
    file = ServeFile(port=free_port(), models=list(models))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=alone, args=(serve, file, cpus, {**haproxy_environment(), **variables}, registry))
    process.start()
    assert process.pid is not None
    server = Server(file.port, process.pid)
    try:
        for model in models:
            asyncio.run(answering(server.url(model.route or model.name)))
        yield server
    finally:
        end(process)


def pin(process: psutil.Process, cpu: int) -> None:
    """Let every thread of a process run on one CPU alone."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {cpu})


def wait_until(what: str, holds: Callable[[], bool], within_s: float) -> float:
    """Seconds until something holds; ``what`` names it.

    Raises:
        NotInTimeError: it did not.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within_s:
            raise NotInTimeError(f"It did not happen within {within_s:g} s: {what}.")
        time.sleep(0.05)
    return time.monotonic() - began
