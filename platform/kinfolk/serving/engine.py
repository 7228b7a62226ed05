"""One model's network and the rows of many requests in it, whatever call each row is at. No thread.

A turn divides ``max_rows`` evenly over the requests, starts the rows that are new, sets aside rows above a request's
share, and advances the rest by one call; a row that is done is rendered and leaves. Tasks that are done in one go get
their share of rows in the same turn, rows of alike requests together.
"""

import logging
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.contract import RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.sampling import joined, kind_of, rows_of, start
from kinfolk.serving import at_once
from kinfolk.serving.prices import Prices
from kinfolk.serving.rows import Ended, Job, Pool, Preview, RowRequest
from kinfolk.serving.scheduling import Speed, shares

_LOG = logging.getLogger(__name__)


class SamplingError(Exception):
    """The model failed in a call this request had rows in; the cause is in the log, not in the message."""


@dataclass(slots=True)
class Counts:
    """What an engine has done since it was made."""

    calls: int = 0  # of the network, for sampling
    rows: int = 0  # in those calls
    evaluations: int = 0
    seconds: float = 0.0  # in which it computed
    failures: int = 0  # requests that ended because the model failed


def padded(state: SamplerState, sizes: Sequence[int]) -> SamplerState:
    """As many rows as the smallest of ``sizes`` that holds them; those that are added are the first row again."""
    rows = len(state)
    size = min((size for size in sizes if size >= rows), default=rows)
    if size == rows:
        return state
    return state.select(torch.cat([torch.arange(rows), torch.zeros(size - rows, dtype=torch.int64)]))


def _kind(job: Job) -> Hashable:
    """Jobs in which this is equal may be started as one."""
    assert isinstance(job.request, SampleRequest)
    return job.task, kind_of(job.request)


def _next_rows(fresh: Mapping[Job, int]) -> SampleRequest:
    requests = []
    for job, rows in fresh.items():
        assert isinstance(job.request, SampleRequest)
        requests.append(rows_of(job.request, slice(job.started, job.started + rows)))
    return joined(requests)


