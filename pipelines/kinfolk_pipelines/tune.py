"""Search the settings of a recipe on Ray Tune, track every trial in MLflow, register what is best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.tracking import registry
from kinfolk.tracking.lineage import Version
from kinfolk.tracking.runs import Run, Tracker
from kinfolk.tuning import ledger as records
from kinfolk.tuning.best import best, median_of_finished
from kinfolk.tuning.ledger import ENDED, REPEAT, Ledger, Trial, commonest_error
from kinfolk.tuning.searchers import Searcher, make_searcher
from kinfolk.tuning.sweep import Unscheduled
from kinfolk_pipelines.figures import learned_classes
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.sweep_display import display
from kinfolk_pipelines.sweep_plan import SweepPlan, folder_of, trial_plan
from kinfolk_pipelines.sweep_report import write_sweep_report
from kinfolk_pipelines.sweep_runs import TrialRuns, start_parent
from kinfolk_pipelines.sweep_work import work_of
from kinfolk_pipelines.train import InterruptedTrainingError, register_trained, train

if TYPE_CHECKING:
    from kinfolk.tuning.trial import Work  # loads Ray


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a sweep left."""

    version: Version | None  # None: no trial kept the constraints
    best: Trial | None
    counts: Mapping[str, int]  # trials by how they ended
    median: float | None  # objective of those that trained to the end
    report: Path


@dataclass(frozen=True, slots=True)
class _Search:
    """A sweep under way."""

    settings: Settings
    planned: SweepPlan
    ledger: Ledger
    work: "Work"
    console: Console

    @property
    def searched(self) -> list[Trial]:
        """Trials of the search itself."""
        return [trial for trial in self.ledger.trials.values() if not trial.repeats]

    @property
    def repeats(self) -> list[Trial]:
        """Trials of the best settings with other seeds."""
        return [trial for trial in self.ledger.trials.values() if trial.repeats]


def tune(
    settings: Settings, planned: SweepPlan, console: Console, out: Path, *, resume: bool = False, fresh: bool = False
) -> Tuned:
    """Run ``planned`` to its end and register the best trial; ``resume`` goes on with one that was begun.

    Raises:
        ConfigError: it was begun before and neither ``resume`` nor ``fresh`` was asked for, or the other way round.
        InterruptedTrainingError: stopped by a signal.
        KinfolkError: every trial failed; with the commonest error.
    """
    folder = folder_of(settings, planned)
    _check_begun(planned, folder, resume, fresh)
    tracker = Tracker(settings.tracking, settings.experiment, settings.state.absolute() / "spool")
    tracker.check()
    with records.opened(folder, planned.digest, fresh=fresh) as ledger:
        work = work_of(settings, planned, ledger, console)
        under_way = _Search(settings, planned, ledger, work, console)
        if not resume:
            records.put_aside(folder)
        _queue(under_way)
        parent = start_parent(tracker, planned, ledger)
        try:
            tuned = _searched(under_way, tracker, parent, out)
        except InterruptedTrainingError:
            parent.finish("KILLED")
            raise
        except BaseException:
            parent.finish("FAILED")
            raise
        parent.finish("FINISHED")
        return tuned


def _check_begun(planned: SweepPlan, folder: Path, resume: bool, fresh: bool) -> None:
    begun = records.exists(folder)
    if resume and not begun:
        raise ConfigError(f"{planned.name} was not begun here, so there is nothing to go on with. Leave --resume out.")
    if resume and fresh:
        raise ConfigError("--resume goes on with a sweep and --fresh starts it over. Give one of them.")
    if begun and not resume and not fresh:
        raise ConfigError(
            f"{planned.name} was begun before. Go on with `--resume`, which repeats no trial that ended, or start over "
            "with `--fresh`."
        )


def _queue(search: _Search) -> None:
    """Every trial the sweep is to have, known before the first starts; the head first: what is begun can be resumed."""
    search.ledger.save_head()
    for index in range(search.planned.sweep.trials):
        if (name := f"{index:03}") not in search.ledger.trials:
            search.ledger.save(Trial(name, {}))


def _searched(search: _Search, tracker: Tracker, parent: Run, out: Path) -> Tuned:
    """All of it, from wherever the ledger is."""
    planned = search.planned
    searcher = make_searcher(planned.sweep)
    for trial in search.searched:
        if trial.status in ENDED:
            searcher.learn(trial)
    _run(search, tracker, parent, search.searched, searcher)
    _check_some_ended_well(search, out)
    leader = best(planned.sweep, search.searched)
    if leader is not None and planned.sweep.seeds:
        _queue_repeats(search, leader)
        _run(search, tracker, parent, search.repeats, None)
    version = None if leader is None else _registered(search, leader)
    median = median_of_finished(planned.sweep, search.searched)
    _log_outcome(search, parent, leader)
    write_sweep_report(out, planned, search.ledger, leader, version)
    return Tuned(version, leader, _counts(search.searched), median, out)


