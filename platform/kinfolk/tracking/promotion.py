"""Which version endpoints should serve: a pure rule on figures, and the step that carries its decision out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from kinfolk.contract import Config
from kinfolk.errors import ConfigError
from kinfolk.tracking.aliases import find_champion, move_alias, one_writer
from kinfolk.tracking.connection import connect, registry_errors
from kinfolk.tracking.lineage import Version
from kinfolk.tracking.reference import CHAMPION, Reference, parse_name
from kinfolk.tracking.registry import find

REASON_TAG = "promotion"  # on the version: why it became champion


class PromotionRule(Config):
    """When a candidate takes the champion's place."""

    metric: str
    better: Literal["lower", "higher"]
    min_improvement: float = Field(0.0, ge=0)  # in the metric's own unit; equal figures never promote
    at_least: dict[str, float] = Field(default_factory=dict)  # bounds on other metrics of the candidate
    at_most: dict[str, float] = Field(default_factory=dict)
    rests_on: tuple[str, ...] = ()  # entries of the figures' basis in which both versions must agree to be compared


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to promote, and why."""

    promote: bool
    reason: str


def decide(
    candidate: Mapping[str, float],
    champion: Mapping[str, float] | None,
    rule: PromotionRule,
    alarms: Sequence[str] = (),
) -> Decision:
    """Apply ``rule`` to a candidate's figures and the champion's (None: there is none yet).

    A candidate with alarms, or without a figure that the rule asks for, is not promoted.
    """
    if alarms:
        return Decision(False, f"evaluation raised {', '.join(alarms)}")
    if broken := _broken_bound(candidate, rule):
        return Decision(False, broken)
    if (got := _figure(candidate, rule.metric)) is None:
        return Decision(False, f"the candidate has no {rule.metric}: evaluate it first")
    if champion is None:
        return Decision(True, f"{rule.metric} {got:.6g}; there is no champion yet")
    if (held := _figure(champion, rule.metric)) is None:
        return Decision(False, f"the champion has no {rule.metric} to compare with: evaluate it first")
    return _compare(got, held, rule)


def _figure(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _broken_bound(candidate: Mapping[str, float], rule: PromotionRule) -> str | None:
    bounds = [(name, bound, "at least") for name, bound in rule.at_least.items()]
    bounds += [(name, bound, "at most") for name, bound in rule.at_most.items()]
    for name, bound, side in bounds:
        if name not in candidate:
            return f"the candidate has no {name}, which must be {side} {bound:.6g}: evaluate it first"
        got = candidate[name]
        if not (got >= bound if side == "at least" else got <= bound):
            return f"{name} {got:.6g} must be {side} {bound:.6g}"
    return None


def _compare(got: float, held: float, rule: PromotionRule) -> Decision:
    gain = held - got if rule.better == "lower" else got - held
    figures = f"{rule.metric} {got:.6g} against the champion's {held:.6g} ({rule.better} is better)"
    if gain > 0 and gain >= rule.min_improvement:
        return Decision(True, figures)
    return Decision(False, f"{figures}: it must be better by {rule.min_improvement:.6g} or more, and not equal")


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of a candidate."""

    decision: Decision
    candidate: Version
    champion: Version | None  # before
    forced: bool = False


def promote(
    tracking_uri: str, name: str, number: int, rule: PromotionRule, force_because: str | None = None
) -> Promotion:
    """Make version ``number`` champion if ``rule`` says so, or in any case with ``force_because``, which is recorded.

    Raises:
        ConfigError: ``force_because`` is blank.
        RegistryError: MLflow is out of reach, has no such version, or another promotion did not finish.
    """
    if force_because is not None and not force_because.strip():
        raise ConfigError("A forced promotion needs a reason, which is kept with the version: give one.")
    wanted = str(Reference(parse_name(name), number=number))
    find(tracking_uri, wanted)  # before the lock, which would make a model of that name
    with one_writer(tracking_uri, name):
        candidate, champion = find(tracking_uri, wanted), find_champion(tracking_uri, name)
        decision = _decide_versions(candidate, champion, rule)
        forced = force_because is not None and not decision.promote
        if forced:
            decision = Decision(True, f"forced: {force_because} (the rule said: {decision.reason})")
        if decision.promote and CHAMPION not in candidate.aliases:
            _carry_out(tracking_uri, candidate, decision.reason)
    return Promotion(decision, candidate, champion, forced)


def _decide_versions(candidate: Version, champion: Version | None, rule: PromotionRule) -> Decision:
    if champion is None:
        return decide(candidate.metrics, None, rule, candidate.alarms)
    if champion.number == candidate.number:
        return Decision(False, f"{candidate.reference} is champion already")
    ours, theirs = ((v.lineage.data, v.lineage.data_digest) for v in (candidate, champion))
    if ours != theirs:
        words = (f"{name!r} ({digest[:8]})" for name, digest in (ours, theirs))
        return Decision(False, "it learned {}, the champion {}: their figures do not compare".format(*words))
    for name in rule.rests_on:
        mine, its = (version.basis.get(name, "unknown") for version in (candidate, champion))
        if mine != its:
            return Decision(
                False, f"{rule.metric} was measured on {name}: {mine}, the champion's on {its}; evaluate both alike"
            )
    return decide(candidate.metrics, champion.metrics, rule, candidate.alarms)


def _carry_out(tracking_uri: str, candidate: Version, reason: str) -> None:
    move_alias(tracking_uri, candidate.name, CHAMPION, candidate.number)
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"note why {candidate.reference} was promoted"):
        client.set_model_version_tag(candidate.name, str(candidate.number), REASON_TAG, reason)
