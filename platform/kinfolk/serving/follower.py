"""A replica's model kept at the version that its alias means: looked up, loaded, checked, and let take over."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kinfolk.contract import Model
from kinfolk.errors import RegistryError
from kinfolk.serving.batcher import OverloadError
from kinfolk.serving.config import ServedModel
from kinfolk.serving.host import ModelHost
from kinfolk.serving.versions import Registry, Release, load, obtain, tell, told_afar, wanted

_LOG = logging.getLogger(__name__)

Loading = Callable[[ServedModel, Release], Awaitable[Model]]
Waiting = Callable[[float], Awaitable[None]]  # returns after so many seconds, or when an alias has moved


async def _load(served: ServedModel, release: Release) -> Model:
    return await asyncio.to_thread(load, served, release)


class Follower:
    """Follows for as long as ``follow`` runs; what ``load`` raises as an OverloadError it may give the next time."""

    def __init__(
        self, host: ModelHost, registry: Registry | None, wait: Waiting = asyncio.sleep, load: Loading = _load
    ) -> None:
        self._host, self._registry, self._wait, self._load = host, registry, wait, load
        self._wanted = ""  # the version that the alias means, as it was looked up last
        self.refused: dict[str, str] = {}  # that version, and why it is not tried again while it is wanted
        self._logged = ""  # of what is said of the host last
        self._rollout: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()  # an answer of the registry is never laid over a later one

    @property
    def _served(self) -> ServedModel:
        return self._host.served

    async def follow(self) -> None:
        """Look where the alias points, again and again; whatever is wrong there, the version in service goes on."""
        try:
            while True:
                await self._wait(self._served.alias_poll_s)
                await self.look()
        finally:
            self.stop()

    def stop(self) -> None:
        """Give up what is being rolled out."""
        if self._rollout is not None:
            self._rollout.cancel()

    async def look(self) -> None:
        """Look where the alias points now; a new version begins to be rolled out, which takes a while."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        try:
            version = await asyncio.to_thread(wanted, self._served, self._registry)
        except Exception as error:  # the registry is out of reach
            self._cannot_be_had(error)
            return
        if version != self._wanted:
            self._wanted, self.refused = version, {}
        trial = self._host.trial
        if trial is not None and trial.version.version != version:
            trial.end(f"the alias {self._served.alias} has moved on")
        if version == self._host.current.version:
            self._host.stale = None
        elif version in self.refused:
            self._host.stale = self.refused[version]
        elif self._rollout is None or self._rollout.done():
            self._rollout = asyncio.create_task(self._roll_out(version))

    async def _roll_out(self, version: str) -> None:
        try:
            release = await asyncio.to_thread(obtain, self._served, self._registry, version)
            model = await self._load(self._served, release)
            moved_on = version != self._wanted
            refused = "the alias has moved on" if moved_on else await self._host.roll_out(model, version)
        except (RegistryError, OverloadError) as error:  # it may be had the next time
            self._cannot_be_had(error)
            return
        except Exception as error:
            refused = told_afar(error, self._served, self._registry)
        if refused is None:
            self._host.stale = None
            _LOG.info("%s is at version %s.", self._served.name, version)
            return
        if version != self._wanted:  # nothing is wrong with it
            _LOG.info("%s is no longer to be at version %s.", self._served.name, version)
            return
        before = self._host.current.version
        reason = f"{self._served.name} stays at version {before}, version {version} is not served: {refused}"
        self.refused[version] = reason
        self._say(reason, reason)
        await asyncio.to_thread(tell, self._served, self._registry, version, refused)

    def _cannot_be_had(self, error: Exception) -> None:
        what = f"The version of {self._served.name} that is wanted now cannot be had"
        self._say(f"{what}: {told_afar(error, self._served, self._registry)}", f"{what}: {error}")

    def _say(self, reason: str, logged: str) -> None:
        if (reason, logged) != (self._host.stale, self._logged):
            _LOG.error("%s", logged)
        self._host.stale, self._logged = reason, logged
