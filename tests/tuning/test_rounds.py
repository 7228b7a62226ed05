"""Schedulers over trials that only pretend to train: rounds are held at equal samples, and nobody waits for ever."""

from types import SimpleNamespace

import pytest
from pydantic import TypeAdapter
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from kinfolk.tuning import ledger
from kinfolk.tuning.bookkeeping import Bookkeeper
from kinfolk.tuning.search import make_scheduler
from kinfolk.tuning.space import Setting
from kinfolk.tuning.sweep import Asha, Pbt

SPACE = {"lr": TypeAdapter(Setting).validate_python({"kind": "uniform", "low": 0, "high": 1})}


class Pretender:
    """As much of Tune's trial as schedulers look at; the higher its number, the better it is."""

    def __init__(self, number, seen=0):
        self.trial_id, self.number, self.seen, self.status = f"t{number}", number, seen, Trial.PENDING
        self.config = {"trial": {"id": f"00{number}", "settings": {"lr": 0.1 * number}, "checkpoints": []}}
        self.experiment_tag, self.checkpoint = "", f"state of {number}"
        self.temporary_state = SimpleNamespace(saving_to=None)
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=4), _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag

    def set_config(self, config):
        self.config = config


class Machine:
    """Runs one trial at a time, as its scheduler wants them, for one report each."""

    search_alg = None

    def __init__(self, scheduler, trials, samples, report_every):
        self.scheduler, self.trials, self.samples, self.report_every = scheduler, trials, samples, report_every
        self.copies, self.waiting_at = [], []
        for each in trials:
            scheduler.on_trial_add(self, each)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return {each for each in self.trials if not each.is_finished()}

    def pause_trial(self, trial, should_checkpoint=True):
        trial.status = Trial.PAUSED

    def _schedule_trial_save(self, trial, result=None):
        return trial.checkpoint

    def run(self, fails_at=None):
        """Until all ended or nothing may run; ``fails_at`` is when a trial fails, by number."""
        while (trial := self.scheduler.choose_trial_to_run(self)) is not None:
            trial.status = Trial.RUNNING
            self._train(trial, (fails_at or {}).get(trial.number))
        return {each.number: (each.status, each.seen) for each in self.trials}

    def _train(self, trial, fails_at):
        while trial.status == Trial.RUNNING:
            trial.seen = min(trial.seen + self.report_every, self.samples)
            if fails_at is not None and trial.seen >= fails_at:
                self._end(trial, {"error": "it broke"})
                return
            result = {"samples_seen": trial.seen, "score": float(trial.number)}
            before = {each: each.config for each in self.trials}
            decision = self.scheduler.on_trial_result(self, trial, result)
            self.copies += [(each, trial.seen) for each in self.trials if each.config is not before[each]]
            if trial.seen >= self.samples:
                self._end(trial, result)
            elif decision == TrialScheduler.PAUSE:
                self.pause_trial(trial)

    def _end(self, trial, result):
        self.scheduler.on_trial_complete(self, trial, result)
        trial.status = Trial.TERMINATED


def population(every, trials=4, samples=80, report_every=10, furthest=None):
    pbt = Pbt(kind="pbt", perturb=("lr",), every_samples=every, resample=0.0)
    work = SimpleNamespace(sweep=SimpleNamespace(space=SPACE), pace=SimpleNamespace(samples=samples))
    scheduler = make_scheduler(pbt, work) if furthest is None else make_scheduler(pbt, work, furthest)
    made = [Pretender(number) for number in range(trials)]
    return Machine(scheduler, made, samples, report_every)


@pytest.mark.parametrize(("every", "report_every"), [(20, 10), (16, 16), (15, 10), (10, 25), (30, 40), (20, 21)])
def test_a_population_ends_however_reports_and_rounds_fall(every, report_every):
    machine = population(every, report_every=report_every)
    assert set(machine.run().values()) == {(Trial.TERMINATED, 80)}
    assert machine.copies


def test_rounds_are_held_at_each_multiple_of_the_interval_and_not_at_the_end():
    machine = population(20)
    machine.run()
    assert [(trial.number, seen) for trial, seen in machine.copies] == [(0, 20), (0, 40), (0, 60)]


