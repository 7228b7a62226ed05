"""The Ray Serve deployments: for each model, or several, the replica that samples and answers HTTP, and the root's."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers

from kinfolk.memory import keep_freed_memory
from kinfolk.serving import images_api
from kinfolk.serving.access import Access
from kinfolk.serving.app import describe, endpoint_app
from kinfolk.serving.autoscaling import WorkMeter
from kinfolk.serving.config import ServedModel, Shared
from kinfolk.serving.deadlines import Deadline, timeout_in
from kinfolk.serving.directory import ImagesAnswer, directory_app, images_of
from kinfolk.serving.follower import Follower
from kinfolk.serving.host import ModelHost
from kinfolk.serving.logs import log_as_serve
from kinfolk.serving.meters import Meters
from kinfolk.serving.shared import Running, SharedModels
from kinfolk.serving.shared_app import shared_app
from kinfolk.serving.versions import Registry, load, locate
from kinfolk.serving.webhook import Board, Inbox

_LOG = logging.getLogger(__name__)
_ANSWER_TIMEOUT_S = 2.0  # for a replica to say what it serves
_LISTING_AGE_S = 1.0  # for so long a list is answered again, so that nobody can make replicas busy by asking for it
DIRECTORY, SHARED = "directory", "shared"  # names of the Serve applications of the root and of the shared models
_STATES = {"RUNNING": "ready", "DEPLOYING": "starting", "NOT_STARTED": "starting", "DELETING": "stopping"}


def _metered(host: ModelHost) -> Running:
    meters = Meters(host)
    host.on_answer = meters.answered
    return meters.run


class _Handles:
    """Handles of applications; Serve's controller, which may be away, is asked for each once and on another thread."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Task[DeploymentHandle]] = {}

    async def of(self, application: str) -> DeploymentHandle:
        """The handle of an application; raises as ``serve.get_app_handle`` does."""
        asked = self._asked.get(application)
        if asked is None or (asked.done() and asked.exception() is not None):
            asked = asyncio.create_task(asyncio.to_thread(serve.get_app_handle, application))
            self._asked[application] = asked
        return await asyncio.shield(asked)  # one who leaves, in vain, leaves no thread behind for each time


class _Ear:
    """Hears from the root when an alias of one model may have moved, and tells the others through it."""

    def __init__(self, name: str, registry: Registry | None) -> None:
        self._name, self._registry, self._moves = name, registry, 0
        self._handles = _Handles()

    async def wait(self, seconds: float) -> None:
        """Until an alias of the model may have moved, if anyone says so; for ``seconds`` at most."""
        until = time.monotonic() + seconds
        if self._registry is not None:
            try:
                async with asyncio.timeout(seconds + _ANSWER_TIMEOUT_S):
                    root = await self._handles.of(DIRECTORY)
                    before, self._moves = self._moves, await root.moves.remote(self._name, self._moves, seconds)
                if before != self._moves:
                    return
            except Exception as error:  # the root is being replaced
                _LOG.warning("%s does not hear of aliases: %r", self._name, error)
        await asyncio.sleep(max(until - time.monotonic(), 0))

    async def tell(self) -> None:
        """Let every replica of the model look; where the root cannot be had, they look when they would have."""
        if self._registry is not None:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    await (await self._handles.of(DIRECTORY)).move.remote(self._name)
            except Exception as error:
                _LOG.warning("No other replica of %s is told to look: %r", self._name, error)


class SamplingReplica:
    """One replica of one model. Serve makes it an ASGI ingress and calls every method."""

    def __init__(
        self, served: ServedModel, registry: Registry | None, access: Sequence[Access], origins: Sequence[str] = ()
    ) -> None:
        log_as_serve()
        keep_freed_memory()
        torch.set_num_threads(served.cpu_threads)
        release = locate(served, registry)
        self._host = ModelHost(served, load(served, release), release.version)
        self._registry, self._access, self._origins = registry, access, origins
        self._work = WorkMeter()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return endpoint_app(self._host, self._access, self._life, self._origins)

    @asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        ear = _Ear(self._host.served.name, self._registry)
        follower = Follower(self._host, self._registry, ear.wait)

        async def look() -> None:
            await asyncio.gather(follower.look(), ear.tell())

        self._host.look = look
        running = [asyncio.create_task(work()) for work in (follower.follow, _metered(self._host))]
        yield
        for work in running:
            work.cancel()
        await self._host.close()

    async def check_health(self) -> None:
        """Let Serve replace this replica when its sampling thread has died."""
        if not self._host.ready:
            raise RuntimeError(f"The batcher of {self._host.served.name} has stopped.")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """How much there is to do, and how busy this replica was since it was asked last."""
        return self._work.since_last([version.batcher for version in self._host.versions])

    async def images(self, values: dict[str, Any], timeout_s: float) -> ImagesAnswer:
        """The answer of OpenAI's images API."""
        deadline = Deadline.after(timeout_s, self._host.served.limits.request_timeout_s)
        return await images_of(nullcontext(self._host), values, deadline)

    async def describe(self) -> dict[str, Any]:
        """What the list of models shows of this one."""
        return describe(self._host)


