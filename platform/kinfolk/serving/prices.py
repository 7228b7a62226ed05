"""What a row of a request costs, in network evaluations."""

import torch

from kinfolk.contract import SampleRequest, Tasks
from kinfolk.sampling import kind_of, rows_of, start
from kinfolk.serving.rows import RowRequest
from kinfolk.serving.scheduling import Speed

_KEPT = 1000  # kinds of requests whose price is remembered
_MEMORY = 0.8  # weight of the past against the newest call of a row task


class Prices:
    """Prices of one model's requests. What one thread learns another may read."""

    def __init__(self, tasks: Tasks, speed: Speed) -> None:
        self._tasks, self._speed = tasks, speed
        self._known: dict[tuple[object, ...], int] = {}
        self._row_seconds: dict[str, float] = {}  # of tasks that are done in one go
        self._warm: set[str] = set()  # of those, what a second call has taught: a first one prepares much

    def learn(self, name: str, rows: int, seconds: float) -> None:
        """So many rows of a task that is done in one go took so long."""
        past = _MEMORY if name in self._warm else 0.0
        if name in self._row_seconds:
            self._warm.add(name)
        self._row_seconds[name] = past * self._row_seconds.get(name, 0.0) + (1 - past) * seconds / rows

    def of(self, request: SampleRequest | RowRequest, task: str) -> int:
        """Network evaluations of one row.

        Of sampling, what a first row says, which follows from its options and conditions; of a task that is done in
        one go, as many as are made in the time a row of it has taken, and 1 before it was first run.

        Raises:
            RequestError: the model lacks the task, or cannot start such a row.
        """
        if isinstance(request, RowRequest):
            return max(round(self._row_seconds.get(task, 0.0) * self._speed.evaluations_per_s), 1)
        kind = (task, kind_of(request))
        if kind not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[kind] = self._sampling(request, task)
        return self._known[kind]

    @torch.no_grad()
    def _sampling(self, request: SampleRequest, task: str) -> int:
        first = start(self._tasks, rows_of(request, slice(1)), task)
        return int(first.calls * first.cost)
