"""A sweep in MLflow: one run for the sweep, one below it for each trial, written by the driver alone."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from kinfolk.errors import RegistryError
from kinfolk.tracking.runs import DataVersion, Run, Status, Tracker
from kinfolk.tuning.ledger import ENDED, Ledger, Trial
from kinfolk_pipelines.settings import git_commit
from kinfolk_pipelines.sweep_plan import SweepPlan

PARENT_TAG = "mlflow.parentRunId"  # by which MLflow's pages nest runs
SWEEP_TAG = "kinfolk.sweep"
ALARMS_TAG = "alarms"  # of a trial's monitor, in words, as JSON
_SETTLE_TIMEOUT_S = 5.0  # the search waits; what is left is sent by `kinfolk deliver`
_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def start_parent(tracker: Tracker, planned: SweepPlan, ledger: Ledger) -> Run:
    """The sweep's run, begun or set running again.

    Raises:
        RegistryError: MLflow is out of reach.
    """
    run = tracker.start_run(
        planned.name,
        planned.sweep.model_dump(mode="json"),
        _tags(planned, ledger),
        _data(planned),
        ledger.run_id,
    )
    ledger.run_id = run.run_id
    ledger.save_head()
    return run


def _tags(planned: SweepPlan, ledger: Ledger) -> dict[str, str]:
    base = planned.base
    tags = {
        SWEEP_TAG: f"{planned.name}-{ledger.id}",
        "family": base.family.name,
        "recipe": base.recipe.name,
        "data": base.data.name,
        "data_digest": base.data.digest,
    }
    commit = git_commit()
    return {**tags, "git_commit": commit} if commit else tags


def _data(planned: SweepPlan) -> DataVersion:
    data = planned.base.data
    return DataVersion(data.name, data.digest, data.prepared.record.source)


class TrialRuns:
    """Follows the trials of a sweep and tells MLflow; without MLflow the search goes on, and it is told later."""

    def __init__(
        self, tracker: Tracker, planned: SweepPlan, ledger: Ledger, parent_id: str, say: Callable[[str], None]
    ) -> None:
        self._tracker, self._planned, self._ledger, self._parent_id, self._say = (
            tracker, planned, ledger, parent_id, say
        )  # fmt: skip
        self._runs: dict[str, Run] = {}
        self._told: dict[str, tuple[int, int]] = {}  # changes and samples of the last report that was logged

    def __call__(self, trial: Trial) -> None:
        """A trial changed."""
        run = self._run_of(trial)
        if run is None:
            return
        now = (len(trial.changes), trial.samples_seen)
        if trial.reports and self._told.get(trial.id) != now:
            for report in trial.reports if trial.id not in self._told else trial.reports[-1:]:
                run.log(_figures(report), int(report["samples_seen"]))
            self._told[trial.id] = now
            run.log(_numbers(trial.settings), trial.samples_seen)
        if trial.status in ENDED:
            if trial.alarms:
                run.tag(ALARMS_TAG, json.dumps(trial.alarms))
            run.finish(_STATUS[trial.status], _SETTLE_TIMEOUT_S)
            self._runs.pop(trial.id)
            trial.told = True
            self._ledger.save(trial)

    def catch_up(self) -> None:
        """Tell of trials whose end MLflow did not hear of: it did not answer, or the driver died on the way."""
        for trial in list(self._ledger.trials.values()):
            begun = trial.run_id is not None or trial.reports or trial.error is not None
            if begun and trial.status in ENDED and not trial.told:
                self(trial)

    def _run_of(self, trial: Trial) -> Run | None:
        if trial.id not in self._runs:
            try:
                self._runs[trial.id] = self._start(trial)
            except RegistryError as error:
                self._say(f"Trial {trial.id} is not in MLflow yet. {error}")
                return None
        return self._runs[trial.id]

    def _start(self, trial: Trial) -> Run:
        tags = {**_tags(self._planned, self._ledger), PARENT_TAG: self._parent_id, "trial": trial.id}
        params: dict[str, Any] = {**self._planned.sweep.fixed, **trial.first_settings}
        params |= {} if trial.seed is None else {"seed": trial.seed}
        name = f"{self._planned.name}-{trial.id}"
        run = self._tracker.start_run(name, params, tags, _data(self._planned), trial.run_id)
        trial.run_id = run.run_id
        self._ledger.save(trial)
        return run

    def close(self, status: Status) -> None:
        """End the runs of trials that are still under way."""
        for run in self._runs.values():
            run.finish(status, _SETTLE_TIMEOUT_S)
        self._runs.clear()


def _figures(report: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if name != "samples_seen"}


def _numbers(settings: Mapping[str, Any]) -> dict[str, float]:
    """Settings that are numbers, as figures: population based training changes them."""
    numbers = {key: value for key, value in settings.items() if isinstance(value, int | float)}
    return {f"setting/{key}": float(value) for key, value in numbers.items()}
