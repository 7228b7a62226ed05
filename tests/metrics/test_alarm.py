"""The rule on histories of a few looks; a run sees 1,000 samples and a look comes every 50."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from kinfolk.config import parse
from kinfolk.contract import SIGNALS
from kinfolk.errors import ConfigError
from kinfolk.metrics.alarm import LIMITS, AlarmConfig, Limit, Look, verdict
from kinfolk.metrics.collapse import CollapseMeasures
from kinfolk.monitor import Monitor

RUN = 1000
CONFIG = AlarmConfig(grace_samples=250)
HEALTHY = CollapseMeasures(
    samples=1000,
    missing=0.02,
    bins_different=0.2,
    js_divergence=0.01,
    effective_bins=0.95,
    distance_ratio=0.95,
    support=160_000,
)
ALONE = dict.fromkeys(LIMITS)  # nothing is watched but what a test adds


def looks(values: Sequence[float], name: str = "missing", every: int = 50) -> list[Look]:
    """A look for each value of one measure, the others healthy."""
    return [Look(every * (1 + at), replace(HEALTHY, **{name: value})) for at, value in enumerate(values)]


def logged(values: Sequence[float], name: str) -> list[Look]:
    return [Look(50 * (1 + at), None, {name: value}) for at, value in enumerate(values)]


def fires(history: list[Look], **settings: Any) -> list[int]:
    """Samples seen at each look that gives an alarm, as the looks come in."""
    config = AlarmConfig(**{"grace_samples": 250, **settings})
    heard = [verdict(history[: at + 1], config, RUN) for at in range(len(history))]
    return [alarm.samples_seen for alarm in heard if alarm is not None]


def test_a_run_that_learns_is_healthy_however_bad_it_was() -> None:
    assert not fires(looks([1.0, 1.0, 0.9, 0.9, 0.8, 0.6, 0.45, 0.3, 0.22, 0.15] + [0.05] * 10))


def test_a_run_that_stays_far_from_the_data_is_alarmed_once_it_should_be_good() -> None:
    assert fires(looks([0.9] * 8)) == [400]  # grace 250, then three looks
    assert fires(looks([0.9] * 8), grace_samples=0) == [150, 200, 250, 300, 350, 400]
    assert fires(looks([0.9] * 8), grace_samples=300) == []
    assert AlarmConfig().grace(RUN) == 333  # a third


def test_every_figure_of_a_look_may_have_a_limit_and_fires_by_it() -> None:
    measured = {"support_share" if name.name == "support" else name.name for name in fields(CollapseMeasures)}
    assert {"bins_different", "js_divergence", "modes", "high_quality"} < measured
    for name in measured - {"samples"}:
        Monitor(alarm={"limits": {name: {"least": 0.1}}})
    for name, limit, healthy, bad in (
        ("bins_different", {"most": 0.5}, 0.4, 0.6),
        ("js_divergence", {"most": 0.1}, 0.05, 0.2),
        ("modes", {"least": 0.9}, 1.0, 0.5),
        ("high_quality", {"least": 0.5}, 0.9, 0.1),
    ):
        history = looks([healthy] * 8 + [bad] * 3, name)
        assert fires(history) == ([550] if name in LIMITS else [])  # the rest is off unless it is asked for
        assert fires(history, limits={**ALONE, name: limit}) == [550]


def test_a_limit_on_known_modes_is_silent_where_none_are_known() -> None:
    assert not fires(looks([0.02] * 20), limits={"modes": {"least": 0.9}, "high_quality": {"least": 0.9}})


def test_settings_that_have_changed_have_a_grace_of_their_own() -> None:
    history = looks([0.9] * 20)
    first = [at for at in range(20) if verdict(history[: at + 1], CONFIG, RUN, since=300)]
    assert history[first[0]].samples_seen == 300 + RUN // 4 + 3 * 50


def test_settings_that_change_late_are_judged_in_the_second_half_of_what_is_left() -> None:
    """A grace of 250 after 700 of 1,000 samples would leave one look."""
    history = looks([0.9] * 20)
    first = [at for at in range(20) if verdict(history[: at + 1], CONFIG, RUN, since=700)]
    assert history[first[0]].samples_seen == 700 + 150 + 3 * 50


@pytest.mark.parametrize(
    ("values", "began"),
    [
        ([0.01] * 10 + [0.25, 0.25, 0.26], 550),  # suddenly
        ([0.01] * 8 + [0.9, 0.8, 0.7, 0.6, 0.5, 0.49, 0.48], 450),  # it mended for a while, never enough
        ([0.9] * 8, 50),  # it never was good, its grace included
        ([0.9, 0.01, *[0.9] * 6], 150),
    ],
)
def test_an_alarm_says_when_it_began(values: Sequence[float], began: int) -> None:
    history = looks(values)
    found = (verdict(history[: at + 1], CONFIG, RUN) for at in range(len(history)))
    first = next(alarm for alarm in found if alarm)
    assert first.samples_seen == history[-1].samples_seen
    assert first.began == began


@pytest.mark.parametrize(("modes", "began"), [(0.03, 50), (0.045, 550)])
def test_what_one_figure_tells_late_began_where_another_went_bad(modes: float, began: int) -> None:
    """Modes mend all the time, and are yet too few after 650 samples, or more than half of them after 600."""
    bins = [0.95] * 10 + [0.4] * 3
    history = [
        Look(50 * at, replace(HEALTHY, effective_bins=even, modes=modes * at)) for at, even in enumerate(bins, start=1)
    ]
    alarm = verdict(history, CONFIG, RUN)
    assert alarm is not None
    assert (alarm.what, alarm.samples_seen, alarm.began) == ("effective_bins", 650, began)


def test_what_was_good_and_is_lost_is_alarmed_even_where_others_are_worse() -> None:
    kept = [0.01] * 10
    assert fires(looks([*kept, 0.12, 0.13, 0.13])) == [650]
    assert not fires(looks([*kept, 0.10, 0.11, 0.10]))
    assert not fires(looks([0.15] * 13))


def test_the_best_is_one_that_was_kept() -> None:
    assert not fires(looks([0.15] * 8 + [0.0] + [0.15] * 4))
    assert fires(looks([0.15] * 8 + [0.0] * 3 + [0.15] * 3)) == [700]
    assert not fires(looks([0.65] * 8 + [1.0] + [0.65] * 4, "distance_ratio"))
    assert fires(looks([0.65] * 8 + [1.0] * 3 + [0.65] * 3, "distance_ratio")) == [700]


def test_a_moment_is_no_collapse() -> None:
    assert not fires(looks([0.01] * 8 + [0.9, 0.9, 0.01] * 4))
    assert fires(looks([0.01] * 8 + [0.9, 0.9, 0.9])) == [550]


def test_what_is_mending_has_more_time_until_it_stops() -> None:
    falling = [0.9 * 0.95**at for at in range(12)]
    assert not fires(looks(falling))
    assert fires(looks(falling, "missing"), mending=0.2) == [400, 450, 500, 550, 600]
    assert fires(looks([0.9] * 5 + [0.8, 0.7, 0.6, 0.6, 0.6])) == [500]


def test_diversity_that_falls_is_bad_downwards() -> None:
    assert fires(looks([0.4] * 8, "distance_ratio")) == [400]
    assert not fires(looks([1.6] * 8, "distance_ratio"))
    assert fires(looks([0.95] * 8 + [0.6] * 3, "distance_ratio")) == [550]
    assert not fires(looks([0.3 * 1.05**at for at in range(10)], "distance_ratio"))  # mending
    assert fires(looks([0.3 / 1.05**at for at in range(8)], "distance_ratio")) == [400]


def test_few_different_samples_are_told_by_their_share_of_those_compared() -> None:
    assert fires(looks([40.0] * 8, "support")) == [400]
    assert not fires(looks([60.0] * 8, "support"))
    many = [replace(look, measures=replace(HEALTHY, samples=100_000, support=60.0)) for look in looks([0.02] * 8)]
    assert not fires(many)  # pairs are those of the first 1,000, however many were drawn


@pytest.mark.parametrize(("name", "value"), [("usage", 0.01), ("kl_active", 0.0), ("kl", 0.01)])
def test_signals_are_read_in_whichever_phase_by_their_last_word(name: str, value: float) -> None:
    assert fires(logged([value] * 8, f"some/{name}")) == [400]
    assert not fires(logged([0.5] * 8, f"some/{name}"))
    assert not fires(logged([value] * 8, f"{name}/other"))


@pytest.mark.parametrize("name", ["logit_gap", "energy_gap"])
def test_a_gap_is_held_to_what_was_usual_in_the_run(name: str) -> None:
    for sign in (1, -1):
        usual = [sign * value for value in (1.0, 2.0, 3.0) * 4]
        assert fires(logged([*usual, 21.0, 22.0, 21.0], name)) == [750]
        assert fires(logged([*usual, -21.0, -22.0, -21.0], name)) == [750]
        assert not fires(logged([*usual, 19.0, -19.0, 19.0], name))
    assert not fires(logged([500.0] * 12, name))  # a scale of its own


def test_a_critic_near_equilibrium_may_grow_tenfold_and_tell_little() -> None:
    near = [0.01] * 9
    assert not fires(logged([*near, 0.4, 0.45, 0.48], "critic/logit_gap"))
    assert fires(logged([*near, 0.6, 0.6, 0.7], "critic/logit_gap")) == [600]
    assert fires(logged([*near, 0.4, 0.45, 0.48], "energy/energy_gap")) == [600]  # a scale of its own


def test_looks_without_a_figure_are_passed_over() -> None:
    history = [*logged([0.01] * 7, "a/usage"), Look(400, HEALTHY, {}), Look(450, None, {"a/usage": 0.01})]
    assert fires(history) == [450]


def test_a_reason_says_what_its_value_and_the_limit() -> None:
    alarm = verdict(looks([0.01] * 10 + [0.25, 0.25, 0.26]), CONFIG, RUN)
    assert alarm is not None
    assert (alarm.what, alarm.value, alarm.limit, alarm.samples_seen) == ("missing", 0.26, 0.15, 650)
    assert alarm.reason == (
        "missing (share of the data in regions that samples have all but lost) is 0.26 after 650 samples, and for 3 "
        "looks in a row beyond 0.15: the limit for any run."
    )
    drifted = verdict(looks([0.01] * 10 + [0.15] * 3), CONFIG, RUN)
    assert drifted is not None
    assert drifted.reason.endswith("beyond 0.11: this run had kept 0.01.")


def test_a_limit_of_ones_own_takes_the_place_of_the_default() -> None:
    history = looks([0.5] * 8)
    assert fires(history) == [400]
    assert not fires(history, limits={"missing": Limit(most=0.6)})
    assert not fires(history, limits={"missing": None})
    assert fires(history, limits=ALONE | {"missing": Limit(most=0.4)}, looks=2) == [350, 400]


def test_every_default_limit_is_of_something_known_and_every_signal_has_one() -> None:
    AlarmConfig(limits=dict(LIMITS))
    assert SIGNALS.keys() <= LIMITS.keys()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limits": {"misssing": {"most": 1}}}, "called 'misssing'. Did you mean 'missing'"),
        ({"limits": {"kl": {"least": 0, "most": 1}}}, "most and least make no one bad side"),
        ({"limits": {"kl": {"growth": 1}}}, "growth"),
        ({"limits": {"kl": {}}}, "watches nothing; give most, least or growth, or null"),
        ({"limits": {"kl": {"least": 0, "above": 1}}}, "above is of growth"),
        ({"limits": {"kl": {"least": 0, "growth": 2}}}, "least and growth make no one bad side"),
        ({"limits": {"effective_bins": {"drift": 0.2}}}, "drift alone has no bad side; give most or least"),
        ({"looks": 1}, "looks"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(AlarmConfig, wrong, "alarm")
