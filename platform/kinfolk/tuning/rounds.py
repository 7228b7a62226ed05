"""Rounds of population based training: trials compared at equal samples, and none that waits in vain."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from kinfolk.tuning.population import explorer
from kinfolk.tuning.space import Space
from kinfolk.tuning.sweep import Pbt


class Population(PopulationBasedTraining):
    """Tune's synchronous scheduler, with rounds at multiples of the interval.

    Tune's own lets a trial go on only while it is short of the next round, which it may set to where all are already:
    where reports do not fall on multiples of the interval, or trials go on from an earlier start. It also waits for a
    trial that ended. Either way nothing would run any more.
    """

    def __init__(self, pbt: Pbt, space: Space, samples: int, seen: int = 0) -> None:
        """For trials of ``samples``, of which the one that is furthest has ``seen`` so many in an earlier start."""
        super().__init__(
            time_attr="samples_seen",
            metric="score",
            mode="max",
            perturbation_interval=pbt.every_samples,
            quantile_fraction=pbt.quantile,
            synch=True,  # the population is compared at equal samples, however fast each trial runs
            custom_explore_fn=explorer(pbt, space),
            require_attrs=False,
            log_config=False,
        )
        self._samples = samples
        self._aim(seen)

    def _aim(self, reached: int) -> None:
        """Let the next round be the first multiple of the interval that nobody has reached."""
        every = self._perturbation_interval
        self._next_perturbation_sync = (reached // every + 1) * every
        for state in self._trial_state.values():
            state.last_perturbation_time = self._next_perturbation_sync - every

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial, or one that starts again after its process died, takes part from the next round on."""
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self._next_perturbation_sync - self._perturbation_interval

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> Any:
        """Wait for the round, or hold it if this trial is the last to come; at the end there is nothing to wait for."""
        if result.get(self._time_attr, 0) >= self._samples:
            return TrialScheduler.CONTINUE
        this_round = self._next_perturbation_sync
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != this_round:
            self._aim(max(int(state.last_train_time) for state in self._trial_state.values()))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:  # noqa: ARG002
        """It ended, or failed."""
        self._leave(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process died; one that starts again is waited for."""
        if trial.status != Trial.ERROR:
            self._leave(tune_controller, trial)

    def _leave(self, tune_controller: Any, trial: Any) -> None:
        """Neither compare with ``trial`` nor wait for it; if it was the last that others waited for, hold the round."""
        self._trial_state[trial].last_score = None
        self._trial_state[trial].last_train_time = self._next_perturbation_sync
        for other in tune_controller.get_live_trials():
            state = self._trial_state[other]
            waits = other.status == Trial.PAUSED and state.last_train_time >= self._next_perturbation_sync
            if other is not trial and waits:
                self.on_trial_result(tune_controller, other, state.last_result)
                return

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        """The donor's order, changed, with the name of the trial that goes on by it and what it was copied from."""
        config, said = super()._get_new_config(trial, trial_to_clone)
        copied = {
            "donor": trial_to_clone.config["trial"]["id"],
            "samples_seen": int(self._trial_state[trial_to_clone].last_train_time),
        }
        return {"trial": {**config["trial"], "id": trial.config["trial"]["id"], "copied": copied}}, said
