"""Searchers: random ones are functions of seed and trial, Optuna learns, and both go on after a restart."""

import pytest

from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.searchers import make_searcher
from kinfolk.tuning.sweep import Sweep

SPACE = {
    "x": {"kind": "uniform", "low": -1, "high": 1},
    "n": {"kind": "int", "low": 0, "high": 3},
    "loss": {"kind": "choice", "values": ["a", [1, 2]]},
    "extra": {"kind": "log_uniform", "low": 0.1, "high": 10, "when": {"loss": [1, 2]}},
}


def sweep(**searcher):
    objective = {"metric": "fd", "mode": "min"}
    return Sweep.model_validate(
        {"name": "t", "recipe": "r", "space": SPACE, "trials": 40, "objective": objective, "searcher": searcher}
    )


def ended(name, settings, status="finished", error=None):
    fd = (settings["x"] - 0.5) ** 2 + settings["n"] + (settings["loss"] == "a")
    reports = [] if error else [{"samples_seen": 1.0, "fd": fd}]
    return Trial(name, settings, status=status, reports=reports, error=error)


def test_a_random_trial_is_the_same_in_every_start_and_differs_from_others():
    first, again = (make_searcher(sweep(kind="random", seed=3)) for _ in range(2))
    names = [f"{i:03}" for i in range(20)]
    assert [first.propose(name) for name in names] == [again.propose(name) for name in reversed(names)][::-1]
    assert len({repr(first.propose(name)) for name in names}) == 20
    assert first.propose("000") != make_searcher(sweep(kind="random", seed=4)).propose("000")


def test_optuna_proposes_inside_the_space_and_finds_the_better_half():
    searcher = make_searcher(sweep(kind="optuna", seed=0, startup_trials=10))
    trials = []
    for index in range(40):
        trial = ended(f"{index:03}", searcher.propose(f"{index:03}"))
        assert ("extra" in trial.settings) == (trial.settings["loss"] == [1, 2])
        assert -1 <= trial.settings["x"] <= 1
        searcher.learn(trial)
        trials.append(trial.figures["fd"])
    assert sum(trials[:10]) / 10 > 2 * sum(trials[-10:]) / 10


@pytest.mark.parametrize("learned", [True, False])
def test_optuna_knows_after_a_restart_what_earlier_trials_told(learned):
    """Of what 5 searchers propose, a quarter has the best ``n`` by chance."""
    random, proposed = make_searcher(sweep(kind="random")), []
    for seed in range(5):
        searcher = make_searcher(sweep(kind="optuna", seed=seed, startup_trials=10))
        for index in range(30 if learned else 0):
            searcher.learn(ended(f"{index:03}", random.propose(f"{index:03}")))
        proposed += [searcher.propose(f"{index:03}") for index in range(30, 40)]
    good = sum(settings["n"] == 0 for settings in proposed) / len(proposed)
    assert good > 0.5 if learned else good < 0.4


def test_a_trial_whose_process_died_is_told_as_one_that_failed(tmp_path):
    from kinfolk.tuning.bookkeeping import Suggestions
    from kinfolk.tuning.ledger import Ledger

    learned = []
    searcher = make_searcher(sweep(kind="random"))
    searcher.learn = lambda trial: learned.append(trial.error)
    trial = ended("000", searcher.propose("000"), status="running")
    suggestions = Suggestions(Ledger(tmp_path, "d", trials={"000": trial}), [trial], searcher, lambda *_: None)
    suggestions.suggest("tune's")
    suggestions.on_trial_complete("tune's", error=True)
    assert learned == ["its process died"]


def test_optuna_takes_a_failed_trial_and_one_it_never_asked_for():
    searcher = make_searcher(sweep(kind="optuna"))
    settings = searcher.propose("000")
    searcher.learn(ended("000", settings, "failed", "it broke"))
    searcher.learn(ended("001", settings, "failed", "it broke"))
    assert searcher.propose("002").keys() <= SPACE.keys()
