"""Small models that take turns in one replica: those used least recently make room in memory for one asked for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from kinfolk.contract import Model
from kinfolk.errors import ConfigError
from kinfolk.serving.app import describe
from kinfolk.serving.batcher import OverloadError
from kinfolk.serving.config import ServedModel, Shared
from kinfolk.serving.follower import Follower, Waiting
from kinfolk.serving.host import ModelHost
from kinfolk.serving.versions import Registry, Release, load, obtain, told_afar, wanted

_LOG = logging.getLogger(__name__)
_MB = 10**6
_BUSY_S, _BROKEN_S = 1, 10  # after which one should try again, where all are at work, and where loading has failed

Running = Callable[[], Coroutine[Any, Any, None]]  # what goes on for as long as a model is loaded


def bytes_of(model: Model) -> int:
    """What a loaded model takes: its parameters and buffers and those of its parents."""
    tensors = (*model.module.parameters(), *model.module.buffers())
    return sum(each.nbytes for each in tensors) + sum(map(bytes_of, model.parents.values()))


def bytes_in(folder: Path) -> int:
    """What the model of a bundle will take, by the files of its weights and its parents'."""
    return sum(map(_tensor_bytes, folder.rglob("model.safetensors")))


def _tensor_bytes(path: Path) -> int:
    """All but the header and, in eight bytes, its length. Source: https://huggingface.co/docs/safetensors."""
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    return max(path.stat().st_size - header, 0)


def check_fits(shared: Shared, name: str, size: int) -> None:
    """Refuse a model of ``size`` bytes that could never be loaded.

    Raises:
        ConfigError: with what it takes and what there is.
    """
    if size > shared.memory_mb * _MB:
        raise ConfigError(
            f"{name} takes {size / _MB:.4g} MB, and the shared models together may take {shared.memory_mb:g} MB. "
            "Raise memory_mb, or leave 'shared' out of the model, so that it has a replica of its own."
        )


@dataclass(slots=True)
class _Place:
    """One model with what goes on for it while it is loaded."""

    host: ModelHost
    follower: Follower
    metered: Running
    leases: int = 0  # requests that hold it, or wait until it is loaded
    used: int = 0  # its turn among the requests that have ended
    loading: asyncio.Task[None] | None = None
    work: list[asyncio.Task[None]] = field(default_factory=list)
    releases: dict[str, Release] = field(default_factory=dict)  # that were loaded, by version
    had: Release | None = None  # that was in service when it was unloaded, and can be loaded again


