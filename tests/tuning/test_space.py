"""The search space: what is drawn lies in it, its ends are all seen, and what depends on another follows it."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from kinfolk.errors import ConfigError
from kinfolk.rng import generator
from kinfolk.tuning.space import Setting, drawn, ends, ordered, perturbed

one = TypeAdapter(Setting).validate_python

LR = one({"kind": "log_uniform", "low": 1e-4, "high": 1e-1})
WIDTH = one({"kind": "int", "low": 3, "high": 6})
DROPOUT = one({"kind": "uniform", "low": -1.0, "high": 3.0})
LOSS = one({"kind": "choice", "values": ["hinge", "wasserstein", [0, 1]]})
FIXED = one({"kind": "fixed", "value": 7})


@pytest.mark.parametrize("setting", [LR, WIDTH, DROPOUT, LOSS, FIXED])
def test_a_value_lies_where_it_was_put(setting):
    for value in {repr(setting.at(u / 20)): setting.at(u / 20) for u in range(20)}.values():
        assert setting.at(setting.place(value)) == pytest.approx(value)


@pytest.mark.parametrize(("setting", "low", "high"), [(LR, 1e-4, 1e-1), (WIDTH, 3, 6), (DROPOUT, -1.0, 3.0)])
def test_a_range_goes_from_end_to_end_and_no_further(setting, low, high):
    assert (setting.at(0.0), setting.at(1.0)) == (low, high)
    assert setting.ends() == [low, high]


def test_half_the_logarithm_is_the_geometric_mean():
    assert LR.at(0.5) == pytest.approx(math.sqrt(1e-4 * 1e-1))


def test_whole_numbers_and_choices_have_equal_shares():
    for setting, count in ((WIDTH, 4), (LOSS, 3)):
        drawn_values = [repr(setting.at((i + 0.5) / 1200)) for i in range(1200)]
        assert {drawn_values.count(value) for value in drawn_values} == {1200 // count}


def test_an_empty_range_and_a_zero_under_a_logarithm_are_refused():
    with pytest.raises(ValidationError, match=r"low=2.0 must be below high=2.0; for one value use kind: fixed"):
        one({"kind": "uniform", "low": 2, "high": 2})
    with pytest.raises(ValidationError, match="greater than 0"):
        one({"kind": "log_uniform", "low": 0, "high": 2})


SPACE = {
    "gamma": one({"kind": "uniform", "low": 1, "high": 2, "when": {"penalty": "r1"}}),
    "every": one({"kind": "choice", "values": [4, 16], "when": {"lazy": True}}),
    "lazy": one({"kind": "choice", "values": [False, True], "when": {"penalty": "r1"}}),
    "penalty": one({"kind": "choice", "values": ["none", "r1"]}),
}


def test_a_setting_exists_only_beside_the_value_it_is_for():
    seen = set()
    for seed in range(200):
        settings = drawn(SPACE, generator(seed))
        assert ("gamma" in settings) == ("lazy" in settings) == (settings["penalty"] == "r1")
        assert ("every" in settings) == (settings.get("lazy") is True)
        seen.add(frozenset(settings))
    assert len(seen) == 3


def test_every_end_of_every_setting_is_shown_with_what_it_needs():
    shown = list(ends(SPACE))
    assert {settings["gamma"] for settings in shown if "gamma" in settings} == {1.0, 2.0}
    assert {settings["every"] for settings in shown if "every" in settings} == {4, 16}
    assert {settings["penalty"] for settings in shown} == {"none", "r1"}
    assert all(settings["lazy"] for settings in shown if "every" in settings)
    assert len(shown) == 8


def test_what_depends_on_others_comes_after_them():
    order = ordered(SPACE)
    assert order.index("penalty") < order.index("lazy") < order.index("every")


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ({"penalti": "r1"}, r"space.x.when: penalti is no setting of this space. Did you mean 'penalty'\?"),
        ({"penalty": "r2"}, r'penalty is never "r2". Its values: "none", "r1"'),
        ({"y": 1}, r"x, y depend on each other in a circle"),
        ({"count": 9}, r"count is never 9. Its values: 1 to 3"),
        ({"count": 1.5}, r"count is never 1.5. Its values: 1 to 3"),
        ({"rate": 0.5}, r"rate is any number of a range, and as good as never 0.5. Let x depend on a choice"),
        ({"rate": 0.0}, r"rate is any number of a range"),
        ({"lazy": True, "penalty": "none"}, r"space.x never exists"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(when, says):
    space = {
        "penalty": one({"kind": "choice", "values": ["none", "r1"]}),
        "x": one({"kind": "choice", "values": [1, 2], "when": when}),
        "y": one({"kind": "choice", "values": [1, 2], "when": {"x": 1}}),
        "count": one({"kind": "int", "low": 1, "high": 3}),
        "rate": one({"kind": "uniform", "low": 0, "high": 1}),
        "lazy": one({"kind": "choice", "values": [False, True], "when": {"penalty": "r1"}}),
    }
    with pytest.raises(ConfigError, match=says):
        ordered(space)


def test_a_setting_below_another_is_laid_over_it():
    space = {"model.net.width": WIDTH, "model.net": one({"kind": "choice", "values": [{"kind": "conv"}, {}]})}
    assert ordered(space) == ["model.net", "model.net.width"]
    assert list(drawn(space, generator(0))) == ["model.net", "model.net.width"]


def test_a_perturbation_moves_a_little_stays_inside_and_leaves_the_rest_alone():
    space = {"lr": LR, "width": WIDTH, "loss": LOSS}
    before = {"lr": 0.01, "width": 5, "loss": "wasserstein"}
    moved = [perturbed(space, ("lr", "loss"), before, generator(seed), resample=0.0) for seed in range(100)]
    assert {each["width"] for each in moved} == {5}
    assert {round(each["lr"], 6) for each in moved} == {0.008, 0.012}
    assert {repr(each["loss"]) for each in moved} == {"'hinge'", "[0, 1]"}
    at_the_end = {"lr": 0.1, "loss": "hinge"}
    again = [perturbed(space, ("lr", "loss"), at_the_end, generator(seed), resample=0.0) for seed in range(100)]
    assert {round(each["lr"], 6) for each in again} == {0.08, 0.1}
    assert before["lr"] == 0.01


def test_a_resampled_setting_is_drawn_from_the_whole_space():
    drawn_values = [perturbed({"lr": LR}, ("lr",), {"lr": 0.05}, generator(s), 1.0)["lr"] for s in range(200)]
    assert sum(value < math.sqrt(1e-4 * 1e-1) for value in drawn_values) == pytest.approx(100, abs=25)


def moved(setting, value):
    """Every value that a perturbation of ``value`` comes to."""
    return {perturbed({"x": setting}, ("x",), {"x": value}, generator(seed), 0.0)["x"] for seed in range(40)}


def test_small_whole_numbers_and_zeros_are_moved_too():
    small = one({"kind": "int", "low": 0, "high": 4})
    assert [moved(small, value) for value in range(5)] == [{0, 1}, {0, 2}, {1, 3}, {2, 4}, {3, 4}]
    assert moved(one({"kind": "int", "low": -4, "high": 4}), -1) == {-2, 0}
    assert moved(one({"kind": "int", "low": 0, "high": 100}), 50) == {40, 60}
    assert moved(one({"kind": "uniform", "low": 0, "high": 5}), 0.0) == {0.0, 0.5}
    assert moved(one({"kind": "uniform", "low": -5, "high": 5}), 0.0) == {-1.0, 1.0}
