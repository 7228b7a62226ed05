"""Tune's events, written into the ledger as they come and told to whoever listens."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher as TuneSearcher

from kinfolk.tuning.ledger import Ledger, Trial
from kinfolk.tuning.searchers import Searcher
from kinfolk.tuning.sweep import Sweep

Listener = Callable[[Trial], None]  # told of each change of a trial


def order_of(trial: Trial) -> dict[str, Any]:
    """A trial's part of Tune's config: everything its process needs to know of it alone."""
    return {
        "trial": {
            "id": trial.id,
            "settings": trial.settings,
            "seed": trial.seed,
            "checkpoints": list(trial.checkpoints),
        }
    }


class Suggestions(TuneSearcher):
    """Hands Tune the trials to run, in order; settings of new ones are asked for when they start."""

    def __init__(
        self, ledger: Ledger, queue: Sequence[Trial], searcher: Searcher | None, returning: Callable[[str, Trial], None]
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._ledger, self._queue, self._searcher, self._returning = ledger, list(queue), searcher, returning
        self._given: dict[str, str] = {}  # Tune's id to ours

    def suggest(self, trial_id: str) -> Any:
        """The next trial as Tune's config."""
        if not self._queue:
            return TuneSearcher.FINISHED
        trial = self._queue.pop(0)
        if not trial.settings and self._searcher is not None:
            trial.settings = self._searcher.propose(trial.id)
            self._ledger.save(trial)
        self._returning(trial_id, trial)
        self._given[trial_id] = trial.id
        return order_of(trial)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
        """Let the searcher learn from a trial that ended."""
        if self._searcher is not None and trial_id in self._given:
            trial = self._ledger.trials[self._given[trial_id]]
            if error:  # told to the searcher before the bookkeeper hears why
                trial.error = trial.error or "its process died"
            self._searcher.learn(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""


class _Standing:
    """As much of a trial as a scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def replay(sweep: Sweep, scheduler: TrialScheduler, trial_id: str, trial: Trial) -> None:
    """Tell a fresh scheduler what a trial of an earlier start reported, so that it judges others by it."""
    if not trial.reports:
        return
    standing = _Standing(trial_id)
    scheduler.on_trial_add(None, standing)
    for report in trial.reports:
        seen, score = report["samples_seen"], sweep.score(report)
        scheduler.on_trial_result(None, standing, {"samples_seen": seen, "score": score})


class UntilTold(Stopper):
    """Ends the search when asked to, or when ``seconds`` are spent."""

    def __init__(self, clock: Callable[[], float], seconds: float | None) -> None:
        self._clock, self._seconds = clock, seconds
        self.asked = False

    def __call__(self, *_: Any) -> bool:
        """No trial is stopped alone."""
        return False

    def ask(self) -> None:
        """End the search."""
        self.asked = True

    @property
    def out_of_time(self) -> bool:
        """Whether the time is spent."""
        return self._seconds is not None and self._clock() >= self._seconds

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.asked or self.out_of_time

    def __reduce__(self) -> Any:
        return UntilTold, (float, None)  # Tune stores a copy that nobody reads; a clock does not pickle


class Bookkeeper(Callback):
    """Writes what happens to trials into the ledger."""

    def __init__(self, ledger: Ledger, samples: int, clock: Callable[[], float], listener: Listener) -> None:
        self._ledger, self._samples, self._clock, self._listener = ledger, samples, clock, listener

    def _trial(self, trial: Any) -> Trial:
        return self._ledger.trials[trial.config["trial"]["id"]]

    def _changed(self, trial: Trial) -> None:
        self._ledger.seconds = self._clock()
        self._ledger.save(trial)
        self._ledger.save_head()
        self._listener(trial)

    def on_trial_start(self, trial: Any, **_: Any) -> None:
        """It runs, for the first time or again."""
        ours = self._trial(trial)
        ours.status = "running"
        self._changed(ours)

    def on_trial_result(self, trial: Any, result: Any, **_: Any) -> None:
        """It reported, or said what went wrong."""
        ours = self._trial(trial)
        if "error" in result:
            ours.error = result["error"]
            return
        _note_copy(ours, result)
        ours.add(result["figures"], result["alarms"])
        if "checkpoint" in result:  # of a team, whose checkpoints Tune does not know
            ours.stored(result["checkpoint"])
        self._changed(ours)

    def on_checkpoint(self, trial: Any, checkpoint: Any, **_: Any) -> None:
        """Its state is in the storage."""
        ours = self._trial(trial)
        ours.stored(checkpoint.path)
        self._ledger.save(ours)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """It ended by itself, or its scheduler ended it."""
        ours = self._trial(trial)
        if ours.error is not None:
            ours.status = "failed"
        else:
            ours.status = "finished" if ours.samples_seen >= self._samples else "stopped"
        self._changed(ours)

    def on_trial_error(self, trial: Any, **_: Any) -> None:
        """Its process died more often than is put up with."""
        ours = self._trial(trial)
        ours.error = last_line(trial.get_error() if hasattr(trial, "get_error") else None)
        ours.status = "failed"
        self._changed(ours)


def _note_copy(ours: Trial, result: Any) -> None:
    """Note a copy with the first report that comes of it; until then the trial's checkpoint is its own.

    What Tune holds as a trial's settings may be changed before its report under the old ones is heard of.
    """
    copied = result.get("copied")
    if copied is None or (ours.changes and ours.changes[-1]["samples_seen"] == copied["samples_seen"]):
        return
    ours.changes.append({**copied, "before": ours.settings})
    ours.settings = result["settings"]


def last_line(error: Exception | None) -> str:
    """The last line of an error that says something."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if error is not None and lines else "its process died"
