"""How much each setting of a sweep mattered, by a forest that learns to tell good trials from bad."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.sweep import NEVER, Sweep

_LEAST_TRIALS = 8  # below that a forest says nothing
_TREES, _REPEATS, _SEED = 100, 10, 0


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the settings, summing to 1, and the number of trials they rest on; no share below the least number."""

    shares: dict[str, float]  # the largest first
    trials: int


def importance(sweep: Sweep, trials: Sequence[Trial]) -> Importance:
    """Permutation importance of a random forest that predicts a trial's rank from its settings, failed ones left out.

    How long a trial trained is among its inputs, so that settings are not blamed for an early stop, and not shown.
    That a setting exists is put down to the one it depends on, and never to itself. The forest is asked about the
    trials it learned from: a sweep has too few to keep some back.
    Source: Breiman, 2001, Sec. 10, https://doi.org/10.1023/A:1010933404324.
    """
    told = [trial for trial in trials if trial.status != "failed" and sweep.score(trial.figures) > NEVER]
    keys = [key for key in sweep.space if len({repr(t.settings[key]) for t in told if key in t.settings}) > 1]
    if len(told) < _LEAST_TRIALS or not keys:
        return Importance({}, len(told))
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs, ranks = _inputs(sweep, told, keys), _ranks([sweep.score(trial.figures) for trial in told])
    forest = RandomForestRegressor(_TREES, random_state=_SEED).fit(inputs, ranks)
    found = permutation_importance(forest, inputs, ranks, n_repeats=_REPEATS, random_state=_SEED)
    worth = np.maximum(found.importances_mean[: len(keys)], 0)
    shares = worth / worth.sum() if worth.sum() > 0 else worth
    return Importance(dict(sorted(zip(keys, map(float, shares), strict=True), key=lambda item: -item[1])), len(told))


def _inputs(sweep: Sweep, trials: Sequence[Trial], keys: Sequence[str]) -> NDArray[np.float64]:
    """A row for each trial: where each setting lies, and how long it trained. (trials, keys + 1)

    Where a setting does not exist, its place is that of a trial by chance where it does, which tells nothing.
    """
    columns = [_places(sweep, trials, key, np.random.default_rng((_SEED, index))) for index, key in enumerate(keys)]
    return np.column_stack([*columns, [float(trial.samples_seen) for trial in trials]])


def _places(sweep: Sweep, trials: Sequence[Trial], key: str, draws: np.random.Generator) -> list[float]:
    setting = sweep.space[key]
    there = [setting.place(trial.settings[key]) for trial in trials if key in trial.settings]
    return [
        setting.place(trial.settings[key]) if key in trial.settings else float(draws.choice(there)) for trial in trials
    ]


def _ranks(scores: Sequence[float]) -> NDArray[np.float64]:
    """0 for the worst, rising; equal scores share their mean rank."""
    values = np.array(scores)
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2.0
