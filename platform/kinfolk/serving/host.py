"""The model an endpoint serves now. A new version takes over for new requests while the old one finishes its own."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from kinfolk.abilities import Ability, abilities
from kinfolk.contract import Model
from kinfolk.serving.batcher import Batcher
from kinfolk.serving.config import ServedModel
from kinfolk.serving.schema import body_model


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


def _in_service(served: ServedModel, model: Model, version: str) -> Version:
    services = {
        name: Service(ability, body_model(model, ability, served.limits.max_n))
        for name, ability in abilities(model).items()
    }
    return Version(model, version, services, Batcher(model.tasks, served.batch_limits, served.device))


class ModelHost:
    """Holds the version of one model that is in service."""

    def __init__(self, served: ServedModel, model: Model, version: str) -> None:
        self.served = served
        self.current = _in_service(served, model, version)
        self.refused: str | None = None  # why the version asked for last is not the one in service
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether a request would be sampled now."""
        return self.current.batcher.alive

    async def switch(self, model: Model, version: str) -> None:
        """Serve ``model`` from the next request on; requests being sampled end on the version they began with."""
        old, self.current = self.current, _in_service(self.served, model, version)
        task = asyncio.create_task(old.batcher.close(self.served.limits.request_timeout_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Finish what was taken and take no more."""
        await asyncio.gather(self.current.batcher.close(self.served.drain_timeout_s), *self._retiring)
