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
    """What calls take by their number of rows: seconds = a + b * rows for one evaluation of each.

    ``full`` is how many rows a call may have. Source: that line is eq. 1 of Nexus, Shen et al., 2019,
    https://doi.org/10.1145/3341301.3359658; with it few rows tell what many take where their number varied. While it
    did not, b is 0: more rows are taken to go along, as otherwise callers who come one by one would have those who
    come together refused, and the first call of these corrects it. What was seen of wide calls is forgotten
    after about 700 calls of one row, so that a slow one does not keep others like it away for ever.
    """

    _MEMORY = 0.99  # weight of the past against the newest call: the last 100 calls decide
    _RIDGE = 1.0  # rows^2 of one evaluation: how much rows must have varied before b is believed

    def __init__(self, full: int) -> None:
        self.full, self._calls = full, 0
        self._sums = [0.0] * 5  # of 1, rows, rows^2, seconds and seconds * rows over evaluations in turn
        self._line = (0.0, 0.0)  # a, b; replaced as one, as another thread reads them

    def add(self, rows: int, evaluations: int, seconds: float) -> None:
        """Count one call; the second one replaces the first, which prepares much and so takes longer than any other."""
        weight = evaluations / rows  # evaluations one after the other, in each of which all rows are
        new = (weight, evaluations, evaluations * rows, seconds, seconds * rows)
        past = self._MEMORY if self._calls > 1 else 0.0
        self._sums = [past * old + value for old, value in zip(self._sums, new, strict=True)]
        self._calls += 1
        self._line = self._fitted()

    def _fitted(self) -> tuple[float, float]:
        """Exponentially weighted least squares, b drawn to 0 by a ridge, neither below 0."""
        one, rows, rows_squared, seconds, seconds_rows = self._sums
        b = max((seconds_rows - rows * seconds / one) / (rows_squared - rows * rows / one + self._RIDGE), 0.0)
        a = (seconds - b * rows) / one
        return (a, b) if a >= 0 else (0.0, seconds_rows / rows_squared)

    def seconds(self, evaluations: float, in_turn: float) -> float:
        """How long so many evaluations take, ``in_turn`` of which must be one after the other; 0 before any call.

        Calls are full but where too few rows remain for the evaluations that must be in turn.
        """
        a, b = self._line
        return a * max(evaluations / self.full, in_turn) + b * evaluations

    @property
    def evaluations_per_s(self) -> float:
        """The rate of full calls, as far as it is known; 0 before the first call."""
        seconds = self.seconds(self.full, 1)
        return self.full / seconds if seconds > 0 else 0.0
