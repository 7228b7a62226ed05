"""The verb on a search that runs in this process: what is refused, recorded, gone on with, registered and shown."""

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kinfolk.checkpoint import save_checkpoint
from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.metrics.alarm import Alarm
from kinfolk.tracking.connection import connect
from kinfolk.tuning.ledger import ENDED, opened
from kinfolk_pipelines import cli, cli_tune
from kinfolk_pipelines.sweep_plan import plan_sweep
from kinfolk_pipelines.train import InterruptedTrainingError
from kinfolk_pipelines.tune import tune

SWEEP = """
recipe: ring/blob
fixed:
  model.optimizer.kind: sgd
  model.dequantise: 0.1
  monitor:
    every_samples: 32
    samples: 100
    alarm:
      grace_samples: 0
      looks: 2
      limits: {missing: null, modes: null, effective_bins: null, distance_ratio: null, support_share: null}
space:
  model.optimizer.lr: {kind: choice, values: [1.0e-5, 0.01, 1.0e+6]}
trials: 6
parallel: 2
report_every_samples: 32
evaluation_samples: 12
objective: {metric: log_prob_density_nats, mode: max}
constraints: ["alarm == 0"]
"""


@dataclass
class InProcess:
    """Stands in for Ray Tune: one trial after the other; stops as Ctrl-C does before the ``stop_before``-th.

    The time is up before the ``late_before``-th.
    """

    stop_before: int | None = None
    late_before: int | None = None
    seconds: list[float | None] = field(default_factory=list)  # that it was given
    ran: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def search(self, work, ledger, trials, searcher, scheduler, listener, seconds):
        self.asked.append(scheduler.kind)
        self.seconds.append(seconds)
        for trial in trials:
            if trial.status in ENDED:
                continue
            if self.stop_before is not None and len(self.ran) >= self.stop_before:
                return "interrupted"
            if self.late_before is not None and len(self.ran) >= self.late_before:
                trial.status = "stopped"
                ledger.save(trial)
                continue
            self.ran.append(trial.id)
            trial.settings = trial.settings or searcher.propose(trial.id)
            self._train(work, ledger, trial, listener)
        ledger.starts += 1
        ledger.save_head()
        return "done"

    def _train(self, work, ledger, trial, listener):
        from kinfolk.tuning.trial import reasons, reports, said

        trial.status = "running"
        listener(trial)
        try:
            for figures, snapshot in reports(work, trial.settings, trial.seed, []):
                trial.add(figures, reasons(snapshot.values["looks"]))
                place = Path(work.storage) / trial.id / str(trial.samples_seen)
                save_checkpoint(place, snapshot)
                trial.stored(str(place))
                listener(trial)
        except KinfolkError as error:
            trial.error = said(error)
        trial.status = "failed" if trial.error else "finished"
        ledger.save(trial)
        listener(trial)


@pytest.fixture
def sweeps(settings, tmp_path):
    """Settings with a folder of sweeps."""
    (tmp_path / "sweeps" / "ring").mkdir(parents=True)
    (tmp_path / "sweeps" / "ring" / "rates.yaml").write_text(SWEEP)
    return settings.model_copy(update={"sweeps": tmp_path / "sweeps"})


@pytest.fixture
def in_process(monkeypatch):
    import kinfolk.tuning.search as search
    import kinfolk_pipelines.sweep_work as sweep_work

    standing_in = InProcess()
    monkeypatch.setattr(search, "search", standing_in.search)
    monkeypatch.setattr(search, "check_room", lambda sweep: None)
    monkeypatch.setattr(search, "threads_of_a_trial", lambda sweep: 1)
    monkeypatch.setattr(sweep_work, "connect", lambda *_, **__: None)
    return standing_in


@pytest.fixture
def run(sweeps, in_process, quiet, tmp_path):
    """The verb with ``--set`` entries; its report is ``sweep.html``."""

    def go(*sets, **how):
        planned = plan_sweep(sweeps, "ring/rates", sets)
        return tune(sweeps, planned, quiet, tmp_path / "sweep.html", **how)

    return go


def runs_of(settings):
    """MLflow's runs by name."""
    client = connect(settings.tracking)
    found = client.search_runs([client.get_experiment_by_name("kinfolk").experiment_id])
    return {each.info.run_name: each for each in found}


