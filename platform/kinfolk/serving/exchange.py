"""A checked request with the version that answers it, from being taken to what its answer says of itself."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kinfolk.serving.batcher import Job, Outcome, Preview
from kinfolk.serving.deadlines import Deadline
from kinfolk.serving.host import ModelHost, Service, Version
from kinfolk.serving.schema import Asked


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request for one task of one version."""

    host: ModelHost
    version: Version
    service: Service
    asked: Asked
    kind: str  # media type of the answer
    etag: str | None  # of the answer; None where the same request gives another next time
    previews: int
    deadline: Deadline

    def take(self, on_preview: Callable[[Preview], None] | None = None) -> Job:
        """Have the request taken, whose caller must await ``finished``; raises as the batcher's ``take`` does."""
        return self.version.batcher.take(
            self.asked.request,
            self.service.ability.name,
            within_s=self.deadline.left_s,
            previews=self.previews,
            on_preview=on_preview,
        )

    async def finished(self, job: Job) -> Outcome:
        """What the request got; raises as the batcher's ``finished`` does."""
        try:
            outcome = await self.version.batcher.finished(job)
        except asyncio.CancelledError:
            self.given_up(job)
            raise
        self.host.answered(self.version, self.service.ability.name, outcome)
        return outcome

    def given_up(self, job: Job) -> None:
        """Nobody waits any more; the version is late where one has waited as long as the serve file allows.

        What comes to it when half of that time is over, as bodies that are sent slowly do, says nothing of it.
        """
        had_s, most_s = time.perf_counter() - job.taken_at, self.host.served.limits.request_timeout_s
        if self.deadline.whole and self.deadline.left_s <= 0 and had_s >= most_s / 2:
            self.host.late(self.version)

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        """What an answer says of itself."""
        ability = self.service.ability
        return {
            "model": self.host.served.name,
            "version": self.version.version,
            "family": self.version.model.family.name,
            "task": ability.name,
            "seed": self.asked.seed,
            **({"unit": ability.unit} if ability.unit else {}),
            "calls": outcome.calls,
            "evaluations": outcome.evaluations,
            "queued_ms": round(outcome.queued_ms, 2),
            "computed_ms": round(outcome.computed_ms, 2),
        }
