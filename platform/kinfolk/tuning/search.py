"""The search itself: Ray Tune over the trials of a ledger, from wherever they are to their ends."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from kinfolk.cluster import variables
from kinfolk.errors import ConfigError
from kinfolk.signals import first_signal
from kinfolk.tuning.bookkeeping import Bookkeeper, Listener, Suggestions, UntilTold, order_of, replay
from kinfolk.tuning.ledger import ENDED, Ledger, Trial
from kinfolk.tuning.rounds import Population
from kinfolk.tuning.searchers import Searcher
from kinfolk.tuning.sweep import Asha, Pbt, Sweep, Unscheduled
from kinfolk.tuning.team import run_team_trial
from kinfolk.tuning.trial import Work, run_trial

_DEATHS = 3  # of a trial's process, from its last checkpoint, before it counts as failed
_TEAM_CPUS = 0.01  # of the process that waits for a trial's workers, which have a CPU each
_KEPT = 4  # checkpoints of a trial: PBT may still copy one that its trial has left behind
Ending = Literal["done", "interrupted", "out of time"]
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no score
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def cpus_wanted(sweep: Sweep) -> int:
    """CPUs that the trials at a time want: one for each worker, and one more for those who wait for teams."""
    return sweep.parallel * sweep.workers + (sweep.workers > 1)


def check_room(sweep: Sweep) -> None:
    """Refuse more trials at a time than the cluster can ever hold.

    Raises:
        ConfigError: with what the cluster has.
    """
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if (wanted := cpus_wanted(sweep)) > cpus:
        raise ConfigError(
            f"parallel={sweep.parallel} trials of workers={sweep.workers} want {wanted} CPUs; the cluster has {cpus}. "
            "Lower parallel or workers."
        )


def threads_of_a_trial(sweep: Sweep) -> int:
    """CPU threads of one worker, so that the trials at a time fill the largest machine."""
    cpus = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    return max(int(cpus) // (sweep.parallel * sweep.workers), 1)


def search(
    work: Work,
    ledger: Ledger,
    trials: Sequence[Trial],
    searcher: Searcher | None,
    scheduler: Unscheduled | Asha | Pbt,
    listener: Listener = lambda _: None,
    seconds: float | None = None,
) -> Ending:
    """Run ``trials`` to their ends, those that were begun from their checkpoints.

    Trials without settings get them from ``searcher``. SIGINT and SIGTERM end the search, as do ``seconds``, counted
    over all starts; what was running then goes on from its last checkpoint in the next search.
    """
    queue = [trial for trial in trials if trial.status not in ENDED]
    if not queue:
        return "done"
    begun, before = time.monotonic(), ledger.seconds

    def clock() -> float:
        return before + time.monotonic() - begun

    ledger.starts += 1
    ledger.save_head()
    stopper = UntilTold(clock, seconds)
    keeper = Bookkeeper(ledger, work.pace.samples, clock, listener)
    with variables(_ENVIRONMENT), first_signal(stopper.ask):
        _run(work, ledger, trials, searcher, scheduler, stopper, keeper)
    ledger.seconds = clock()
    ledger.save_head()
    return _ended(ledger, queue, stopper)


def _ended(ledger: Ledger, queue: Sequence[Trial], stopper: UntilTold) -> Ending:
    """How the search ended; time that is up ends the trials that were running too."""
    if stopper.asked:
        return "interrupted"
    for trial in queue:
        if trial.status in ENDED:
            continue
        if stopper.out_of_time:
            trial.status = "stopped"
        else:
            trial.status, trial.error = "failed", "its process could not be started"
        ledger.save(trial)
    return "out of time" if stopper.out_of_time else "done"


def _run(
    work: Work,
    ledger: Ledger,
    trials: Sequence[Trial],
    searcher: Searcher | None,
    scheduling: Unscheduled | Asha | Pbt,
    stopper: UntilTold,
    keeper: Bookkeeper,
) -> None:
    queue = [trial for trial in trials if trial.status not in ENDED]
    furthest = max((trial.samples_seen for trial in queue), default=0)
    scheduler = make_scheduler(scheduling, work, furthest)
    told = partial(replay, work.sweep, scheduler)
    if isinstance(scheduling, Asha):
        for trial in trials:
            if trial.status in ENDED:
                told(f"earlier-{trial.id}", trial)
    how = (
        {"config": _population(ledger, queue, searcher)}
        if isinstance(scheduling, Pbt)
        else {
            "search_alg": Suggestions(ledger, queue, searcher, told),
            "num_samples": len(queue),
            "max_concurrent_trials": work.sweep.parallel,
        }
    )
    alone = work.sweep.workers == 1
    tune.run(
        tune.with_parameters(run_trial if alone else run_team_trial, work=work),
        name=f"start-{ledger.starts}",
        storage_path=work.storage,
        resources_per_trial={"cpu": 1 if alone else _TEAM_CPUS},
        scheduler=scheduler,
        stop=stopper,
        callbacks=[keeper],
        max_failures=_DEATHS,
        reuse_actors=alone,  # a process takes seconds to start; that of a team ends with its workers
        checkpoint_config=tune.CheckpointConfig(num_to_keep=_KEPT),
        trial_dirname_creator=lambda trial: f"{trial.config['trial']['id']}-{trial.trial_id}",
        raise_on_failed_trial=False,
        verbose=0,
        **how,
    )


def _population(ledger: Ledger, queue: Sequence[Trial], searcher: Searcher | None) -> dict[str, Any]:
    """All trials at once, as PBT wants them."""
    for trial in queue:
        if not trial.settings and searcher is not None:
            trial.settings = searcher.propose(trial.id)
            ledger.save(trial)
    return {"trial": tune.grid_search([order_of(trial)["trial"] for trial in queue])}


def make_scheduler(scheduling: Unscheduled | Asha | Pbt, work: Work, seen: int = 0) -> TrialScheduler:
    """Tune's scheduler; the higher a trial's score, the better. ``seen`` is how far the trials to run have come."""
    if isinstance(scheduling, Asha):
        return ASHAScheduler(
            time_attr="samples_seen",
            metric="score",
            mode="max",
            max_t=work.pace.samples,
            grace_period=scheduling.grace_samples,
            reduction_factor=scheduling.reduction,
            stop_last_trials=False,  # or a report that passes no new rung would be judged at one that was skipped
        )
    if isinstance(scheduling, Pbt):
        return Population(scheduling, work.sweep.space, work.pace.samples, seen)
    return FIFOScheduler()
