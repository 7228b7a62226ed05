"""The version of a model that an endpoint serves, and the one that may follow it.

A new version is tried on a share of the requests. If it fails any, they are answered by the version before it, which
stays; if not, it takes over after a while, and the one before finishes what it has begun.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from kinfolk.abilities import Ability, abilities
from kinfolk.contract import Model
from kinfolk.serving.batcher import Batcher, Outcome
from kinfolk.serving.config import ServedModel
from kinfolk.serving.schema import body_model

_JUDGING_S = 0.05  # how often it is looked whether a version on trial has answered


@dataclass(frozen=True, slots=True)
class Service:
    """One task of a model behind HTTP."""

    ability: Ability
    body: type[BaseModel]  # of a request


@dataclass(frozen=True, slots=True)
class Version:
    """A loaded version of a model with what serves it."""

    model: Model
    version: str
    services: Mapping[str, Service]  # by the name of the task
    batcher: Batcher


@dataclass(slots=True)
class Trial:
    """A version that answers a share of the requests until it is trusted, or not."""

    version: Version
    asked: int = 0  # requests since it began, of either version
    answered: int = 0  # of those that this version has, with what they asked for
    late: int = 0  # of those, not done in the time that the serve file allows
    failures: int = 0
    refused: str | None = None  # why it is not to take over
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, reason: str) -> None:
        """It will not take over."""
        self.refused = self.refused or reason
        self.over.set()


def _in_service(served: ServedModel, model: Model, version: str) -> Version:
    services = {
        name: Service(ability, body_model(model, ability, served.limits.max_n))
        for name, ability in abilities(model).items()
    }
    return Version(model, version, services, Batcher(model.tasks, served.batch_limits, served.device))


class ModelHost:
    """Holds the versions of one model that answer requests; used in one event loop."""

    def __init__(self, served: ServedModel, model: Model | None = None, version: str = "") -> None:
        self.served = served
        self._current = None if model is None else _in_service(served, model, version)
        self.trial: Trial | None = None
        self.stale: str | None = None  # why the version in service may not be the one that is wanted
        self.look: Callable[[], Awaitable[None]] | None = None  # at the registry, now; None: nobody follows one
        self.remembered: Mapping[str, Any] = {}  # what was said of a model that was unloaded
        self.on_answer: Callable[[Version, str, Outcome], None] = lambda *_: None  # told of each, and its task
        self._retiring: dict[asyncio.Task[None], Version] = {}

    @property
    def loaded(self) -> bool:
        """Whether a model is held; all else but ``load`` and ``close`` is for a host that holds one."""
        return self._current is not None

    @property
    def current(self) -> Version:
        """The version in service."""
        assert self._current is not None
        return self._current

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.current.batcher.alive

    @property
    def versions(self) -> list[Version]:
        """Those that answer requests."""
        trial = [] if self.trial is None else [self.trial.version]
        return trial if self._current is None else [self._current, *trial]

    @property
    def held(self) -> list[Version]:
        """Those that take memory: they answer requests, or finish what they have begun."""
        return [*self.versions, *self._retiring.values()]

    async def retired(self) -> None:
        """Wait until every version that was replaced has finished what it had begun."""
        if self._retiring:
            await asyncio.wait(self._retiring)  # one who leaves ends none of them

    @property
    def tasks(self) -> list[str]:
        """What the model can do, loaded or not; nothing is known of one that was never loaded."""
        known = [version.services for version in self.versions] or [self.remembered.get("tasks", {})]
        return list(dict.fromkeys(name for each in known for name in each))

    def choose(self) -> Version:
        """The version that answers the next request: every so many times the one on trial."""
        trial, share = self.trial, self.served.rollout.share
        if trial is None or trial.over.is_set():
            return self.current
        trial.asked += 1
        return trial.version if int(trial.asked * share) > int((trial.asked - 1) * share) else self.current

    def answered(self, version: Version, task: str, outcome: Outcome) -> None:
        """A request got what it asked for of ``version``."""
        if self.trial is not None and self.trial.version is version:
            self.trial.answered += 1
        self.on_answer(version, task, outcome)

    def late(self, version: Version) -> None:
        """A request was not done by ``version`` in the time that the serve file allows."""
        if self.trial is not None and self.trial.version is version:
            self.trial.late += 1

    def blame(self, version: Version, error: Exception) -> bool:
        """A request failed on ``version``; whether another one is there to answer it."""
        trial = self.trial
        if trial is not None and trial.version is version:
            trial.failures += 1
            if trial.failures > self.served.rollout.max_failures:
                trial.end(f"{trial.failures} of its requests failed on trial: {error}")
        return version is not self._current

    async def roll_out(self, model: Model, version: str) -> str | None:
        """Let ``model`` take over after its trial; why it did not, or None.

        Requests end on the version they began on.
        """
        trial = self.trial = Trial(_in_service(self.served, model, version))
        try:
            async with asyncio.timeout(self.served.rollout.trial_s):
                await trial.over.wait()
        except TimeoutError:
            await self._judge(trial)
        self.trial = None
        if trial.refused is None:
            self._current, leaving = trial.version, self.current
        else:
            leaving = trial.version
        self._retire(leaving)
        return trial.refused

    async def _judge(self, trial: Trial) -> None:
        """End a trial whose version cannot work, or has not answered a request in the time that one may take."""
        if not trial.version.batcher.alive:
            trial.end("its sampling thread has stopped")
        batcher, until = trial.version.batcher, time.monotonic() + self.served.limits.request_timeout_s
        while batcher.requests and not (trial.answered or trial.over.is_set()) and time.monotonic() < until:
            await asyncio.sleep(_JUDGING_S)
        if not trial.answered and (trial.late or batcher.requests):
            trial.end("it has answered no request in the time that one may take")

    def _retire(self, version: Version) -> None:
        """Let a version finish what it has begun."""
        task = asyncio.create_task(version.batcher.close(self.served.limits.request_timeout_s))
        self._retiring[task] = version
        task.add_done_callback(self._retiring.pop)

    def load(self, model: Model, version: str) -> None:
        """Hold ``model``, where none was held."""
        assert self._current is None
        self._current = _in_service(self.served, model, version)

    async def unload(self) -> None:
        """Let go of the model; nobody may be rolling out another one."""
        leaving, self._current, self.trial = self.versions, None, None
        await self._close(leaving)

    async def close(self) -> None:
        """Finish what was taken and take no more."""
        await self._close(self.versions)

    async def _close(self, versions: Sequence[Version]) -> None:
        closing = [version.batcher.close(self.served.drain_timeout_s) for version in versions]
        await asyncio.gather(*closing, *self._retiring)
