"""What is remembered of a sweep: all of it, whatever moment the driver dies at, and by one driver at a time."""

import json

import pytest

from kinfolk.errors import ConfigError, IntegrityError
from kinfolk.tuning.ledger import Trial, commonest_error, exists, opened, put_aside


def test_all_of_a_trial_comes_back(tmp_path):
    trial = Trial("003", {"model.lr": 0.5, "model.loss": [1, "a"]}, seed=4, status="running")
    trial.add({"samples_seen": 10.0, "fd": 3.0})
    trial.stored("a/b")
    trial.changes.append({"samples_seen": 10, "donor": "001", "before": {"model.lr": 1.0}})
    with opened(tmp_path, "d") as ledger:
        ledger.seconds, ledger.starts = 12.5, 2
        ledger.save(trial)
        ledger.save_head()
    with opened(tmp_path, "d") as again:
        assert again.trials == {"003": trial}
        assert (again.seconds, again.starts) == (12.5, 2)
        assert again.trials["003"].first_settings == {"model.lr": 1.0}


def test_a_report_repeated_after_going_back_takes_the_place_of_what_it_undoes():
    trial = Trial("0", {})
    for seen, fd in ((10, 5.0), (20, 4.0), (30, 3.0), (20, 4.5)):
        trial.add({"samples_seen": float(seen), "fd": fd})
    assert [(report["samples_seen"], report["fd"]) for report in trial.reports] == [(10, 5.0), (20, 4.5)]
    assert trial.samples_seen == 20


def test_two_checkpoints_are_kept_in_order_and_none_twice():
    trial = Trial("0", {})
    for path in ("a", "b", "c", "b"):
        trial.stored(path)
    assert trial.checkpoints == ["c", "b"]


def test_a_second_driver_is_refused_while_the_first_runs(tmp_path):
    with (
        opened(tmp_path, "d"),
        pytest.raises(ConfigError, match="Another process runs the sweep"),
        opened(tmp_path, "d"),
    ):
        pass
    with opened(tmp_path, "d"):
        pass


def test_another_sweep_in_the_same_folder_is_refused(tmp_path):
    with opened(tmp_path, "d") as ledger:
        ledger.save_head()
    with pytest.raises(ConfigError, match=r"\(d, now e\).*--fresh"), opened(tmp_path, "e"):
        pass


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"unknown": 1}'])
@pytest.mark.parametrize("name", ["sweep.json", "trials/0.json"])
def test_a_damaged_record_is_named(tmp_path, name, content):
    with opened(tmp_path, "d") as ledger:
        ledger.save_head()
        ledger.save(Trial("0", {}))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name} is no record of a sweep"), opened(tmp_path, "d"):
        pass


def test_a_fresh_ledger_leaves_what_is_there_until_it_is_put_aside(tmp_path):
    folder = tmp_path / "sweep"
    with opened(folder, "d") as ledger:
        ledger.save_head()
        ledger.save(Trial("0", {"lr": 1}))
    with opened(folder, "e", fresh=True) as new:
        assert new.trials == {}
        assert exists(folder)
        put_aside(folder)
        assert not exists(folder)
        new.save_head()
        new.save(Trial("1", {}))
    (kept,) = [each for each in tmp_path.iterdir() if each != folder]
    with opened(kept, "d") as old:
        assert list(old.trials) == ["0"]
    with opened(folder, "e") as again:
        assert list(again.trials) == ["1"]


def test_a_death_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    with opened(tmp_path, "d") as ledger:
        ledger.save_head()
        ledger.save(Trial("0", {}))
        monkeypatch.setattr("kinfolk.tuning.ledger.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ledger.save(Trial("0", {"lr": 1}))
    assert json.loads((tmp_path / "trials" / "0.json").read_text())["settings"] == {}


def test_the_error_most_trials_ended_with_is_told_with_its_count():
    trials = [Trial(str(i), {}, error=error) for i, error in enumerate(["a", "b", "b", None])]
    assert commonest_error(trials) == ("b", 2)
