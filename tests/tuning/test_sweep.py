"""Sweep files: what is refused before anything starts, and how figures become a score."""

import math

import pytest
from pydantic import ValidationError

from kinfolk.config import Recipe, parse
from kinfolk.errors import ConfigError
from kinfolk.tuning.best import best, median_of_finished
from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.sweep import NEVER, Sweep, pace

FILE = {
    "name": "test",
    "recipe": "digits/dcgan",
    "space": {"model.lr": {"kind": "uniform", "low": 0, "high": 1}},
    "trials": 4,
    "objective": {"metric": "fd_local", "mode": "min"},
}
RECIPE = Recipe.model_validate(
    {"name": "r", "family": "gan", "data": "digits", "training": {"samples": 1000, "batch_size": 64}}
)


def sweep(**changes):
    return parse(Sweep, {**FILE, **changes}, "sweep.yaml")


def trial(name, status="finished", **figures):
    return Trial(name, {}, status=status, reports=[{"samples_seen": 10.0, **figures}] if figures else [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trails": 3}, r"trails is not a key. Did you mean 'trials'\?"),
        ({"space": {"lr": {"kind": "gauss"}}}, "space.lr: Input tag 'gauss'"),
        ({"constraints": ["coverage above 0.8"]}, "a constraint reads like `coverage >= 0.8`"),
        ({"fixed": {"model.lr": 1}}, "model.lr is both fixed and in the space"),
        ({"scheduler": {"kind": "pbt", "perturb": ["model.lt"], "every_samples": 1}}, r"Did you mean 'model.lr'\?"),
        (
            {
                "scheduler": {"kind": "pbt", "perturb": ["model.loss"], "every_samples": 1},
                "space": {
                    "model.loss": {"kind": "choice", "values": ["a", "b"]},
                    "model.lr": {"kind": "uniform", "low": 0, "high": 1, "when": {"model.loss": "a"}},
                },
            },
            "model.loss, by which it is decided whether model.lr exists",
        ),
        ({"scheduler": {"kind": "pbt", "perturb": ["model.lr"], "every_samples": 1}, "workers": 2}, "workers: 1"),
        ({"scheduler": {"kind": "pbt", "perturb": ["model.lr"], "every_samples": 1}, "trials": 1}, "at least 2"),
        (
            {"scheduler": {"kind": "pbt", "perturb": ["model.lr"], "every_samples": 1}, "searcher": {"kind": "optuna"}},
            "population at random",
        ),
        (
            {"scheduler": {"kind": "pbt", "perturb": ["model.lr"], "every_samples": 1}, "finish": "retrain"},
            "a population's change on the way",
        ),
        ({"space": {"model.loss": {"kind": "choice", "values": ["a", "b", "a"]}}}, "'a' is among the values twice"),
    ],
)
def test_a_mistake_in_the_file_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        sweep(**changes)


def test_a_trial_trains_as_long_as_the_recipe_and_reports_ten_times():
    assert pace(sweep(), RECIPE).model_dump() == {"samples": 1000, "report_every": 100}
    assert pace(sweep(budget={"samples": 300}), RECIPE).model_dump() == {"samples": 300, "report_every": 64}


def test_a_budget_too_small_for_one_report_is_refused_with_the_least_that_would_do():
    with pytest.raises(
        ConfigError, match=r"budget.samples=500 ends before the first report, after 640 samples. .* 640"
    ):
        pace(sweep(budget={"samples": 500}, report_every_samples=600), RECIPE)
    assert pace(sweep(budget={"samples": 640}, report_every_samples=600), RECIPE).samples == 640
    with pytest.raises(ConfigError, match="Give at least 64"):
        pace(sweep(budget={"samples": 63}), RECIPE)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "asha", "grace_samples": 1000},
        {"kind": "pbt", "every_samples": 1000, "perturb": ["model.lr"]},
        {"kind": "asha", "grace_samples": 901},  # reports come every 100, so the next is the last
    ],
)
def test_a_scheduler_that_would_never_decide_is_refused(scheduler):
    with pytest.raises(ConfigError, match="nothing is decided before a trial's end, at 1000 samples"):
        pace(sweep(scheduler=scheduler), RECIPE)


