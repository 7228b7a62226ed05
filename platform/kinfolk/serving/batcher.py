"""Continuous batching: requests join and leave one model between its calls; nobody waits for another's end.

An asyncio front takes requests in, or says no, and hands them to one worker thread that turns the engine.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from kinfolk.contract import RequestError, SampleRequest, Tasks
from kinfolk.errors import KinfolkError
from kinfolk.serving.engine import Counts, Engine, SamplingError
from kinfolk.serving.rows import Ended, Job, Outcome, Preview, RowRequest, tell
from kinfolk.serving.scheduling import retry_after_s, until_done

__all__ = ["BatchLimits", "Batcher", "Job", "Outcome", "OverloadError", "Preview", "SamplingError"]


_EXPECTED = 0.7  # share of a caller's time that a request may be expected to take, as the speed is not the same always


class OverloadError(KinfolkError):
    """More is queued than the limit or the caller's time allows; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batcher takes on."""

    max_rows: int  # rows in one call
    max_evaluations: int  # network evaluations of one request
    max_evaluations_queued: int  # of all requests together, running and waiting
    sizes: tuple[int, ...] = ()  # numbers of rows a call is filled up to; none: as many as there are


def _too_large(job: Job, most: int) -> RequestError:
    made = f"network evaluations each makes {job.evaluations}; one request may take {most}."
    if isinstance(job.request, RowRequest):
        return RequestError("x", f"x of {job.rows} rows that take as long as {job.price} {made} Give fewer at once.")
    what = "Lower n, or the options that decide the evaluations, such as steps."
    return RequestError("n", f"n={job.rows} at {job.price} {made} {what}")