class Engine:
    """Turns rows. ``sizes`` are the numbers of rows a call may have, where that pays; none: any up to ``max_rows``."""

    def __init__(
        self, tasks: Tasks, max_rows: int, device: torch.device | str = "cpu", sizes: Sequence[int] = ()
    ) -> None:
        self.max_rows = max_rows
        self.speed, self.counts = Speed(max_rows), Counts()
        self.prices = Prices(tasks, self.speed)
        self._tasks, self._device, self._sizes = tasks, device, tuple(sizes)
        self._pool: Pool | None = None
        self._ended: list[Ended] = []
        self.lost = False  # the device fails every call from now on, until the process ends

    @property
    def rows(self) -> int:
        """Rows that were started and are not done."""
        return 0 if self._pool is None else len(self._pool.owners)

    def clear(self) -> None:
        """Forget every row."""
        self._pool = None

    @torch.no_grad()  # not inference_mode: a sampler that follows a gradient must be able to turn it on
    def turn(self, jobs: Sequence[Job]) -> list[Ended]:
        """Give every request its share of the next call; returns those that ended in it.

        Rows of requests that are not among ``jobs`` are dropped.
        """
        self._ended, now = [], time.perf_counter()
        share = dict(zip(jobs, shares([self._wanted(job) for job in jobs], self.max_rows), strict=True))
        for job in (job for job, rows in share.items() if rows and job.began_at is None):
            job.began_at = now
        whole = {job: rows for job, rows in share.items() if isinstance(job.request, RowRequest) and rows}
        for group in at_once.groups(whole, at_once.together):
            self._run_at_once(group)
        self._sample({job: rows for job, rows in share.items() if not isinstance(job.request, RowRequest)})
        return self._ended

    def _wanted(self, job: Job) -> int:
        """Rows a request may use in a turn; fewer where each takes as long as many calls do."""
        if isinstance(job.request, RowRequest):
            return min(job.waiting, max(self.max_rows // job.price, 1))
        return job.waiting

    def _run_at_once(self, share: at_once.Share) -> None:
        rows, began = sum(share.values()), time.perf_counter()
        try:
            results = at_once.results(share, self._device)
        except Exception as error:
            self._fail(share, error)
            return
        for job, row, result in results:
            job.finished[row] = result
        for job, count in share.items():
            job.started += count
            job.count(count * job.price, 1)
        seconds = time.perf_counter() - began
        self.prices.learn(next(iter(share)).task, rows, seconds)
        self.counts.evaluations += sum(count * job.price for job, count in share.items())
        self.counts.seconds += seconds
        if not self.counts.calls:  # prices follow from the speed, so it must not follow from them: a row is the unit
            self.speed.add(rows, rows, seconds)
        self._end(share)

    def _sample(self, share: dict[Job, int]) -> None:
        before, rows, began = self.counts.evaluations, self.counts.rows, time.perf_counter()
        running, parked = self._divide(share)
        have = Counter(job for job, _ in running.owners) if running is not None else Counter()
        fresh = {job: rows - have[job] for job, rows in share.items() if have[job] < rows}
        pool = Pool.join([running, *(self._start(group) for group in at_once.groups(fresh, _kind))])
        if pool is not None:
            pool = self._advance(pool)
        self._pool = Pool.join([pool, parked])
        self._show(job for job in share if job.on_preview is not None)
        if made := self.counts.evaluations - before:
            seconds = time.perf_counter() - began
            self.counts.seconds += seconds
            self.speed.add(self.counts.rows - rows, made, seconds)

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

    def _start(self, fresh: Mapping[Job, int]) -> Pool | None:
        """The next rows of requests that may be started as one; if they cannot be, those of each that can be alone."""
        owners = [(job, row) for job, rows in fresh.items() for row in range(job.started, job.started + rows)]
        try:
            state = start(self._tasks, _next_rows(fresh), next(iter(fresh)).task)
        except Exception as error:
            if len(fresh) > 1:
                return Pool.join([self._start({job: rows}) for job, rows in fresh.items()])
            self._fail(fresh, error)
            return None
        for job, rows in fresh.items():
            job.started += rows
        return Pool(state, owners)

    def _advance(self, pool: Pool) -> Pool | None:
        """The pool after one call, without the rows that are done; a fault ends the requests that had rows in it."""
        costs, rows = pool.state.cost.tolist(), len(pool.owners)
        assert self._tasks.advance is not None
        try:
            state = self._tasks.advance(padded(pool.state, self._sizes))
            pool = Pool(state if len(state) == rows else state.select(torch.arange(rows)), pool.owners)
            done, going_on = pool.split(pool.state.done.tolist())
            samples = None if done is None else self._rendered(done.state)
        except Exception as error:
            self._fail({job for job, _ in pool.owners}, error)
            return None
        for (job, _), cost, call in zip(pool.owners, costs, pool.state.call.tolist(), strict=True):
            job.count(cost, call)
        self.counts.calls += 1
        self.counts.rows += rows
        self.counts.evaluations += sum(costs)
        if done is not None and samples is not None:
            self._keep(done, samples)
        return going_on

    def _keep(self, done: Pool, samples: Tensor) -> None:
        """Give samples to the requests they are of; one that is not finite ends its request."""
        sound = samples.flatten(1).isfinite().all(1).tolist()
        for (job, row), sample in zip(done.owners, samples, strict=True):
            job.finished[row] = sample
        broken = {job for (job, _), good in zip(done.owners, sound, strict=True) if not good}
        self._fail(broken, ValueError("The model drew values that are not finite."))
        self._end({job for job, _ in done.owners} - broken)

    def _rendered(self, state: SamplerState) -> Tensor:
        assert self._tasks.render is not None
        return self._tasks.render(state).cpu()

    def _show(self, jobs: Iterable[Job]) -> None:
        """Tell callers who want to see it how far their samples are; a preview that fails is left out."""
        for job in jobs:
            mine = [] if self._pool is None else [n for n, (owner, _) in enumerate(self._pool.owners) if owner is job]
            pool = self._pool and self._pool.select(mine)
            if pool is None:
                continue
            call, calls = int(pool.state.call.min()), int(pool.state.calls.max())
            if call < job.shown + max(calls // (job.previews + 1), 1):
                continue
            job.shown = call
            try:
                job.show(Preview(self._half_way(job, pool), call, calls))
            except Exception:  # others have rows in this turn, and its own samples may still come
                _LOG.exception("A preview failed.")

    def _half_way(self, job: Job, pool: Pool) -> Tensor:
        rendered = self._rendered(pool.state)
        samples = torch.zeros(job.rows, *rendered.shape[1:], dtype=rendered.dtype)
        for row, sample in (*job.finished.items(), *zip((row for _, row in pool.owners), rendered, strict=True)):
            samples[row] = sample
        return samples

    def _end(self, jobs: Iterable[Job]) -> None:
        self._ended += [(job, job.outcome()) for job in jobs if not job.waiting]

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        self._ended += self.failed(jobs, error)

    def failed(self, jobs: Iterable[Job], error: Exception) -> list[Ended]:
        """The end of requests that a fault has ended."""
        ended = list(jobs)
        told = self.fault(error, len(ended)) if ended else error
        return [(job, told) for job in ended]

    def fault(self, error: Exception, requests: int) -> Exception:
        """What so many callers are told of what went wrong: that is for the log, unless they asked for it."""
        if isinstance(error, RequestError):
            return error
        _LOG.error("Sampling failed.", exc_info=error)
        self.lost = self.lost or isinstance(error, torch.AcceleratorError)
        self.counts.failures += requests
        return SamplingError("The model failed while sampling; the server's log has the cause.")