def ledger_of(settings):
    paths = sorted((settings.state / "sweeps" / "ring-rates" / "trials").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def test_the_best_trial_is_registered_with_its_lineage_and_figures(run, sweeps):
    tuned = run()
    assert dict(tuned.counts)["finished"] + dict(tuned.counts)["failed"] == 6
    assert tuned.counts["failed"] > 0
    assert tuned.best.settings == {"model.optimizer.lr": 0.01}
    version = tuned.version
    assert (version.name, version.number) == ("ring-blob", 1)
    assert version.lineage.sweep == "ring-rates"
    assert version.metrics["log_prob_density_nats"] == tuned.best.figures["log_prob_density_nats"]
    assert version.run_id == tuned.best.run_id
    from kinfolk_pipelines.models import load_model

    loaded = load_model(sweeps, "ring-blob")
    assert loaded.version.basis["classes"] == "all"
    assert loaded.version.basis["data"] == f"ring {loaded.version.lineage.data_digest}"
    assert loaded.recipe["model"]["optimizer"]["lr"] == 0.01
    assert loaded.recipe["model"]["dequantise"] == 0.1
    assert loaded.recipe["training"]["samples"] == 64


def test_mlflow_has_a_run_of_the_sweep_and_one_below_it_for_each_trial(run, sweeps):
    tuned = run()
    runs = runs_of(sweeps)
    parent = runs["ring-rates"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["trials_failed"] == tuned.counts["failed"]
    for name, trial in ledger_of(sweeps).items():
        child = runs[f"ring-rates-{name}"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["model.optimizer.lr"] == json.dumps(trial["settings"]["model.optimizer.lr"])
        assert child.info.status == {"finished": "FINISHED", "failed": "FAILED"}[trial["status"]]
        logged = connect(sweeps.tracking).get_metric_history(child.info.run_id, "log_prob_density_nats")
        steps = [point.step for point in logged if point.step]  # registration logs those of the version at 0
        assert steps == [report["samples_seen"] for report in trial["reports"]]


def test_a_sweep_that_was_begun_goes_on_only_when_told_to_and_repeats_nothing(run, in_process, sweeps):
    in_process.stop_before = 3
    with pytest.raises(InterruptedTrainingError, match=r"stopped with 3 of 6 trials ended\. `--resume` goes on"):
        run()
    assert runs_of(sweeps)["ring-rates"].info.status == "KILLED"
    with pytest.raises(ConfigError, match="was begun before"):
        run()
    in_process.stop_before = None
    tuned = run(resume=True)
    assert in_process.ran == ["000", "001", "002", "003", "004", "005"]
    assert sum(tuned.counts.values()) == 6
    assert len(runs_of(sweeps)) == 7
    assert runs_of(sweeps)["ring-rates"].info.status == "FINISHED"
    again = run(resume=True)
    assert again.version.reference == tuned.version.reference == "ring-blob/1"
    assert len(in_process.ran) == 6


def test_fresh_starts_over_and_leaves_the_old_record(run, in_process, sweeps):
    run()
    tuned = run(fresh=True)
    assert len(in_process.ran) == 12
    assert tuned.version.reference == "ring-blob/2"
    assert len(list((sweeps.state / "sweeps").iterdir())) == 2


def test_fresh_waits_for_whoever_runs_the_sweep_and_touches_nothing_before_it_can_start(run, sweeps, monkeypatch):
    run()
    folder = sweeps.state / "sweeps" / "ring-rates"
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    with (
        opened(folder, json.loads((folder / "sweep.json").read_text())["digest"]),
        pytest.raises(ConfigError, match="Another process runs the sweep"),
    ):
        run(fresh=True)
    import kinfolk.tuning.search as search

    def refuse(sweep):
        raise ConfigError("no room")

    monkeypatch.setattr(search, "check_room", refuse)
    with pytest.raises(ConfigError, match="no room"):
        run(fresh=True)
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before
    assert [each.name for each in folder.parent.iterdir()] == ["ring-rates"]


def test_what_mlflow_did_not_hear_of_is_told_by_resume(run, in_process, sweeps):
    """As if the driver had died right after a trial's end, and MLflow had been away for the whole of another."""
    in_process.stop_before = 3
    with pytest.raises(InterruptedTrainingError):
        run()
    folder, client = sweeps.state / "sweeps" / "ring-rates" / "trials", connect(sweeps.tracking)
    records = ledger_of(sweeps)
    client.update_run(records["000"]["run_id"], "RUNNING")
    client.delete_run(records["001"]["run_id"])
    for name, changes in {"000": {"told": False}, "001": {"told": False, "run_id": None}}.items():
        (folder / f"{name}.json").write_text(json.dumps({**records[name], **changes}))
    in_process.stop_before = None
    run(resume=True)
    runs, now = runs_of(sweeps), ledger_of(sweeps)
    for name in ("000", "001"):
        child = runs[f"ring-rates-{name}"]
        assert child.info.run_id == now[name]["run_id"]
        assert child.info.status == {"finished": "FINISHED", "failed": "FAILED"}[now[name]["status"]]
        logged = connect(sweeps.tracking).get_metric_history(child.info.run_id, "log_prob_density_nats")
        steps = {point.step for point in logged if point.step}  # each told at least once
        assert steps == {report["samples_seen"] for report in now[name]["reports"]}


def test_a_sweep_may_be_judged_by_modes(run):
    tuned = run("objective={metric: kl_to_uniform, mode: min}")
    assert tuned.best.figures["kl_to_uniform"] >= 0


def test_resume_needs_something_to_go_on_with_that_is_still_the_same(run, in_process):
    with pytest.raises(ConfigError, match="was not begun here"):
        run(resume=True)
    run()
    with pytest.raises(ConfigError, match="was begun with other settings, another recipe or other data"):
        run("trials=7", resume=True)
    assert len(in_process.ran) == 6


def test_a_sweep_whose_every_trial_fails_says_so_with_the_commonest_error(run, sweeps, tmp_path):
    bad = SWEEP.replace("[1.0e-5, 0.01, 1.0e+6]", "[1.0e+6, 2.0e+6]")
    (tmp_path / "sweeps" / "ring" / "rates.yaml").write_text(bad)
    with pytest.raises(
        KinfolkError, match="Every trial of ring-rates failed, 6 of 6 with: Training diverged"
    ) as caught:
        run()
    assert not isinstance(caught.value, ConfigError)  # exit code 1
    assert runs_of(sweeps)["ring-rates"].info.status == "FAILED"
    assert "Training diverged" in (tmp_path / "sweep.html").read_text()


def test_a_sweep_that_ran_out_of_time_before_any_report_says_so(run, in_process, sweeps, tmp_path):
    in_process.late_before = 0
    with pytest.raises(KinfolkError, match=r"6 of 6 trials .* got to no report, .* 32 samples, within .*minutes=0.5"):
        run("budget.minutes=0.5")
    assert in_process.seconds == [30.0]  # and no other search
    assert runs_of(sweeps)["ring-rates"].info.status == "FAILED"
    assert "6 stopped, 0 failed" in (tmp_path / "sweep.html").read_text()


def test_a_sweep_without_a_report_tells_of_those_that_failed_too(run, in_process, tmp_path):
    bad = SWEEP.replace("[1.0e-5, 0.01, 1.0e+6]", "[1.0e+6, 2.0e+6]")
    (tmp_path / "sweeps" / "ring" / "rates.yaml").write_text(bad)
    in_process.late_before = 2
    with pytest.raises(KinfolkError, match=r"4 of 6 trials .* got to no report.* 2 of 6 failed, 2 with: Training div"):
        run("budget.minutes=0.5")
    page = (tmp_path / "sweep.html").read_text()
    assert "4 stopped, 2 failed" in page
    assert "Training diverged" in page


def test_the_command_ends_with_1_when_every_trial_fails(sweeps, in_process, tmp_path, monkeypatch, capsys):
    bad = SWEEP.replace("[1.0e-5, 0.01, 1.0e+6]", "[1.0e+6, 2.0e+6]")
    (tmp_path / "sweeps" / "ring" / "rates.yaml").write_text(bad)
    assert command(sweeps, tmp_path, monkeypatch) == 1
    out, said = capsys.readouterr()
    assert not out
    assert "kinfolk: Every trial of ring-rates failed, 6 of 6 with: Training diverged" in said


def command(settings, folder, monkeypatch, *words):
    """The exit code of ``kinfolk tune ring/rates``."""
    monkeypatch.setattr(cli_tune, "load_settings", lambda: settings)
    monkeypatch.setattr(sys, "argv", ["kinfolk", "tune", "ring/rates", "-o", str(folder / "sweep.html"), *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_no_trial_that_breaks_a_constraint_is_registered(run, tmp_path):
    tuned = run('constraints=["alarm > 0"]')
    assert (tuned.version, tuned.best) == (None, None)
    assert "No trial keeps the constraints" in (tmp_path / "sweep.html").read_text()


def test_a_trial_whose_monitor_fired_is_registered_with_that_if_the_sweep_allows_it(run, sweeps, monkeypatch):
    assert run().version.alarms == ()
    alarm = Alarm(64, 32, "missing", 1.0, 0.5, "Samples are alike.")
    monkeypatch.setattr("kinfolk.tuning.trial.alarms", lambda looks: (alarm,))
    tuned = run("constraints=[]", fresh=True)
    assert tuned.best.figures["alarm"] == 1
    assert tuned.best.alarms == ["Samples are alike."]
    assert tuned.version.alarms == ("Samples are alike.",)
    told = connect(sweeps.tracking).get_run(tuned.best.run_id).data.tags
    assert json.loads(told["alarms"]) == ["Samples are alike."]


def test_the_best_settings_are_repeated_with_other_seeds(run, in_process, sweeps, tmp_path):
    tuned = run("seeds=2")
    assert in_process.ran[-2:] == ["seed-0", "seed-1"]
    assert in_process.asked == ["none", "none"]
    records = ledger_of(sweeps)
    assert [records[f"seed-{i}"]["seed"] for i in range(2)] == [1, 2]
    assert all(records[f"seed-{i}"]["settings"] == tuned.best.settings for i in range(2))
    assert not tuned.best.id.startswith("seed-")
    assert "The best settings with 3 seeds" in (tmp_path / "sweep.html").read_text()


def test_retraining_trains_as_long_as_the_recipe(run, ray, sweeps):
    tuned = run("finish=retrain", "budget.samples=32", "constraints=[]", "workers=2")
    assert ray.asked[0]["workers"] == 2
    assert ray.asked[0]["job"].recipe.training.samples == 64
    assert ray.asked[0]["job"].recipe.model["optimizer"]["lr"] == 0.01
    assert tuned.version.lineage.sweep == "ring-rates"
    assert tuned.best.samples_seen == 32


def test_the_command_says_whether_what_it_registered_is_the_trial_itself(
    sweeps, in_process, ray, tmp_path, monkeypatch, capsys
):
    assert command(sweeps, tmp_path, monkeypatch) == 0
    assert re.match(r"ring-blob/1 is trial \d+, log_prob_density_nats -", capsys.readouterr().out)
    retrained = ("--fresh", "--set", "finish=retrain", "--set", "constraints=[]")
    assert command(sweeps, tmp_path, monkeypatch, *retrained) == 0
    assert re.match(
        r"ring-blob/2 is another training, of 64 samples and not measured here, with the settings of trial \d+, "
        r"which had log_prob_density_nats -",
        capsys.readouterr().out.replace("\n", " "),
    )


def test_mlflow_away_before_the_start_stops_everything_before_anything_is_written(sweeps, quiet, tmp_path, in_process):
    away = sweeps.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(KinfolkError, match="out of reach"):
        tune(away, plan_sweep(away, "ring/rates"), quiet, tmp_path / "sweep.html")
    assert not (sweeps.state / "sweeps").exists()
    shutil.rmtree(sweeps.state)


def test_a_population_on_a_cluster_by_address_trains_whole(sweeps, in_process, quiet, tmp_path):
    away = sweeps.model_copy(update={"ray_address": "192.0.2.1:6379"})
    population = "scheduler={kind: pbt, perturb: [model.optimizer.lr], every_samples: 32}"
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:6379 .* Use parallel: 6, the whole population"):
        tune(away, plan_sweep(away, "ring/rates", [population, "parallel=2"]), quiet, tmp_path / "sweep.html")
    whole = plan_sweep(away, "ring/rates", [population, "parallel=6"])
    tune(away, whole, quiet, tmp_path / "sweep.html", fresh=True)
    assert in_process.asked == ["pbt"]
