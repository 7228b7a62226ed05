import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError, RegistryError
from kinfolk.tracking import aliases
from kinfolk.tracking.aliases import find_champion, rollback, set_alias
from kinfolk.tracking.connection import connect
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.promotion import REASON_TAG, PromotionRule, decide, promote
from kinfolk.tracking.registry import find, log_model_metrics, register

LOWER = PromotionRule(metric="fd_local", better="lower", min_improvement=0.5, at_least={"coverage": 0.8})
HIGHER = PromotionRule(metric="coverage", better="higher", at_most={"copies": 0.0})
GOOD = {"fd_local": 3.0, "coverage": 0.9, "copies": 0.0}


@pytest.mark.parametrize(
    ("candidate", "champion", "rule", "promoted", "said"),
    [
        (GOOD, None, LOWER, True, "no champion yet"),
        (GOOD, {"fd_local": 3.5}, LOWER, True, "3 against the champion's 3.5"),
        (GOOD, {"fd_local": 3.499}, LOWER, False, "better by 0.5"),
        (GOOD, {"fd_local": 2.0}, LOWER, False, "lower is better"),
        ({**GOOD, "coverage": 0.79}, None, LOWER, False, "coverage 0.79 must be at least 0.8"),
        ({**GOOD, "coverage": math.nan}, None, LOWER, False, "coverage nan must be at least"),
        ({"fd_local": 1.0}, None, LOWER, False, "no coverage"),
        ({"coverage": 0.9}, None, LOWER, False, "no fd_local"),
        ({**GOOD, "fd_local": math.nan}, None, LOWER, False, "no fd_local"),
        ({**GOOD, "fd_local": -math.inf}, {"fd_local": 1.0}, LOWER, False, "no fd_local"),
        (GOOD, {}, LOWER, False, "the champion has no fd_local"),
        (GOOD, {"coverage": 0.8}, HIGHER, True, "higher is better"),
        (GOOD, {"coverage": 0.9}, HIGHER, False, "not equal"),
        (GOOD, {"coverage": 0.95}, HIGHER, False, "higher is better"),
        ({**GOOD, "copies": 1.0}, {"coverage": 0.1}, HIGHER, False, "copies 1 must be at most 0"),
    ],
)
def test_the_rule_decides_and_says_why(
    candidate: Mapping[str, float],
    champion: Mapping[str, float] | None,
    rule: PromotionRule,
    promoted: bool,
    said: str,
) -> None:
    decision = decide(candidate, champion, rule)
    assert decision.promote is promoted
    assert said in decision.reason


def test_an_alarm_outweighs_every_figure() -> None:
    decision = decide(GOOD, None, LOWER, alarms=("memorisation",))
    assert not decision.promote
    assert "memorisation" in decision.reason


@pytest.fixture
def three(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> str:
    for fd_local in (3.0, 1.0, 2.9):
        register(uri, bundle, "vae", run_id, lineage, {**GOOD, "fd_local": fd_local})
    return uri


def test_champions_follow_the_rule_and_can_be_taken_back(three: str) -> None:
    assert find_champion(three, "vae") is None
    assert promote(three, "vae", 1, LOWER).decision.promote
    before = promote(three, "vae", 2, LOWER).champion
    assert before is not None
    assert before.number == 1
    refused = promote(three, "vae", 3, LOWER)
    assert not refused.decision.promote
    assert find(three, "vae").number == 2
    assert rollback(three, "vae").number == 1
    assert find(three, "vae@champion").number == 1
    assert rollback(three, "vae").number == 2


def test_promoting_the_champion_again_changes_nothing(three: str) -> None:
    promote(three, "vae", 1, LOWER)
    promote(three, "vae", 2, LOWER)
    again = promote(three, "vae", 2, LOWER, force_because="habit")
    assert "already" in again.decision.reason
    set_alias(three, "vae", "champion", 2)
    assert rollback(three, "vae").number == 1


def test_force_overrules_and_its_reason_is_kept(three: str) -> None:
    promote(three, "vae", 2, LOWER)
    forced = promote(three, "vae", 3, LOWER, force_because="licence of 2 ran out")
    assert forced.forced
    assert find(three, "vae").number == 3
    kept = connect(three).get_model_version("vae", "3").tags[REASON_TAG]
    assert "licence of 2 ran out" in kept
    assert "better by" in kept
    with pytest.raises(ConfigError, match="reason"):
        promote(three, "vae", 2, LOWER, force_because=" ")


def test_an_alarm_raised_by_evaluation_stops_the_promotion(three: str) -> None:
    log_model_metrics(three, find(three, "vae/1"), {"copies": 12.0}, alarms=("memorisation",))
    assert "memorisation" in promote(three, "vae", 1, LOWER).decision.reason
    assert find_champion(three, "vae") is None


def test_figures_of_different_data_are_not_compared(three: str, bundle: Path, run_id: str, lineage: Lineage) -> None:
    promote(three, "vae", 1, LOWER)
    ring = Lineage(family="toy", recipe="toy", recipe_digest="1", data="ring", data_digest="2")
    number = register(three, bundle, "vae", run_id, ring, {**GOOD, "fd_local": 0.0}).number
    assert "do not compare" in promote(three, "vae", number, LOWER).decision.reason


def test_figures_measured_otherwise_are_not_compared(three: str) -> None:
    rule = LOWER.model_copy(update={"rests_on": ("samples", "options")})
    assert promote(three, "vae", 1, rule).decision.promote
    basis = {"samples": "2000", "options": "steps=9", "features": "other"}
    log_model_metrics(three, find(three, "vae/2"), {"fd_local": 0.5}, basis=basis)
    refused = promote(three, "vae", 2, rule).decision
    assert not refused.promote
    assert refused.reason == "fd_local was measured on samples: 2000, the champion's on unknown; evaluate both alike"
    log_model_metrics(three, find(three, "vae/1"), {}, basis={"samples": "2000", "options": "the model's own"})
    assert "on options: steps=9" in promote(three, "vae", 2, rule).decision.reason
    log_model_metrics(three, find(three, "vae/1"), {}, basis={"options": "steps=9"})
    assert promote(three, "vae", 2, rule).decision.promote


def test_ten_promotions_at_once_leave_the_best_in_place(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> None:
    rule = PromotionRule(metric="fd_local", better="lower")
    figures = [5.0, 2.0, 8.0, 1.0, 9.0, 3.0, 7.0, 0.5, 6.0, 4.0]
    for fd_local in figures:
        register(uri, bundle, "vae", run_id, lineage, {"fd_local": fd_local})
    with ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(promote, uri, "vae", number, rule) for number in range(1, 11)]
    outcomes = [job.result() for job in jobs]
    assert find(uri, "vae").metrics["fd_local"] == min(figures)
    steps = [each.champion.metrics["fd_local"] for each in outcomes if each.decision.promote and each.champion]
    assert len(steps) == len(set(steps))  # no two took the same champion's place


def test_a_lock_that_a_dead_writer_left_is_taken_over(three: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(three).create_registered_model("vae~promoting")
    monkeypatch.setattr(aliases, "_LOCK_WAIT_S", 0.3)
    with pytest.raises(RegistryError, match="Another promotion"):
        set_alias(three, "vae", "champion", 1)
    monkeypatch.setattr(aliases, "_LOCK_LIFE_S", 0)
    set_alias(three, "vae", "champion", 1)
    assert find(three, "vae@champion").number == 1


def test_there_is_nothing_to_roll_back_to_before_a_second_champion(three: str) -> None:
    promote(three, "vae", 1, LOWER)
    with pytest.raises(RegistryError, match="no other champion"):
        rollback(three, "vae")
