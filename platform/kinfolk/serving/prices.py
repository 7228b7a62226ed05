"""What a row of a request costs, in network evaluations."""

import torch

from kinfolk.contract import SampleRequest, Tasks
from kinfolk.sampling import evaluations, kind_of, rows_of
from kinfolk.serving.rows import RowRequest
from kinfolk.serving.scheduling import Speed

_KEPT = 1000  # kinds of requests whose price is remembered


class Prices:
    """Prices of one model's requests. What one thread learns another may read."""

    def __init__(self, tasks: Tasks, speed: Speed) -> None:
        self._tasks, self._speed = tasks, speed
        self._known: dict[tuple[object, ...], int] = {}
        self._row_speeds: dict[str, Speed] = {}  # of tasks that are done in one go

    def learn(self, name: str, rows: int, seconds: float) -> None:
        """So many rows of a task that is done in one go took so long."""
        if name not in self._row_speeds:
            self._row_speeds[name] = Speed(self._speed.full)
        self._row_speeds[name].add(rows, rows, seconds)

    def of(self, request: SampleRequest | RowRequest, task: str) -> int:
        """Network evaluations of one row.

        Of sampling, what a first row says, which follows from its options and conditions; of a task that is done in
        one go, as many as full calls make in the time a row of it takes in one, and 1 before it was first run.

        Raises:
            RequestError: the model lacks the task, or cannot start such a row.
        """
        if isinstance(request, RowRequest):
            rows_per_s = self._row_speeds[task].evaluations_per_s if task in self._row_speeds else 0.0
            return max(round(self._speed.evaluations_per_s / rows_per_s), 1) if rows_per_s else 1
        kind = (task, kind_of(request))
        if kind not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[kind] = self._sampling(request, task)
        return self._known[kind]

    @torch.no_grad()
    def _sampling(self, request: SampleRequest, task: str) -> int:
        return evaluations(self._tasks, rows_of(request, slice(1)), task)
