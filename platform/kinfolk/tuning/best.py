"""Which trial is best, by the sweep's objective among those that keep its constraints."""

import math
from collections.abc import Iterable
from statistics import median

from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.sweep import Sweep


def best(sweep: Sweep, trials: Iterable[Trial]) -> Trial | None:
    """The trial with the best last figures among those that trained to the end; the first among equals.

    Where none of those keeps the constraints, or none got to the end (the time was up), any that reported and did not
    fail counts. None if no trial keeps the constraints.
    """
    reported = [trial for trial in trials if trial.status != "failed" and sweep.feasible(trial.figures)]
    finished = [trial for trial in reported if trial.status == "finished"]
    return max(finished or reported, key=lambda trial: sweep.score(trial.figures), default=None)


def median_of_finished(sweep: Sweep, trials: Iterable[Trial]) -> float | None:
    """Median objective of trials that trained to the end, of those whose figure is a number; None if there is none."""
    name = sweep.objective.metric
    values = [trial.figures.get(name, math.nan) for trial in trials if trial.status == "finished"]
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else None
