"""Rows of many requests in one sampler state, each with its owner."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinfolk.contract import SampleRequest, SamplerState


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way: rows below ``started`` are in a pool or finished, the others do not exist yet."""

    request: SampleRequest
    task: str
    evaluations: int  # of the network, still to be made
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Tensor]
    started: int = 0
    finished: dict[int, Tensor] = field(default_factory=dict)  # row number to its sample

    @property
    def rows(self) -> int:
        """Rows asked for."""
        return len(self.request.seeds)

    def samples(self) -> Tensor:
        """Every row's sample in the order of the request. -> (N, *)"""
        return torch.stack([self.finished[row] for row in range(self.rows)])

    def tell(self, outcome: Tensor | Exception) -> None:
        """Hand the outcome to the caller from another thread; a caller who left, or whose loop ended, hears nothing."""

        def settle() -> None:
            if self.future.done():
                return
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(settle)


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


def rows_of(request: SampleRequest, rows: slice) -> SampleRequest:
    """The request for some of the rows of ``request``."""

    def part(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return SampleRequest(
        request.seeds[rows],
        request.options,
        part(request.label),
        part(request.caption),
        part(request.x),
        part(request.mask),
    )