def _run(search: _Search, tracker: Tracker, parent: Run, trials: Sequence[Trial], searcher: Searcher | None) -> None:
    """Run ``trials`` to their ends: of the search with its ``searcher``, scheduler and time, or to compare seeds."""
    from kinfolk.tuning.search import search as run

    planned, ledger = search.planned, search.ledger
    minutes = planned.sweep.budget.minutes
    limits = (Unscheduled(), None) if searcher is None else (planned.sweep.scheduler, minutes and minutes * 60)
    runs = TrialRuns(tracker, planned, ledger, parent.run_id, search.console.print)
    runs.catch_up()
    try:
        with display(search.console, planned, ledger) as show:
            ending = run(search.work, ledger, trials, searcher, limits[0], _both(runs, show), limits[1])
        runs.catch_up()
    finally:
        runs.close("KILLED")
    if ending == "interrupted":
        ended = sum(trial.status in ENDED for trial in trials)
        raise InterruptedTrainingError(
            f"{planned.name} stopped with {ended} of {len(trials)} trials ended. `--resume` goes on: none of them is "
            "repeated, and those under way go on from their last report."
        )


def _both(*listeners: Callable[[Trial], None]) -> Callable[[Trial], None]:
    def listen(trial: Trial) -> None:
        for each in listeners:
            each(trial)

    return listen


def _check_some_ended_well(search: _Search, out: Path) -> None:
    """Refuse to go on where no trial is left to choose from, with the report written and the commonest error told."""
    planned, trials = search.planned, search.searched
    failed = [trial for trial in trials if trial.status == "failed"]
    if any(trial.reports for trial in trials if trial not in failed):
        return
    write_sweep_report(out, planned, search.ledger, None, None)
    error, count = commonest_error(failed) if failed else ("", 0)
    if len(failed) == len(trials):
        raise KinfolkError(
            f"Every trial of {planned.name} failed, {count} of {len(trials)} with: {error} The report is {out}."
        )
    others = f"The other {len(failed)} of {len(trials)} failed, {count} with: {error} " if failed else ""
    raise KinfolkError(
        f"{len(trials) - len(failed)} of {len(trials)} trials of {planned.name} got to no report, the first being due "
        f"after {planned.pace.report_every} samples, within budget.minutes={planned.sweep.budget.minutes}. Give more, "
        f"or report more often. {others}The report is {out}."
    )


def _queue_repeats(search: _Search, leader: Trial) -> None:
    first = (search.planned.base.recipe.seed if leader.seed is None else leader.seed) + 1
    for index in range(search.planned.sweep.seeds):
        if (name := f"{REPEAT}{index}") not in search.ledger.trials:
            search.ledger.save(Trial(name, dict(leader.settings), seed=first + index))


def _registered(search: _Search, leader: Trial) -> Version:
    """The best trial as a version of the model; one that was registered before is not registered again."""
    settings, planned, ledger = search.settings, search.planned, search.ledger
    if ledger.version is not None:
        return registry.find(settings.tracking, ledger.version)
    if planned.sweep.finish == "retrain":
        whole = trial_plan(settings, planned, leader.settings, leader.seed, whole=True)
        version = train(settings, whole, search.console, workers=planned.sweep.workers).version
    else:
        version = _taken(search, leader)
    ledger.version = version.reference
    ledger.save_head()
    return version


def _taken(search: _Search, leader: Trial) -> Version:
    from kinfolk.tuning.trial import trained

    settings, planned = search.settings, search.planned
    if leader.run_id is None:
        raise KinfolkError(
            f"The best trial, {leader.id}, is not in MLflow. `--resume` registers it once MLflow answers."
        )
    if not leader.checkpoints:
        raise KinfolkError(f"The best trial, {leader.id}, left no checkpoint. Use --fresh --set finish=retrain.")
    model = trained(search.work, leader.settings, leader.seed, leader.checkpoints[-1])
    as_trained = trial_plan(settings, planned, leader.settings, leader.seed, whole=False)
    figures = {name: value for name, value in leader.figures.items() if name != "samples_seen"}
    name = f"{planned.name}-{search.ledger.id}-{leader.id}"
    version = register_trained(settings, as_trained, name, leader.run_id, model, figures, tuple(leader.alarms))
    basis = {
        "data": f"{planned.base.data.name} {planned.base.data.digest}",
        "classes": learned_classes(planned.base.recipe.keep_labels, model.spec.classes),
        "samples": str(planned.sweep.evaluation_samples),
    }
    registry.log_model_metrics(settings.tracking, version, {}, basis=basis)
    return version


def _log_outcome(search: _Search, parent: Run, leader: Trial | None) -> None:
    """How many trials ended how, and the best one's figures, on the sweep's run."""
    counts = {f"trials_{status}": float(count) for status, count in _counts(search.searched).items()}
    figures = {} if leader is None else {n: v for n, v in leader.figures.items() if n != "samples_seen"}
    parent.log({**figures, **counts}, search.planned.pace.samples)


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    return {status: sum(trial.status == status for trial in trials) for status in sorted(ENDED)}
