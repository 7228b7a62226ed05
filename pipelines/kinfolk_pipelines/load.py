"""Load on one address, closed or open, and what it shows. Neither Ray nor torch: one event loop in one process.

A closed load has as many requests on their way as there are connections: each asks again when it was answered. An open
one has requests fall due at random times, whatever the server does, and counts each from when it was due: one that
waits for a connection because the server stalls has waited for the server. Source: Schroeder et al., 2006, Open versus
closed: a cautionary tale.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kinfolk_pipelines.wire import Reply

_PAUSE_S = 0.1  # of a connection after a request to which no answer came, so that a dead server is not run into
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

Clock = Callable[[], float]


class Connection(Protocol):
    """What a load asks through."""

    async def ask(self, body: bytes) -> Reply:
        """The answer; raises OSError, EOFError or ValueError where there is none."""

    def close(self) -> None:
        """Let go of it; another request may open it again."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked, and for how long."""

    connections: int = 32
    seconds: float = 10.0  # that are measured
    warm_up_s: float = 2.0  # before that
    rate: float | None = None  # requests that fall due in a second, on average; None: a closed load
    timeout_s: float = 60.0  # for one answer, and for requests that are due at the end to be sent
    seed: int = 0  # of the times at which requests are due

    @property
    def until_s(self) -> float:
        """When the last request may be due, from the start."""
        return self.warm_up_s + self.seconds


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what became of it; times from the start of the load."""

    due_s: float
    sent_s: float
    ended_s: float
    reply: Reply | None
    trouble: str = ""  # why there is no reply


def poisson_times(rate: float, until_s: float, seed: int) -> Iterator[float]:
    """The times of a Poisson process of ``rate`` a second, up to ``until_s``."""
    generator, due_s = np.random.default_rng(seed), 0.0
    while (due_s := due_s + generator.exponential(1 / rate)) < until_s:
        yield due_s


def times_asked(until_s: float, clock: Clock) -> Iterator[float]:
    """The times at which a closed load asks: as soon as it can."""
    while (now := clock()) < until_s:
        yield now


async def drive(load: Load, bodies: Iterator[bytes], connect: Callable[[], Connection]) -> list[Exchange]:
    """Put the load on, each connection made by ``connect``; returns every exchange, those of the warm-up too."""
    loop = asyncio.get_running_loop()
    began, done = loop.time(), list[Exchange]()

    def clock() -> float:
        return loop.time() - began

    dues = times_asked(load.until_s, clock)
    if load.rate is not None:
        dues = poisson_times(load.rate, load.until_s, load.seed)
    async with asyncio.TaskGroup() as group:
        for _ in range(load.connections):
            group.create_task(_connection(load, dues, bodies, connect(), clock, done.append))
    return done


async def _connection(
    load: Load,
    dues: Iterator[float],
    bodies: Iterator[bytes],
    connection: Connection,
    clock: Clock,
    tell: Callable[[Exchange], None],
) -> None:
    """Take the next request that is due, wait for that time if it has not come, and ask."""
    for due_s in dues:
        if (early_s := due_s - clock()) > 0:
            await asyncio.sleep(early_s)
        if (sent_s := clock()) > load.until_s + load.timeout_s:
            tell(Exchange(due_s, sent_s, sent_s, None, "not sent in time"))
            continue
        reply, trouble = await _answered(connection.ask(next(bodies)), load.timeout_s)
        tell(Exchange(due_s, sent_s, clock(), reply, trouble))
        if reply is None:
            connection.close()
            await asyncio.sleep(_PAUSE_S)
    with suppress(OSError):
        connection.close()


async def _answered(asking: Awaitable[Reply], timeout_s: float) -> tuple[Reply | None, str]:
    """The answer, and why there is none."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asking, ""
    except TimeoutError:
        return None, "no answer in time"
    except (OSError, EOFError):
        return None, "no answer"
    except ValueError:
        return None, "no readable answer"


Spread = Mapping[str, float]  # mean, p50, p90, p99 and max, in milliseconds


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load showed, its warm-up left out."""

    requests: int  # that were due
    failed: Mapping[str, int]  # by status, or by why there was no answer
    requests_per_s: float  # answered with 200
    samples_per_s: float
    bytes_per_s: float  # of bodies
    bytes: int  # of bodies of requests answered with 200
    latency_ms: Spread  # from when a request was due; of those answered with 200, as are the next three
    unsent_ms: Spread  # of that, until it was sent: until a connection was free, and this machine's clock struck
    queued_ms: Spread  # in the server, as it says
    computed_ms: Spread

    @property
    def answered(self) -> int:
        """Requests answered with 200."""
        return self.requests - sum(self.failed.values())


def spread(values: Sequence[float]) -> Spread:
    """Mean and quantiles, each quantile one of the values; nothing of nothing."""
    if not values:
        return {}
    cuts = np.quantile(values, list(_QUANTILES.values()), method="inverted_cdf")
    return {"mean": float(np.mean(values)), **dict(zip(_QUANTILES, map(float, cuts), strict=True))}


def figures(exchanges: Sequence[Exchange], load: Load, samples: int) -> Figures:
    """What the exchanges of a load show, ``samples`` in each answer.

    Latencies are of requests that were due in the time measured; rates of answers that came in that time, whenever
    they were asked for.
    """

    def measured(at_s: float) -> bool:
        return load.warm_up_s <= at_s < load.until_s

    good = [(each, each.reply) for each in exchanges if each.reply is not None and each.reply.status == 200]
    due = [each for each in exchanges if measured(each.due_s)]
    ours = [(each, reply) for each, reply in good if measured(each.due_s)]
    came = [reply for each, reply in good if measured(each.ended_s)]
    return Figures(
        requests=len(due),
        failed=_failures(due),
        requests_per_s=len(came) / load.seconds,
        samples_per_s=len(came) * samples / load.seconds,
        bytes_per_s=sum(reply.size for reply in came) / load.seconds,
        bytes=sum(reply.size for _, reply in ours),
        latency_ms=spread([(each.ended_s - each.due_s) * 1e3 for each, _ in ours]),
        unsent_ms=spread([(each.sent_s - each.due_s) * 1e3 for each, _ in ours]),
        queued_ms=spread([reply.queued_ms for _, reply in ours if reply.queued_ms is not None]),
        computed_ms=spread([reply.computed_ms for _, reply in ours if reply.computed_ms is not None]),
    )


def _failures(due: Sequence[Exchange]) -> Mapping[str, int]:
    statuses = (each.trouble if each.reply is None else str(each.reply.status) for each in due)
    return dict(Counter(status for status in statuses if status != "200"))