class Batcher:
    """Samples, and whatever else one model can do, for many callers at once; one thread, which ends with ``close``."""

    def __init__(self, tasks: Tasks, limits: BatchLimits, device: torch.device | str = "cpu") -> None:
        self.limits = limits
        self._engine = Engine(tasks, limits.max_rows, device, limits.sizes)  # the worker thread's own
        self._jobs: dict[Job, None] = {}  # not ended, in order of arrival; guarded by _changed, as is _closing
        self._changed = threading.Condition()
        self._closing = False
        self._waker: asyncio.AbstractEventLoop | None = None  # has a call of _wake before it; guarded by _changed too
        self._worker = threading.Thread(target=self._run, name="kinfolk-batcher", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken: the worker thread runs, and its device works."""
        return self._worker.is_alive() and not self._closing and not self._engine.lost

    @property
    def requests(self) -> int:
        """Requests that are running or waiting."""
        return len(self._jobs)

    @property
    def rows(self) -> int:
        """Rows that were started and are not done."""
        return self._engine.rows

    @property
    def evaluations(self) -> int:
        """Network evaluations still to be made for the requests taken."""
        with self._changed:
            return sum(job.evaluations for job in self._jobs)

    @property
    def evaluations_per_s(self) -> float:
        """The measured rate; 0 before the first call."""
        return self._engine.speed.evaluations_per_s

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return self._engine.counts

    def take(
        self,
        request: SampleRequest | RowRequest,
        task: str = "sample",
        *,
        within_s: float | None = None,
        previews: int = 0,
        on_preview: Callable[[Preview], None] | None = None,
    ) -> Job:
        """Take a request in, whose caller must await ``finished``.

        ``on_preview`` is called in the caller's event loop, about ``previews`` times while the rows are on their way.

        Raises:
            RequestError: the request alone is above the limit, or the model lacks the task.
            OverloadError: the requests already taken leave no room, or would not let this one end within ``within_s``
                seconds; or the batcher is closing.
            SamplingError: the model failed when it was asked what such a row takes.
        """
        price, loop = self._price(request, task), asyncio.get_running_loop()
        job = Job(request, task, len(request.seeds) * price, loop, loop.create_future(), price)
        job.on_preview, job.previews = on_preview, previews
        self._admit(job, within_s)
        return job

    async def finished(self, job: Job) -> Outcome:
        """What a request that was taken got, in its order, on the CPU.

        A caller that is cancelled leaves: its rows are gone before the next call.

        Raises:
            RequestError: a row cannot be started.
            OverloadError: the batcher was closed before the request was done.
            SamplingError: the model failed.
        """
        try:
            return await job.future
        finally:
            self.leave(job)

    def leave(self, job: Job) -> None:
        """The caller is gone: rows of ``job`` that are not done are dropped before the next call."""
        self._forget([job])
        if not job.future.cancel() and not job.future.cancelled():
            job.future.exception()  # looked at, so that nothing is said of it when it goes

    async def run(self, request: SampleRequest | RowRequest, task: str = "sample") -> Outcome:
        """What ``request`` asks for; raises as ``take`` and ``finished`` do."""
        return await self.finished(self.take(request, task))

    def _price(self, request: SampleRequest | RowRequest, task: str) -> int:
        """What a row is counted as; one row of a task that is done in one go always may: its time is learned by it."""
        try:
            price = self._engine.prices.of(request, task)
        except Exception as error:
            raise self._engine.fault(error, 1) from None
        return min(price, self.limits.max_evaluations) if isinstance(request, RowRequest) else price

    def _admit(self, job: Job, within_s: float | None) -> None:
        asked, limits, speed = job.evaluations, self.limits, self.evaluations_per_s
        if asked > limits.max_evaluations:
            raise _too_large(job, limits.max_evaluations)
        with self._changed:
            if self._closing or self._engine.lost:
                raise OverloadError("This model is being replaced or stopped: try again in 1 s.", 1)
            excess: float = self.evaluations + asked - limits.max_evaluations_queued
            if within_s is not None and speed > 0:
                late_s = self._until_done_s(job) - _EXPECTED * within_s
                excess = max(excess, late_s * speed) if self._jobs else excess
            if excess > 0:
                wait_s = retry_after_s(excess, speed)
                raise OverloadError(f"Too much is queued for this model: try again in {wait_s} s.", wait_s)
            self._jobs[job] = None
            wakes, self._waker = self._waker is not job.loop, job.loop
        if wakes:
            job.loop.call_soon(self._wake)  # after all that has come meanwhile, so that it shares the first call

    def _until_done_s(self, job: Job) -> float:
        """Seconds before a request that comes now is done."""
        slots, queued = self.limits.max_rows, [each.evaluations for each in self._jobs]
        evaluations = until_done(job.evaluations, queued, slots)
        own = 0 if isinstance(job.request, RowRequest) else job.price * math.ceil(job.rows / slots)
        before = (evaluations - job.evaluations) / slots if len(queued) >= slots else 0
        return self._engine.speed.seconds(evaluations, before + own)

    def _wake(self) -> None:
        with self._changed:
            self._waker = None
            self._changed.notify()

    def _forget(self, jobs: Collection[Job]) -> None:
        with self._changed:
            for job in jobs:
                self._jobs.pop(job, None)

    async def close(self, timeout_s: float = 30.0) -> None:
        """Take no more requests, finish those taken, end the thread; what is not done in time is refused."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._worker.join, timeout_s)
        stopped = OverloadError("This model was stopped before the samples were done: try again.", 1)
        with self._changed:
            left = list(self._jobs)
        self._tell([(job, stopped) for job in left])

    def _run(self) -> None:
        while jobs := self._next_jobs():
            try:
                self._tell(self._engine.turn(jobs))
            except Exception as error:  # a fault of the engine's own: nobody may wait for ever
                self._engine.clear()
                self._tell(self._engine.failed(jobs, error))

    def _next_jobs(self) -> list[Job]:
        """Requests that have a caller; waits while there are none, and is empty only when closing."""
        with self._changed:
            while not self._jobs and not self._closing:
                self._engine.clear()
                self._changed.wait()
            return list(self._jobs)

    def _tell(self, ended: Sequence[Ended]) -> None:
        self._forget({job for job, _ in ended})
        for loop in {job.loop for job, _ in ended}:
            tell(loop, [each for each in ended if each[0].loop is loop])
