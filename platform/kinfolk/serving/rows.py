"""Rows of many requests on their way through one model, each with its owner."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kinfolk.contract import RowTask, SampleRequest, SamplerState


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What a user asks of a task that takes a batch and gives something for each row, in one go."""

    name: str
    task: RowTask
    x: Tensor  # (N, *), CPU
    seeds: Tensor  # (N,) int64, CPU
    label: Tensor | None = None  # (N,) int64, CPU
    noise_level: float | None = None  # that ``task`` is made for

    @property
    def together(self) -> tuple[object, ...]:
        """Requests in which this is equal may share a call."""
        return self.name, self.noise_level, self.label is None

    def part(self, rows: slice) -> "RowRequest":
        """The request for some of the rows."""
        label = None if self.label is None else self.label[rows]
        return replace(self, x=self.x[rows], seeds=self.seeds[rows], label=label)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request got, and what it took."""

    samples: Tensor  # (N, *), CPU
    evaluations: int  # of the network, over all rows
    calls: int  # of its longest row
    queued_ms: float  # from being taken to the first call it had rows in
    computed_ms: float  # from there to the last


@dataclass(frozen=True, slots=True)
class Preview:
    """A request half-way."""

    samples: Tensor  # (N, *), CPU; zeros where a row has not been started
    call: int  # of the row that is furthest behind
    calls: int  # that this row takes


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way: rows below ``started`` are in a pool or finished, the others do not exist yet."""

    request: SampleRequest | RowRequest
    task: str
    evaluations: int  # of the network, still to be made
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcome]
    price: int = 1  # network evaluations of one row
    on_preview: Callable[[Preview], None] | None = None  # called in ``loop``
    previews: int = 0  # how many are wanted
    started: int = 0
    finished: dict[int, Tensor] = field(default_factory=dict)  # row number to its sample
    made: int = 0  # network evaluations
    calls: int = 0  # of its longest row
    shown: int = 0  # the call of the last preview
    taken_at: float = field(default_factory=time.perf_counter)
    began_at: float | None = None

    @property
    def rows(self) -> int:
        """Rows asked for."""
        return len(self.request.seeds)

    @property
    def waiting(self) -> int:
        """Rows that are not finished."""
        return self.rows - len(self.finished)

    def count(self, evaluations: int, call: int) -> None:
        """A row of this request took part in a call, its ``call``-th."""
        self.evaluations -= evaluations
        self.made += evaluations
        self.calls = max(self.calls, call)

    def outcome(self) -> Outcome:
        """Every row's sample in the order of the request, with what it took."""
        now = time.perf_counter()
        began_at = now if self.began_at is None else self.began_at
        samples = torch.stack([self.finished[row] for row in range(self.rows)])
        queued_ms, computed_ms = (began_at - self.taken_at) * 1e3, (now - began_at) * 1e3
        return Outcome(samples, self.made, self.calls, queued_ms, computed_ms)

    def show(self, preview: Preview) -> None:
        """Hand a preview to the caller from another thread."""
        assert self.on_preview is not None
        on_preview = self.on_preview
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else on_preview(preview))


Ended = tuple[Job, Outcome | Exception]


def tell(loop: asyncio.AbstractEventLoop, ended: Sequence[Ended]) -> None:
    """Hand outcomes to callers in ``loop`` from another thread; who left, or whose loop ended, hears nothing."""

    def settle() -> None:
        for job, outcome in ended:
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(settle)


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows that were started and are not done; ``owners`` (whose row, and which of its rows) in the same order."""

    state: SamplerState
    owners: list[tuple[Job, int]]

    @classmethod
    def join(cls, pools: "Iterable[Pool | None]") -> "Pool | None":
        """All rows of ``pools``, in order; None where there are none."""
        parts = [pool for pool in pools if pool is not None]
        if len(parts) < 2:
            return parts[0] if parts else None
        return cls(SamplerState.cat([pool.state for pool in parts]), [own for pool in parts for own in pool.owners])

    def select(self, positions: list[int]) -> "Pool | None":
        """The rows at ``positions``; None where there are none."""
        if len(positions) == len(self.owners):
            return self
        if not positions:
            return None
        return Pool(self.state.select(torch.tensor(positions)), [self.owners[position] for position in positions])

    def split(self, chosen: list[bool]) -> "tuple[Pool | None, Pool | None]":
        """The rows where ``chosen`` holds, and the others."""
        yes = [position for position, wanted in enumerate(chosen) if wanted]
        no = [position for position, wanted in enumerate(chosen) if not wanted]
        return self.select(yes), self.select(no)
