"""What one trial does: reports at its pace, figures of the averaged weights, and a resume that costs no bit."""

from dataclasses import replace
from itertools import islice
from statistics import fmean
from types import SimpleNamespace

import kinfolk_toy
import pytest
import torch
from ray.train import Checkpoint

from kinfolk.checkpoint import save_checkpoint
from kinfolk.errors import ConfigError, DivergenceError, KinfolkError
from kinfolk.training.loop import train
from kinfolk.training.worker import fresh_state
from kinfolk.tuning import trial
from kinfolk.tuning.recipes import recipe_of
from kinfolk.tuning.sweep import Pace
from kinfolk.tuning.team import _Watcher
from kinfolk.tuning.trial import job_of, reasons, reports, run_trial, said, trained

LR = {"model.optimizer.lr": 0.02}


def figures(found):
    """Without the speed, which is the machine's."""
    return [{k: v for k, v in each.items() if k != "samples_per_second"} for each, _ in found]


def test_a_trial_reports_at_the_sweeps_pace_whatever_the_recipe_says(work_of):
    found = list(reports(work_of(), LR, None, []))
    assert [each["samples_seen"] for each, _ in found] == [160.0 * i for i in range(1, 9)]
    assert all({"width", "gaussian/log_prob"} <= each.keys() for each, _ in found)
    assert all("alarm" not in each for each, _ in found)  # nobody looks


def test_logs_are_means_since_the_last_report(work_of, ring):
    work = work_of()
    job = job_of(work, LR)
    state = fresh_state(job, ring.spec)
    logged = [r for r in train(state, ring.source("train"), job.recipe.training, job.recipe.seed) if r.kind == "log"]
    for index, (each, _) in enumerate(reports(work, LR, None, [])):
        between = [r.logs["gaussian/log_prob"] for r in logged if 160 * index < r.samples_seen <= 160 * (index + 1)]
        assert each["gaussian/log_prob"] == pytest.approx(fmean(between))


def test_figures_are_of_the_averaged_weights(work_of):
    for each, snapshot in islice(reports(work_of(), LR, None, []), 2):
        average = snapshot.tensors["ema.log_std"].exp().mean()
        assert each["width"] == pytest.approx(float(average))
        assert each["width"] != pytest.approx(float(snapshot.tensors["model.log_std"].exp().mean()))


def test_a_trial_that_died_goes_on_with_the_same_bits(work_of, tmp_path):
    work = work_of()
    undisturbed = list(reports(work, LR, None, []))
    for index, (_, snapshot) in enumerate(islice(reports(work, LR, None, []), 3)):
        save_checkpoint(tmp_path / str(index), snapshot)
    weights = tmp_path / "2" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # the newest is damaged: the one before it is used
    resumed = list(reports(work, LR, None, [tmp_path / "2", tmp_path / "1"]))
    assert figures(resumed) == figures(undisturbed)[2:]
    end, same = resumed[-1][1].tensors, undisturbed[-1][1].tensors
    assert end.keys() == same.keys()
    assert all(torch.equal(end[name], same[name]) for name in end)


def test_another_seed_is_another_training(work_of):
    one, other, same = (figures(reports(work_of(), LR, seed, []))[-1] for seed in (1, 2, 1))
    assert one != other
    assert one == same


def test_a_trial_goes_on_from_anothers_state_with_its_own_settings(work_of, tmp_path):
    """As population based training has it go on."""
    work = work_of()
    _, snapshot = next(reports(work, LR, None, []))
    save_checkpoint(tmp_path / "donor", snapshot)
    still = list(reports(work, {"model.optimizer.lr": 1e-9}, None, [tmp_path / "donor"]))
    assert still[0][0]["samples_seen"] == 320
    assert torch.allclose(still[-1][1].tensors["model.mean"], snapshot.tensors["model.mean"], atol=1e-6)


def test_the_model_of_a_checkpoint_is_the_one_that_was_measured(work_of, tmp_path):
    work = work_of()
    *_, (last, snapshot) = reports(work, LR, None, [])
    save_checkpoint(tmp_path / "storage" / "end", snapshot)
    model = trained(work, LR, None, str(tmp_path / "storage" / "end"))
    assert kinfolk_toy.figures(model)["width"] == last["width"]
    with pytest.raises(KinfolkError, match="is gone from the storage"):
        trained(work, LR, None, str(tmp_path / "storage" / "missing"))


def test_a_loss_that_is_never_finite_ends_the_trial(work_of):
    with pytest.raises(DivergenceError):
        list(reports(work_of(), {"model.optimizer.lr": 1e6, "model.optimizer.kind": "sgd"}, None, []))


def test_a_trial_without_the_figure_that_decides_ends_at_its_first_report(work_of):
    with pytest.raises(ConfigError, match=r"judged by fd_local, which this trial does not report\. .*width"):
        next(reports(work_of(objective={"metric": "fd_local", "mode": "min"}), LR, None, []))