@pytest.mark.parametrize("number", range(4))
def test_a_trial_that_fails_is_not_waited_for(number):
    ended = population(20).run(fails_at={number: 50})
    assert ended.pop(number) == (Trial.TERMINATED, 50)
    assert set(ended.values()) == {(Trial.TERMINATED, 80)}


def test_a_trial_that_died_for_good_is_not_waited_for_and_one_that_starts_again_is():
    machine = population(20, trials=3)
    first, second, third = machine.trials
    for each in (first, second):
        each.status = Trial.RUNNING
        result = {"samples_seen": 20, "score": 1.0}
        assert machine.scheduler.on_trial_result(machine, each, result) == TrialScheduler.PAUSE
        each.status, each.seen = Trial.PAUSED, 20
    third.status = Trial.ERROR  # as Tune has it while it starts a trial again
    machine.scheduler.on_trial_error(machine, third)
    third.status = Trial.PENDING
    machine.scheduler.on_trial_add(machine, third)
    assert machine.scheduler.choose_trial_to_run(machine) is third
    third.status = Trial.RUNNING
    machine.scheduler.on_trial_error(machine, third)
    third.status = Trial.ERROR
    assert machine.scheduler.choose_trial_to_run(machine) in (first, second)


def test_a_population_that_is_gone_on_with_holds_its_next_round_at_equal_samples():
    machine = population(20, furthest=40)
    for trial, seen in zip(machine.trials, (40, 40, 20, 30), strict=True):
        trial.seen = seen
    assert set(machine.run().values()) == {(Trial.TERMINATED, 80)}
    assert [seen for _, seen in machine.copies] == [60]


def test_a_copy_keeps_its_name_and_knows_its_donor_even_if_that_was_a_copy():
    machine = population(20, trials=2)
    machine.run()
    (copy, _), *_ = machine.copies
    order = copy.config["trial"]
    assert (order["id"], order["copied"]) == ("000", {"donor": "001", "samples_seen": 60})
    machine.scheduler._trial_state[copy].last_train_time = 70
    again, _ = machine.scheduler._get_new_config(machine.trials[1], copy)
    assert (again["trial"]["id"], again["trial"]["copied"]) == ("001", {"donor": "000", "samples_seen": 70})


def test_a_change_is_noted_once_with_the_first_report_under_it(tmp_path):
    """The last trial to come to a round is changed before its own report is heard of."""
    ours = ledger.Trial("000", {"lr": 0.1}, status="running")
    keeper = Bookkeeper(ledger.Ledger(tmp_path, "d", trials={"000": ours}), 80, lambda: 0.0, lambda _: None)
    changed = SimpleNamespace(config={"trial": {"id": "000", "settings": {"lr": 0.9}}}, trial_id="t0")

    def report(seen, lr, copied):
        figures = {"samples_seen": float(seen)}
        given = {"samples_seen": seen, "figures": figures, "settings": {"lr": lr}, "copied": copied}
        given["alarms"] = [f"Alike after {seen}."]
        keeper.on_trial_result(changed, given)

    report(20, 0.1, None)
    assert (ours.settings, ours.changes) == ({"lr": 0.1}, [])
    for seen in (30, 40):
        report(seen, 0.9, {"donor": "001", "samples_seen": 20})
    assert ours.settings == {"lr": 0.9}
    assert ours.changes == [{"donor": "001", "samples_seen": 20, "before": {"lr": 0.1}}]
    assert ours.alarms == ["Alike after 40."]


def test_halving_judges_a_report_at_the_rung_it_reaches_and_never_at_one_that_was_skipped():
    work = SimpleNamespace(pace=SimpleNamespace(samples=10_000))
    halving = make_scheduler(Asha(kind="asha", grace_samples=10, reduction=2), work)
    good, late = Pretender(0), Pretender(1)
    for trial, scores in ((good, (1, 1, 1)), (late, (2, 2, 0))):
        halving.on_trial_add(None, trial)
        decisions = [
            halving.on_trial_result(None, trial, {"samples_seen": seen, "score": score})
            for seen, score in zip((100, 110, 120), scores, strict=True)
        ]
        assert decisions == [TrialScheduler.CONTINUE] * 3
