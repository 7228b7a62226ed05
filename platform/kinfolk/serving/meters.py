"""What a replica tells Prometheus of itself, through the metrics of Ray: each machine's agent is scraped for them."""

import asyncio
import collections
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Gauge, Histogram

from kinfolk.serving.batcher import Outcome
from kinfolk.serving.host import ModelHost, Version

_EVERY_S = 1.0
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]  # bounds of a histogram's bins
_TAGS = ("model", "version")


@dataclass(slots=True)
class _Told:
    """What Prometheus knows of a version."""

    version: Version
    totals: Mapping[str, float] = field(default_factory=dict)  # as they were told last


class Meters:
    """Gauges and counters of one replica; versions have figures of their own."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._told: dict[int, _Told] = {}  # by the version's identity
        self._answered: collections.Counter[tuple[str, str]] = collections.Counter()  # to be told, by version and task
        self._gauges = {
            "rows": Gauge("kinfolk_rows_in_flight", "Rows that were started and are not done.", _TAGS),
            "requests": Gauge("kinfolk_requests", "Requests that run or wait.", _TAGS),
            "queued": Gauge("kinfolk_evaluations_queued", "Network evaluations still to be made.", _TAGS),
            "speed": Gauge("kinfolk_evaluations_per_second", "Of calls as full as they may be.", _TAGS),
            "fill": Gauge("kinfolk_batch_fill", "Share of the places in network calls that were taken.", _TAGS),
        }
        self._counters = {
            "calls": Counter("kinfolk_calls_total", "Network calls, of all rows together.", _TAGS),
            "evaluations": Counter("kinfolk_evaluations_total", "Network evaluations.", _TAGS),
            "failures": Counter("kinfolk_failures_total", "Requests that ended because the model failed.", _TAGS),
        }
        self._answers = Counter("kinfolk_answers_total", "Requests that got what they asked for.", (*_TAGS, "task"))
        self._queued = Histogram("kinfolk_queue_seconds", "From being taken to the first call.", _SECONDS, _TAGS)
        self._computed = Histogram("kinfolk_compute_seconds", "From the first call to the last.", _SECONDS, _TAGS)

    def _tags(self, version: Version) -> dict[str, str]:
        return {"model": self._host.served.name, "version": version.version}

    def answered(self, version: Version, task: str, outcome: Outcome) -> None:
        """A request got what it asked for."""
        tags = self._tags(version)
        self._answered[version.version, task] += 1
        self._queued.observe(outcome.queued_ms / 1e3, tags)
        self._computed.observe(outcome.computed_ms / 1e3, tags)

    async def run(self) -> None:
        """Tell how things stand, every second, and once more of a version that is gone."""
        try:
            while True:
                self._tell_all()
                await asyncio.sleep(_EVERY_S)
        finally:
            for told in list(self._told.values()):
                self._tell_last(told.version)
            self._tell_answers()

    def _tell_all(self) -> None:
        held = self._host.held
        for told in list(self._told.values()):
            if all(told.version is not each for each in held):
                self._tell_last(told.version)
        for version in reversed(held):  # those that retire first, as one in service may have the same number
            self._tell(version)
        self._tell_answers()

    def _tell_answers(self) -> None:
        for (version, task), answers in self._answered.items():
            self._answers.inc(answers, {"model": self._host.served.name, "version": version, "task": task})
        self._answered.clear()

    def _tell_last(self, version: Version) -> None:
        self._tell(version)
        for gauge in self._gauges.values():
            gauge.set(0.0, self._tags(version))
        del self._told[id(version)]

    def _tell(self, version: Version) -> None:
        tags, batcher, counts = self._tags(version), version.batcher, version.batcher.counts
        now: Mapping[str, float] = {
            "rows": batcher.rows,
            "requests": batcher.requests,
            "queued": batcher.evaluations,
            "speed": batcher.evaluations_per_s,
        }
        told = self._told.setdefault(id(version), _Told(version))
        for name, value in now.items():
            self._gauges[name].set(value, tags)
        totals = {name: float(getattr(counts, name)) for name in (*self._counters, "rows")}
        grown = {name: total - told.totals.get(name, 0.0) for name, total in totals.items()}
        told.totals = totals
        for name, counter in self._counters.items():
            if grown[name]:
                counter.inc(grown[name], tags)
        if grown["calls"]:
            self._gauges["fill"].set(grown["rows"] / grown["calls"] / batcher.limits.max_rows, tags)
