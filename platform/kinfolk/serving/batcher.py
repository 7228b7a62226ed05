"""Continuous batching: rows of many requests share each call of one model, whatever call each row is at.

An asyncio front hands requests to one worker thread. Before every call the thread divides ``max_rows`` evenly over
the requests, starts the rows that are new, sets aside rows above a request's share, and advances the rest; a row that
is done is rendered and leaves. So a request waits for its own calls and never for another request to end.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.contract import RequestError, SampleRequest, Tasks
from kinfolk.errors import KinfolkError
from kinfolk.sampling import start
from kinfolk.serving.rows import Job, Pool, rows_of
from kinfolk.serving.scheduling import Speed, retry_after_s, shares

_LOG = logging.getLogger(__name__)
_PRICES_KEPT = 1000  # kinds of requests whose price is remembered


class OverloadError(KinfolkError):
    """More network evaluations are queued than the limit allows; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SamplingError(Exception):
    """The model failed in a call this request had rows in; the cause is in the log, not in the message."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batcher takes on."""

    max_rows: int  # rows in one call
    max_evaluations: int  # network evaluations of one request
    max_evaluations_queued: int  # of all requests together, running and waiting


class Batcher:
    """Samples of one model for many callers at once; one thread, which ends with ``close``."""

    def __init__(self, tasks: Tasks, limits: BatchLimits) -> None:
        assert tasks.advance is not None
        assert tasks.render is not None
        self.limits = limits
        self._tasks, self._advance, self._render = tasks, tasks.advance, tasks.render
        self._jobs: list[Job] = []  # not ended, in order of arrival; guarded by _changed, as is _closing
        self._changed = threading.Condition()
        self._closing = False
        self._prices: dict[tuple[str, str, bool, bool], int] = {}
        self._pool: Pool | None = None  # the worker thread's own, as is _speed
        self._speed = Speed()
        self._worker = threading.Thread(target=self._run, name="kinfolk-batcher", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken and the worker thread runs."""
        return self._worker.is_alive() and not self._closing

    @property
    def requests(self) -> int:
        """Requests that are running or waiting."""
        return len(self._jobs)

    @property
    def evaluations(self) -> int:
        """Network evaluations still to be made for the requests taken."""
        return sum(job.evaluations for job in self._jobs)

    async def sample(self, request: SampleRequest, task: str = "sample") -> Tensor:
        """Samples of ``request`` in order. -> (N, *) on the CPU

        A caller that is cancelled leaves: its rows are gone before the next call.

        Raises:
            RequestError: the request alone is above the limit, or the model lacks the task.
            OverloadError: the requests already taken leave no room, or the batcher is closing.
        """
        price, loop = self._price(request, task), asyncio.get_running_loop()
        job = Job(request, task, len(request.seeds) * price, loop, loop.create_future())
        self._admit(job, price)
        try:
            return await job.future
        finally:
            self._forget(job)

    @torch.no_grad()
    def _price(self, request: SampleRequest, task: str) -> int:
        """Network evaluations of one row: what a first row says, which follows from its options and conditions."""
        kind = (task, request.options.model_dump_json(), request.label is None, request.caption is None)
        if kind not in self._prices:
            first = start(self._tasks, rows_of(request, slice(1)), task)
            if len(self._prices) >= _PRICES_KEPT:
                self._prices.clear()
            self._prices[kind] = int(first.calls * first.cost)
        return self._prices[kind]

    def _admit(self, job: Job, price: int) -> None:
        asked, limits = job.evaluations, self.limits
        if asked > limits.max_evaluations:
            raise RequestError(
                "n",
                f"n={job.rows} at {price} network evaluations each makes {asked}; one request may take "
                f"{limits.max_evaluations}. Lower n, or the options that decide the evaluations, such as steps.",
            )
        with self._changed:
            if self._closing:
                raise OverloadError("This model is being replaced or stopped: try again in 1 s.", 1)
            excess = self.evaluations + asked - limits.max_evaluations_queued
            if excess > 0:
                wait_s = retry_after_s(excess, self._speed.evaluations_per_s)
                raise OverloadError(f"Too much is queued for this model: try again in {wait_s} s.", wait_s)
            self._jobs.append(job)
            self._changed.notify()

    def _forget(self, *jobs: Job) -> None:
        with self._changed:
            self._jobs = [job for job in self._jobs if job not in jobs]

    async def close(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those taken, end the thread; what is not done in time is refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._worker.join, timeout_s)
        self._end(list(self._jobs), OverloadError("This model was stopped before the samples were done: try again.", 1))

    @torch.no_grad()  # not inference_mode: a sampler that follows a gradient must be able to turn it on
    def _run(self) -> None:
        while jobs := self._next_jobs():
            try:
                self._call(jobs)
            except Exception as error:  # a fault of the batcher's own: nobody may wait for ever
                self._pool = None
                self._fail(jobs, error)

    def _next_jobs(self) -> list[Job]:
        """Requests that have a caller; waits while there are none, and is empty only when closing."""
        with self._changed:
            while not self._jobs and not self._closing:
                self._pool = None
                self._changed.wait()
            return list(self._jobs)

    def _call(self, jobs: list[Job]) -> None:
        """One call of the network for every request's share of rows."""
        wanted = [job.rows - len(job.finished) for job in jobs]
        share = dict(zip(jobs, shares(wanted, self.limits.max_rows), strict=True))
        running, parked = self._divide(share)
        have = Counter(job for job, _ in running.owners) if running is not None else Counter()
        fresh = [self._start(job, rows - have[job]) for job, rows in share.items() if have[job] < rows]
        pool = Pool.join([running, *fresh])
        if pool is not None:
            pool = self._advance_rows(pool)
        self._pool = Pool.join([pool, parked])

    def _divide(self, share: dict[Job, int]) -> tuple[Pool | None, Pool | None]:
        """The started rows within each request's share, and those set aside; rows of callers who left are dropped."""
        pool = self._pool and self._pool.split([job in share for job, _ in self._pool.owners])[0]
        if pool is None:
            return None, None
        seen: Counter[Job] = Counter()
        within = []
        for job, _ in pool.owners:
            seen[job] += 1
            within.append(seen[job] <= share[job])
        return pool.split(within)

    def _start(self, job: Job, rows: int) -> Pool | None:
        first, job.started = job.started, job.started + rows
        try:
            state = start(self._tasks, rows_of(job.request, slice(first, job.started)), job.task)
        except Exception as error:
            self._fail([job], error)
            return None
        return Pool(state, [(job, row) for row in range(first, job.started)])

    def _advance_rows(self, pool: Pool) -> Pool | None:
        """The pool after one call, without the rows that are done; a fault ends the requests that had rows in it."""
        costs, began = pool.state.cost.tolist(), time.perf_counter()
        try:
            pool = Pool(self._advance(pool.state), pool.owners)
            done, going_on = pool.split(pool.state.done.tolist())
            if done is not None:
                self._finish(done)
        except Exception as error:
            self._fail({job for job, _ in pool.owners}, error)
            return None
        for (job, _), cost in zip(pool.owners, costs, strict=True):
            job.evaluations -= cost
        self._speed.add(sum(costs), time.perf_counter() - began)
        return going_on

    def _finish(self, done: Pool) -> None:
        samples = self._render(done.state).cpu()
        for (job, row), sample in zip(done.owners, samples, strict=True):
            job.finished[row] = sample
        for job in {job for job, _ in done.owners}:
            if len(job.finished) == job.rows:
                self._end([job], job.samples())

    def _end(self, jobs: Iterable[Job], outcome: Tensor | Exception) -> None:
        self._forget(*jobs)
        for job in jobs:
            job.tell(outcome)

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        if not isinstance(error, RequestError):
            _LOG.error("Sampling failed.", exc_info=error)
            error = SamplingError("The model failed while sampling; the server's log has the cause.")
        self._end(jobs, error)
