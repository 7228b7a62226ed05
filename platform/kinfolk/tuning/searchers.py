"""Where the settings of the next trial come from. What was learned is fed again from the ledger after a restart."""

import json
from typing import Any, Protocol

from kinfolk.rng import generator
from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.space import Choice, Fixed, IntRange, LogUniform, Setting, Space, chosen, drawn, exists
from kinfolk.tuning.sweep import NEVER, Optuna, Random, Sweep


class Searcher(Protocol):
    """Proposes settings, and learns from trials that ended."""

    def propose(self, trial_id: str) -> dict[str, Any]:
        """Settings of a new trial."""

    def learn(self, trial: Trial) -> None:
        """A trial ended."""


class RandomSearcher:
    """Settings as a function of (seed, trial)."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, trial_id: str) -> dict[str, Any]:
        """Settings of a new trial."""
        return drawn(self._space, generator("trial", self._seed, trial_id))

    def learn(self, trial: Trial) -> None:
        """Nothing: chance has no memory."""


class OptunaSearcher:
    """Settings by Optuna's TPE, which may differ after a restart, as its generator starts anew."""

    def __init__(self, sweep: Sweep, config: Optuna) -> None:
        import optuna  # on first use: it takes a second

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=config.seed, n_startup_trials=config.startup_trials, constant_liar=True
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._sweep = sweep
        self._asked: dict[str, Any] = {}

    def propose(self, trial_id: str) -> dict[str, Any]:
        """Settings of a new trial."""
        asked = self._asked[trial_id] = self._study.ask()
        return chosen(self._sweep.space, lambda key, setting: _suggest(asked, key, setting))

    def learn(self, trial: Trial) -> None:
        """A trial ended: with a figure, or without one, which is as bad as can be."""
        from optuna.trial import TrialState, create_trial

        score = NEVER if trial.error is not None else self._sweep.score(trial.figures)
        state = TrialState.FAIL if score == NEVER else TrialState.COMPLETE
        if asked := self._asked.pop(trial.id, None):
            self._study.tell(asked, None if state == TrialState.FAIL else score, state)
        elif state == TrialState.COMPLETE:
            space = {key: each for key, each in self._sweep.space.items() if exists(each, trial.first_settings)}
            distributions = {key: _distribution(setting) for key, setting in space.items()}
            params = {key: _as_param(space[key], value) for key, value in trial.first_settings.items()}
            self._study.add_trial(create_trial(params=params, distributions=distributions, value=score))


def _distribution(setting: Setting) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(setting, Fixed | Choice):
        return CategoricalDistribution([json.dumps(value) for value in setting.ends()])
    if isinstance(setting, IntRange):
        return IntDistribution(setting.low, setting.high)
    return FloatDistribution(setting.low, setting.high, log=isinstance(setting, LogUniform))


def _as_param(setting: Setting, value: Any) -> Any:
    return json.dumps(value) if isinstance(setting, Fixed | Choice) else value


def _suggest(asked: Any, key: str, setting: Setting) -> Any:
    if isinstance(setting, Fixed | Choice):
        return json.loads(asked.suggest_categorical(key, [json.dumps(value) for value in setting.ends()]))
    if isinstance(setting, IntRange):
        return asked.suggest_int(key, setting.low, setting.high)
    return asked.suggest_float(key, setting.low, setting.high, log=isinstance(setting, LogUniform))


def make_searcher(sweep: Sweep) -> Searcher:
    """The searcher a sweep names."""
    if isinstance(sweep.searcher, Random):
        return RandomSearcher(sweep.space, sweep.searcher.seed)
    return OptunaSearcher(sweep, sweep.searcher)