class SharedModels:
    """Models by their routes; used in one event loop, between the start and the end of ``life``."""

    def __init__(
        self,
        shared: Shared,
        models: Sequence[ServedModel],
        registry: Registry | None,
        wait_for: Callable[[str], Waiting] = lambda _: asyncio.sleep,
        metered: Callable[[ModelHost], Running] = lambda _: lambda: asyncio.sleep(0),
    ) -> None:
        self._shared, self._registry = shared, registry
        self._wait_for, self._metered = wait_for, metered
        self._lock = asyncio.Lock()  # held while room is made and taken
        self._turn = 0
        self._places = {model.place: self._place(shared.settled(model)) for model in models}

    def _place(self, served: ServedModel) -> _Place:
        async def beside(_: ServedModel, release: Release) -> Model:
            return await self._model(place, release)

        host = ModelHost(served)
        follower = Follower(host, self._registry, self._wait_for(served.name), beside)
        host.look = follower.look
        place = _Place(host, follower, self._metered(host))
        return place

    @property
    def hosts(self) -> Mapping[str, ModelHost]:
        """Every model, loaded or not."""
        return {name: place.host for name, place in self._places.items()}

    @asynccontextmanager
    async def life(self, _: FastAPI | None = None) -> AsyncIterator[None]:
        """Each model is loaded once, so that it is known what it does; afterwards all are stopped."""
        for place in self._places.values():
            try:
                await self._loaded(place)
            except OverloadError as error:  # the others serve all the same
                _LOG.error("%s", error)
        try:
            yield
        finally:
            for place in self._places.values():
                self._stop(place)
            await asyncio.gather(*(place.host.close() for place in self._places.values()))

    @asynccontextmanager
    async def lease(self, name: str, deadline: float | None = None) -> AsyncIterator[ModelHost]:
        """The model, loaded if it is not, and not unloaded before the end.

        It is waited for until ``deadline``, of the event loop's clock, or as long as a request may take.

        Raises:
            OverloadError: there is no room now, or it cannot be loaded.
            TimeoutError: it is not loaded in time.
        """
        place = self._places[name]
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + place.host.served.limits.request_timeout_s
        place.leases += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._loaded(place)
            yield place.host
        finally:
            self._turn += 1
            place.leases, place.used = place.leases - 1, self._turn

    async def _loaded(self, place: _Place) -> None:
        """Wait until it is; those who ask for the same model wait for one loading."""
        if place.host.loaded:
            return
        if place.loading is None or place.loading.done():
            place.loading = asyncio.create_task(self._load(place))
        loading, name = place.loading, place.host.served.name
        await asyncio.wait([loading])  # one who leaves does not end it for the others
        if loading.cancelled():
            raise OverloadError(f"{name} is being stopped: try again in {_BUSY_S} s.", _BUSY_S)
        try:
            loading.result()
        except OverloadError:
            raise
        except Exception as error:
            raise OverloadError(f"{name} cannot be loaded now: try again in {_BROKEN_S} s.", _BROKEN_S) from error

    async def _load(self, place: _Place) -> None:
        """Load the version that is wanted now, or where it cannot be had the one that was there before."""
        try:
            await self._hold(place, await asyncio.to_thread(self._wanted, place))
            place.host.stale = None
        except OverloadError:
            raise
        except Exception as error:
            served = place.host.served
            what = f"{served.name} could not be loaded as it is wanted now"
            place.host.stale = f"{what}: {told_afar(error, served, self._registry)}"
            _LOG.error("%s: %s", what, error)
            if place.had is None:
                raise
            await self._hold(place, place.had)

    def _wanted(self, place: _Place) -> Release:
        served = place.host.served
        version = wanted(served, self._registry)
        if place.had is not None and version in place.follower.refused:
            raise ConfigError(place.follower.refused[version])
        return obtain(served, self._registry, version)

    async def _hold(self, place: _Place, release: Release) -> None:
        model = await self._model(place, release)
        place.host.load(model, release.version)
        place.work = [asyncio.create_task(work()) for work in (place.follower.follow, place.metered)]

    async def _model(self, place: _Place, release: Release) -> Model:
        """The model of a release, once there is room; the caller puts it in service before it awaits anything."""
        async with self._lock:
            await self._make_room(place, bytes_in(release.folder))
            tried = place.releases.get(release.version) == release
            model = await asyncio.to_thread(load, place.host.served, release, tried)
            await self._make_room(place, bytes_of(model))
        place.releases[release.version] = release
        return model

    async def _make_room(self, place: _Place, size: int) -> None:
        """Unload models without a request, the least recently used first, until ``size`` bytes more fit.

        Raises:
            ConfigError: they never fit.
            OverloadError: they do not fit beside the models at work; none is unloaded.
        """
        name, places = place.host.served.name, self._places.values()
        check_fits(self._shared, name, size)
        await asyncio.gather(*(each.host.retired() for each in places if not each.leases))  # at once: nobody asks them
        while (free := self._shared.memory_mb * _MB - sum(map(_taken, places))) < size:
            idle = [each for each in places if each is not place and each.host.loaded and not each.leases]
            if free + sum(map(_taken, idle)) < size:
                text = f"There is no room for {name} beside the models at work: try again in {_BUSY_S} s."
                raise OverloadError(text, _BUSY_S)
            await self._unload(min(idle, key=lambda each: each.used))

    async def _unload(self, place: _Place) -> None:
        host, version = place.host, place.host.current.version
        self._stop(place)
        host.remembered = {**describe(host), "requests": 0, "evaluations_queued": 0}
        place.had = None if host.served.bundle else place.releases.get(version)  # a folder may hold another one by now
        await host.unload()
        _LOG.info("%s is unloaded.", host.served.name)

    def _stop(self, place: _Place) -> None:
        for task in (*place.work, *filter(None, [place.loading])):
            task.cancel()
        place.follower.stop()


def _taken(place: _Place) -> int:
    return sum(bytes_of(version.model) for version in place.host.held)