def test_settings_reach_into_lists_and_what_is_none_is_named():
    base = {"name": "r", "family": "gan", "data": "digits", "training": {"samples": 1000, "batch_size": 10}}
    base["model"] = {"penalties": [{"kind": "r1", "gamma": 1.0}]}
    rate = Pace(samples=500, report_every=50)
    recipe = recipe_of(base, {"model.penalties.0.gamma": 0.25}, rate, seed=3)
    assert recipe.model["penalties"] == [{"kind": "r1", "gamma": 0.25}]
    assert (recipe.seed, recipe.training.samples, recipe.training.checkpoint_every_samples) == (3, 500, 50)
    assert base["model"]["penalties"][0]["gamma"] == 1.0
    with pytest.raises(ConfigError, match=r"space model.penalties.1.gamma: '1' is no position in a list of 1"):
        recipe_of(base, {"model.penalties.1.gamma": 0.25}, rate)
    with pytest.raises(ConfigError, match=r"sweep: modle is not a key. Did you mean 'model'\?"):
        recipe_of(base, {"modle.loss": 0.25}, rate)
    with pytest.raises(ConfigError, match="there is a plain value, 10, where 'x' was looked for"):
        recipe_of(base, {"training.batch_size.x": 0.25}, rate)


def test_an_error_is_told_with_its_kind_unless_it_was_written_for_users():
    assert said(ZeroDivisionError("by zero")) == "ZeroDivisionError: by zero"
    assert said(ConfigError("Use another.")) == "Use another."
    assert len(said(ValueError("x" * 10**6))) == 2000


def test_an_alarm_of_the_monitor_is_a_figure_from_then_on_and_ends_no_trial(work_of, tmp_path):
    """Deviations shrink until samples are alike; what was seen comes back with a checkpoint."""
    distances = {"missing": None, "modes": None, "effective_bins": None, "support_share": None}
    monitor = {"every_samples": 80, "samples": 100, "act": "stop"}
    monitor["alarm"] = {"grace_samples": 0, "looks": 2, "limits": distances}
    work = work_of()
    work = replace(work, base={**work.base, "model": {"shrink": 1000.0}, "monitor": monitor})
    found = list(reports(work, LR | {"model.optimizer.lr": 0.1}, None, []))
    alarms = [each["alarm"] for each, _ in found]
    assert alarms == sorted(alarms)
    assert {*alarms} == {0.0, 1.0}
    said = [reasons(snapshot.values["looks"]) for _, snapshot in found]
    assert [bool(each) for each in said] == [bool(alarm) for alarm in alarms]
    assert "distance" in said[-1][0]
    save_checkpoint(tmp_path / "last", found[-2][1])
    ((again, _),) = reports(work, LR | {"model.optimizer.lr": 0.1}, None, [tmp_path / "last"])
    assert again["alarm"] == 1.0


@pytest.mark.parametrize("act", ["warn", "stop", "change"])
def test_the_training_of_a_trial_only_warns_whatever_its_monitor_would_do(work_of, act):
    monitor = {"every_samples": 80, "samples": 200, "act": act}
    monitor |= {"changes": [{"new_seed": True}]} if act == "change" else {}
    work = work_of()
    recipe = job_of(replace(work, base={**work.base, "monitor": monitor}), LR).recipe
    assert (recipe.monitor.act, recipe.monitor.changes) == ("warn", ())
    assert (recipe.monitor.every_samples, recipe.monitor.samples) == (80, 200)


def test_what_tune_hears_of_a_trial_has_the_words_of_its_monitor(work_of, tmp_path, monkeypatch):
    """Of one worker, and of a team, whose last checkpoint is looked at."""
    heard = []
    monkeypatch.setattr("ray.tune.report", lambda result, **_: heard.append(result))
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: None)
    monkeypatch.setattr("kinfolk.tuning.trial.export", lambda _: None)
    monkeypatch.setattr("kinfolk.tuning.trial.reasons", lambda looks: ["Samples are alike."])
    monkeypatch.setattr("kinfolk.tuning.team.reasons", lambda looks: ["Samples are alike."])
    work = work_of()
    run_trial({"trial": {"id": "000", "settings": LR, "seed": None, "checkpoints": []}}, work)
    assert [each["alarms"] for each in heard] == [["Samples are alike."]] * 8
    *_, (last, snapshot) = reports(work, LR, None, [])
    save_checkpoint(tmp_path / "storage" / "teams" / "000" / "checkpoint_0", snapshot)
    watcher = _Watcher(work, job_of(work, LR), f"{work.storage}/teams/000")
    watcher.listen({"kind": "checkpoint"})
    assert (heard[-1]["figures"]["width"], heard[-1]["alarms"]) == (last["width"], ["Samples are alike."])


def test_a_team_is_measured_by_its_newest_whole_checkpoint_while_another_is_written(work_of, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr("ray.tune.report", lambda result, **_: heard.append(result["samples_seen"]))
    work = work_of()
    folder = tmp_path / "storage" / "teams" / "000"
    watcher = _Watcher(work, job_of(work, LR), str(folder))
    for index, (_, snapshot) in enumerate(islice(reports(work, LR, None, []), 2)):
        save_checkpoint(folder / f"checkpoint_{index}", snapshot)
    manifest, aside = folder / "checkpoint_1" / "manifest.json", tmp_path / "manifest.json"
    manifest.rename(aside)
    watcher.listen({"kind": "checkpoint"})
    watcher.listen({"kind": "checkpoint"})
    assert heard == [160]
    aside.rename(manifest)
    watcher.listen({"kind": "checkpoint"})
    assert heard == [160, 320]


def test_a_checkpoint_that_is_gone_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "state.json").write_text("{}")
    gone = Checkpoint.from_directory(str(tmp_path / "gone"))
    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: gone)
    work = SimpleNamespace(storage=str(tmp_path))
    stored = trial._stored(work, ["gone too", str(tmp_path / "here")])
    assert [[file.name for file in folder.iterdir()] for folder in stored] == [["state.json"]]
