"""The model an endpoint serves now. A new version takes over for new requests while the old one finishes its own."""

import asyncio
from dataclasses import dataclass

from pydantic import BaseModel

from kinfolk.contract import Model
from kinfolk.serving.batcher import Batcher
from kinfolk.serving.config import ServedModel
from kinfolk.serving.schema import body_model


@dataclass(frozen=True, slots=True)
class Version:
    """A loaded version of a model with what serves it."""

    model: Model
    version: str
    body: type[BaseModel]  # of a sampling request
    batcher: Batcher


def _in_service(served: ServedModel, model: Model, version: str) -> Version:
    tasks = model.tasks
    body = body_model(tasks, model.spec, served.limits.max_n)
    return Version(model, version, body, Batcher(tasks, served.batch_limits))


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