class SharedReplica:
    """The one replica of several models, which are in its memory when they are asked for."""

    def __init__(
        self,
        shared: Shared,
        models: Sequence[ServedModel],
        registry: Registry | None,
        access: Sequence[Access],
        origins: Sequence[str] = (),
    ) -> None:
        log_as_serve()
        keep_freed_memory()
        torch.set_num_threads(shared.threads)
        self._pool = SharedModels(shared, models, registry, lambda name: _Ear(name, registry).wait, _metered)
        self._access, self._origins = access, origins
        self._handles = _Handles()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return shared_app(self._pool, self._listing, self._access, self._origins)

    async def _listing(self) -> list[dict[str, Any]]:
        """The root's, as the address of the list leads here."""
        listed: list[dict[str, Any]] = await (await self._handles.of(DIRECTORY)).listing.remote()
        return listed

    async def check_health(self) -> None:
        """Let Serve replace this replica when a sampling thread has died."""
        if dead := [host.served.name for host in self._pool.hosts.values() if host.loaded and not host.ready]:
            raise RuntimeError(f"The batcher of {dead[0]} has stopped.")

    async def images(self, values: dict[str, Any], timeout_s: float, name: str) -> ImagesAnswer:
        """The answer of OpenAI's images API for one of the models."""
        deadline = Deadline.after(timeout_s, self._pool.hosts[name].served.limits.request_timeout_s)
        return await images_of(self._pool.lease(name, deadline.at), values, deadline)

    async def describe(self, name: str) -> dict[str, Any]:
        """What the list of models shows of one."""
        return describe(self._pool.hosts[name])


class DirectoryReplica:
    """The root: lists what is served and where."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        registry: Registry | None,
        access: Sequence[Access],
        origins: Sequence[str] = (),
    ) -> None:
        log_as_serve()
        self._models, self._access, self._origins = models, access, origins
        secret = None if registry is None else registry.secret
        self._board = Board()
        self._inbox = None if secret is None else Inbox(secret.get_secret_value(), self._board)
        self._listed: list[dict[str, Any]] = []
        self._listed_at = -math.inf
        self._listing_lock = asyncio.Lock()
        self._handles = _Handles()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return directory_app(self.listing, self._images, self._access, self._inbox, self._origins)

    async def moves(self, name: str, seen: int, timeout_s: float) -> int:
        """How often aliases of a model have moved, once that is not ``seen``, or after ``timeout_s``."""
        return await self._board.wait(name, seen, timeout_s)

    async def move(self, name: str) -> None:
        """An alias of a model may have moved: its replicas shall look."""
        await self._board.move(name)

    async def _images(self, place: str, values: Mapping[str, Any], headers: Headers) -> ImagesAnswer:
        """Let a replica of the model answer; one that sleeps is woken."""
        served = next(model for model in self._models if model.place == place)
        timeout_s = timeout_in(headers, served.limits.request_timeout_s)
        answered: ImagesAnswer
        try:
            async with asyncio.timeout(timeout_s + _ANSWER_TIMEOUT_S):
                handle = await self._handles.of(application_name(served))
                answered = await handle.images.remote(dict(values), timeout_s, *_whose(served))
        except TimeoutError:
            return 504, images_api.error("Not done in time: ask for less, or later.", 504), {}
        except (BackPressureError, DeploymentUnavailableError, RayActorError):
            text = f"{served.name} cannot take this now: try again in 1 s."
            return 503, images_api.error(text, 503), {"Retry-After": "1"}
        return answered

    async def listing(self) -> list[dict[str, Any]]:
        """What is said of every model."""
        async with self._listing_lock:
            if time.monotonic() - self._listed_at > _LISTING_AGE_S:
                status = await asyncio.to_thread(serve.status)
                self._listed = list(await asyncio.gather(*(self._describe(model, status) for model in self._models)))
                self._listed_at = time.monotonic()
        return self._listed

    async def _describe(self, served: ServedModel, status: Any) -> dict[str, Any]:
        """The model's own description where a replica gives one in time; otherwise its state as Serve sees it."""
        app = status.applications.get(application_name(served))
        running = sum(part.replica_states.get("RUNNING", 0) for part in app.deployments.values()) if app else 0
        facts = {"name": served.name, "address": served.path}
        if not running:
            state = "failed" if app is None else _STATES.get(app.status, "failed")
            return facts | {"state": "asleep" if state == "ready" else state}
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                handle = await self._handles.of(application_name(served))
                described: dict[str, Any] = await handle.describe.remote(*_whose(served))
        except Exception as error:  # a replica that dies meanwhile must not hide the others
            _LOG.warning("%s did not say what it serves: %r", served.name, error)
            return facts | {"state": "busy"}
        return described


def application_name(served: ServedModel) -> str:
    """The name of a model's Serve application."""
    return SHARED if served.shared else f"model-{served.place}"


def _whose(served: ServedModel) -> Sequence[str]:
    """What a replica of several models is told beside what it is asked."""
    return [served.place] if served.shared else []
