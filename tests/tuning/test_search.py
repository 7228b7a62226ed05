"""Sweeps on Ray Tune: failures that stop nobody, stops that cost nothing, copies, and nothing left behind."""

import signal

import pytest

from kinfolk.errors import ConfigError
from kinfolk.tuning.ledger import Trial, opened
from kinfolk.tuning.searchers import make_searcher

pytestmark = pytest.mark.usefixtures("ray_cluster", "toy")

SHIFT = {"kind": "choice", "values": [0.0, -1.0]}
LR = {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}


def run(work, folder, listener=lambda _: None):
    """The sweep from wherever it is; how it ended and its trials by name."""
    from kinfolk.tuning.search import search

    with opened(folder, "digest") as ledger:
        for index in range(work.sweep.trials):
            if (name := f"{index:03}") not in ledger.trials:
                ledger.save(Trial(name, {}))
        trials = list(ledger.trials.values())
        ending = search(work, ledger, trials, make_searcher(work.sweep), work.sweep.scheduler, listener)
        return ending, ledger.trials


def still_there():
    """Placement groups and trials' actors of this cluster that have not ended."""
    import ray
    from ray.util import placement_group_table
    from ray.util.state import list_actors

    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    alive = [("state", "!=", "DEAD")]  # 100 are told at most, and the dead of all other tests count
    actors = list_actors(address=ray.get_runtime_context().gcs_address, filters=alive)
    return groups, [each for each in actors if "ImplicitFunc" in each.class_name]


def test_trials_that_fail_are_told_and_the_rest_trains_to_the_end(work_of, tmp_path):
    work = work_of(space={"model.optimizer.lr": LR, "model.class_shift": SHIFT}, trials=6)
    seen = []
    ending, trials = run(work, tmp_path / "ledger", lambda _: seen.append(still_there()))
    assert ending == "done"
    assert any(groups and actors for groups, actors in seen)  # while it runs there are both
    broken = {name for name, trial in trials.items() if trial.settings["model.class_shift"] == -1.0}
    assert 0 < len(broken) < 6
    for name, trial in trials.items():
        assert trial.status == ("failed" if name in broken else "finished"), name
        assert trial.samples_seen == (0 if name in broken else 1280)
        assert (trial.error is not None) == (name in broken)
    assert {trials[name].error for name in broken} == {"ArithmeticError: classes that lie the wrong way round"}
    from kinfolk.tuning.trial import trained

    good = next(trial for name, trial in trials.items() if name not in broken)
    model = trained(work, good.settings, None, good.checkpoints[-1])
    assert work.measure(model)["width"] == good.figures["width"]
    assert still_there() == ([], [])


def test_a_sweep_that_was_stopped_goes_on_without_repeating_what_ended(work_of, tmp_path):
    work = work_of(trials=4, parallel=1)
    _, undisturbed = run(work, tmp_path / "undisturbed")

    def stop(trial):
        if trial.id == "001" and trial.samples_seen >= 480:
            signal.raise_signal(signal.SIGINT)

    ending, trials = run(work, tmp_path / "stopped", stop)
    assert ending == "interrupted"
    assert trials["000"].status == "finished"
    assert (trials["001"].status, trials["003"].status) == ("running", "waiting")
    stopped_at = trials["001"].samples_seen
    assert 480 <= stopped_at < 1280

    seen = []
    ending, trials = run(work, tmp_path / "stopped", lambda trial: seen.append((trial.id, trial.samples_seen)))
    assert ending == "done"
    assert "000" not in {name for name, _ in seen}
    assert min(samples for name, samples in seen if name == "001") >= stopped_at - 160
    assert {name: trial.status for name, trial in trials.items()} == dict.fromkeys(undisturbed, "finished")
    for name, trial in trials.items():
        widths = [report["width"] for report in trial.reports]
        assert widths == [report["width"] for report in undisturbed[name].reports], name


def test_halving_stops_the_worse_trials_early(work_of, tmp_path):
    asha = {"kind": "asha", "grace_samples": 320, "reduction": 2}
    _, trials = run(work_of(scheduler=asha, trials=6), tmp_path / "ledger")
    stopped = [trial for trial in trials.values() if trial.status == "stopped"]
    finished = [trial for trial in trials.values() if trial.status == "finished"]
    assert stopped
    assert finished
    assert all(320 <= trial.samples_seen < 1280 for trial in stopped)
    assert min(t.figures["width"] for t in finished) < min(t.figures["width"] for t in stopped)


def test_a_population_copies_its_best_and_changes_settings(work_of, tmp_path):
    pbt = {"kind": "pbt", "perturb": ["model.optimizer.lr"], "every_samples": 320, "quantile": 0.5, "resample": 0.0}
    _, trials = run(work_of(scheduler=pbt, trials=4, parallel=4), tmp_path / "ledger")
    assert {trial.status for trial in trials.values()} == {"finished"}
    changed = [trial for trial in trials.values() if trial.changes]
    assert changed
    for trial in changed:
        assert trial.changes[-1]["donor"] != trial.id
        assert trial.settings != trial.first_settings


def test_trials_of_several_workers_train_and_their_models_are_there(work_of, tmp_path):
    from kinfolk.tuning.trial import trained

    work = work_of(trials=2, parallel=1, workers=2, report_every_samples=640)
    _, trials = run(work, tmp_path / "ledger")
    assert {trial.status for trial in trials.values()} == {"finished"}
    for trial in trials.values():
        assert trial.samples_seen == 1280
        model = trained(work, trial.settings, None, trial.checkpoints[-1])
        assert work.measure(model)["width"] == trial.figures["width"]


def test_time_that_is_up_ends_what_runs(work_of, tmp_path):
    from kinfolk.tuning.search import search

    work = work_of(trials=2)
    with opened(tmp_path / "ledger", "digest") as ledger:
        ledger.seconds = 100.0
        trials = [Trial("000", {"model.optimizer.lr": 0.01}, status="running"), Trial("001", {})]
        ending = search(work, ledger, trials, make_searcher(work.sweep), work.sweep.scheduler, seconds=100.0)
    assert ending == "out of time"
    assert [trial.status for trial in trials] == ["stopped", "stopped"]
    assert not any(trial.reports for trial in trials)


def test_more_trials_at_a_time_than_the_cluster_holds_are_refused(work_of):
    from kinfolk.tuning.search import check_room

    check_room(work_of(parallel=4).sweep)
    with pytest.raises(ConfigError, match=r"parallel=5 trials of workers=1 want 5 CPUs; the cluster has 4"):
        check_room(work_of(parallel=5).sweep)
    with pytest.raises(ConfigError, match=r"parallel=2 trials of workers=2 want 5 CPUs"):
        check_room(work_of(parallel=2, workers=2).sweep)
