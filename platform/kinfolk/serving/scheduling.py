"""Who runs next, who may come in, and how long it takes: pure decisions over the rows of many requests."""

import math
from collections.abc import Sequence


def shares(wanted: Sequence[int], slots: int) -> list[int]:
    """Rows each request may have in the next call: one after the other takes a row, in order, until slots run out.

    ``wanted`` is how many rows each request still needs. -> as many numbers, none above what was wanted
    """
    given = [0] * len(wanted)
    hungry = [index for index, rows in enumerate(wanted) if rows > 0]
    while hungry and slots > 0:
        each = max(slots // len(hungry), 1)
        for index in hungry:
            rows = min(each, wanted[index] - given[index], slots)
            given[index] += rows
            slots -= rows
        hungry = [index for index in hungry if given[index] < wanted[index]]
    return given


def retry_after_s(excess: float, evaluations_per_s: float) -> int:
    """Whole seconds until ``excess`` network evaluations are done; 1 while no rate has been measured."""
    return max(math.ceil(excess / evaluations_per_s), 1) if evaluations_per_s > 0 else 1


def until_done(asked: int, queued: Sequence[int], slots: int) -> int:
    """Network evaluations that are made before a request of ``asked`` is done, its own included.

    While there are ``slots`` for all, the others, of ``queued`` each, get as much as this one does for as long as they
    last; where there are not, it has none before those in front of it are done.
    """
    return asked + sum(each if len(queued) >= slots else min(each, asked) for each in queued)


class Speed:
    """Network evaluations a second over the recent calls."""

    _MEMORY = 0.95  # weight of the past against the newest call: the last 20 calls decide

    def __init__(self) -> None:
        self._evaluations = 0.0
        self._seconds = 0.0

    def add(self, evaluations: int, seconds: float) -> None:
        """Count one call."""
        self._evaluations = self._evaluations * self._MEMORY + evaluations
        self._seconds = self._seconds * self._MEMORY + seconds

    @property
    def evaluations_per_s(self) -> float:
        """The measured rate; 0 before the first call."""
        return self._evaluations / self._seconds if self._seconds > 0 else 0.0