def test_the_lower_the_better_unless_the_file_says_otherwise():
    down, up = sweep(), sweep(objective={"metric": "fd_local", "mode": "max"})
    assert down.score({"fd_local": 1.0}) > down.score({"fd_local": 2.0})
    assert up.score({"fd_local": 1.0}) < up.score({"fd_local": 2.0})


def test_no_figure_makes_up_for_a_constraint_and_the_smaller_violation_is_the_better():
    judged = sweep(constraints=["coverage >= 0.8", "alarm == 0"])
    good = judged.score({"fd_local": 9e9, "coverage": 0.8, "alarm": 0.0})
    close = judged.score({"fd_local": 0.1, "coverage": 0.7, "alarm": 0.0})
    far = judged.score({"fd_local": 0.1, "coverage": 0.2, "alarm": 0.0})
    alarmed = judged.score({"fd_local": 0.1, "coverage": 0.9, "alarm": 1.0})
    assert good > close > far > alarmed > NEVER
    assert judged.feasible({"fd_local": 9e9, "coverage": 0.8, "alarm": 0.0})
    assert not judged.feasible({"fd_local": 0.1, "coverage": 0.7, "alarm": 0.0})


@pytest.mark.parametrize("figures", [{}, {"fd_local": math.nan}, {"fd_local": math.inf}, {"fd_local": 1.0}])
def test_a_figure_that_is_missing_or_no_number_is_the_worst(figures):
    assert sweep(constraints=["coverage > 0"]).score(figures) == NEVER


def test_a_report_without_a_figure_that_decides_is_refused_with_those_there_are():
    judged = sweep(constraints=["coverage >= 0.8", "coverage <= 0.9"])
    assert judged.judged == ["fd_local", "coverage"]
    judged.check_judged({"fd_local": math.nan, "coverage": 0.1})
    with pytest.raises(ConfigError, match=r"by coverage, .* Did you mean 'coverag'\? Its figures: coverag, fd_local"):
        judged.check_judged({"fd_local": 1.0, "coverag": 0.1})


@pytest.mark.parametrize(
    ("constraint", "kept", "broken"),
    [("a < 1", 0.9, 1.0), ("a <= 1", 1.0, 1.1), ("a == 1", 1.0, 0.9), ("a >= 1", 1.0, 0.9), ("a > 1", 1.1, 1.0)],
)
def test_each_sign_means_what_it_says(constraint, kept, broken):
    judged = sweep(constraints=[constraint])
    assert judged.feasible({"fd_local": 1.0, "a": kept})
    assert not judged.feasible({"fd_local": 1.0, "a": broken})


def test_the_best_trial_keeps_the_constraints_and_trained_to_the_end():
    judged = sweep(constraints=["coverage >= 0.8"])
    trials = [
        trial("narrow", fd_local=1.0, coverage=0.5),
        trial("early", "stopped", fd_local=2.0, coverage=0.9),
        trial("broken", "failed", fd_local=0.5, coverage=0.9),
        trial("good", fd_local=3.0, coverage=0.9),
        trial("worse", fd_local=4.0, coverage=0.9),
        trial("silent"),
    ]
    assert best(judged, trials).id == "good"
    assert best(judged, [each for each in trials if each.status != "finished"]).id == "early"
    assert best(judged, trials[:1]) is None


def test_the_median_is_of_trials_that_were_not_stopped():
    trials = [trial(str(i), fd_local=float(i)) for i in range(5)]
    assert median_of_finished(sweep(), [*trials, trial("x", "stopped", fd_local=100.0)]) == 2.0
    assert median_of_finished(sweep(), []) is None
    assert median_of_finished(sweep(), [trial("nan", fd_local=math.nan), *trials]) == 2


def test_an_unknown_kind_of_setting_lists_what_there_is():
    with pytest.raises(ValidationError, match="'fixed', 'choice', 'uniform', 'log_uniform', 'int'"):
        Sweep.model_validate({**FILE, "space": {"a": {"kind": "normal"}}})
