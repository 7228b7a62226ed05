"""When to say that a run has collapsed: a pure rule over what was measured of its samples and what its losses logged.

A young model is bad and yet healthy. So nothing is judged before a grace period; what is wrong must last several looks
in a row and not be mending; and a run that was good is held to its own best, one that never was to the data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from statistics import median

from pydantic import Field, model_validator

from kinfolk.contract import SIGNALS, Config
from kinfolk.errors import nearest
from kinfolk.metrics.collapse import ROWS, CollapseMeasures


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure of samples that may be watched."""

    means: str
    read: Callable[[CollapseMeasures], float | None]  # None: not of this data


_MEASURES: Mapping[str, _Measure] = {
    "missing": _Measure("share of the data in regions that samples have all but lost", lambda seen: seen.missing),
    "distance_ratio": _Measure(
        "mean distance of two samples, in shares of the data's", lambda seen: seen.distance_ratio
    ),
    "support_share": _Measure(
        "different samples there are by near duplicates, for each one compared",
        lambda seen: seen.support / min(seen.samples, ROWS),
    ),
    "effective_bins": _Measure("regions in even use, in shares of the data's", lambda seen: seen.effective_bins),
    "bins_different": _Measure(
        "share of regions that samples fill otherwise than the data, NDB/K", lambda seen: seen.bins_different
    ),
    "js_divergence": _Measure(
        "Jensen-Shannon divergence of samples from the data over regions, nats", lambda seen: seen.js_divergence
    ),
    "modes": _Measure("share of the known modes that hold a sample of high quality", lambda seen: seen.modes),
    "high_quality": _Measure("share of samples near a known mode", lambda seen: seen.high_quality),
}
OF_MODES = frozenset({"modes", "high_quality"})  # measured where the modes of the data are known


class Limit(Config):
    """How far a figure may go, and how far from the run's own; what is left out is not looked at.

    With ``least`` the lower side is the bad one, else the higher.
    """

    most: float | None = None
    least: float | None = None
    drift: float | None = Field(None, gt=0)  # most that it may worsen from the run's own best, kept over the looks
    growth: float | None = Field(None, gt=1)  # of its size, which alone is then watched, over the run's median before
    above: float = Field(0.0, ge=0)  # size up to which any growth is healthy

    @model_validator(mode="after")
    def _one_bad_side(self) -> "Limit":
        if self.most is not None and self.least is not None:
            raise ValueError("most and least make no one bad side; give one of them")
        if self.least is not None and self.growth is not None:
            raise ValueError("least and growth make no one bad side, as growth is upwards; give one of them")
        if self.above and self.growth is None:
            raise ValueError("above is of growth; give that beside it")
        if self.drift is not None and self.most is None and self.least is None:
            raise ValueError("drift alone has no bad side; give most or least beside it, however far away")
        if self.most is None and self.least is None and self.growth is None:
            raise ValueError("a limit without a bound watches nothing; give most, least or growth, or null for none")
        return self

    def badness(self, value: float) -> float:
        """``value`` turned so that higher is worse."""
        if self.growth is not None:
            return abs(value)
        return value if self.least is None else -value

    def figure(self, badness: float) -> float:
        """What is shown of a badness: the value, or its size where its growth is watched."""
        return badness if self.least is None else -badness


LIMITS: Mapping[str, Limit] = {
    "missing": Limit(most=0.15, drift=0.1),
    "modes": Limit(least=0.5, drift=0.2),
    "effective_bins": Limit(least=0.75, drift=0.2),
    "distance_ratio": Limit(least=0.5, drift=0.3),
    "support_share": Limit(least=0.05),
    "logit_gap": Limit(growth=10.0, above=0.5),
    "energy_gap": Limit(growth=10.0),
    "kl": Limit(least=0.05),
    "kl_active": Limit(least=0.05),
    "usage": Limit(least=0.05),
}


class AlarmConfig(Config):
    """What counts as collapse."""

    grace_samples: int | None = Field(
        None, ge=0
    )  # samples seen, from the start or a change on, before anything is judged; None: a third of the run
    looks: int = Field(3, ge=2)  # in a row that must all be bad
    mending: float = Field(0.05, ge=0)  # improvement over those looks, in shares of the first, that earns more time
    limits: dict[str, Limit | None] = Field(default_factory=dict)  # in place of those of ``LIMITS``; null: unwatched

    @model_validator(mode="after")
    def _names_are_known(self) -> "AlarmConfig":
        known = [*_MEASURES, *SIGNALS]
        for name in self.limits.keys() - set(known):
            raise ValueError(
                f"nothing that is watched is called {name!r}.{nearest(name, known)} Use {', '.join(known)}"
            )
        return self

    def grace(self, run_samples: int) -> int:
        """Samples seen before anything is judged in a run of so many."""
        return run_samples // 3 if self.grace_samples is None else self.grace_samples

    def judged_after(self, run_samples: int, since: int) -> int:
        """Samples seen before settings that changed ``since`` so many are judged: half of what is left at most."""
        grace = self.grace(run_samples)
        return since + (min(grace, (run_samples - since) // 2) if since else grace)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a run."""

    samples_seen: int
    measures: CollapseMeasures | None  # of samples drawn now; None: of a model that draws none
    logs: Mapping[str, float] = field(default_factory=dict)  # means since the look before, named ``phase/what``


@dataclass(frozen=True, slots=True)
class Alarm:
    """A run that has collapsed."""

    samples_seen: int
    began: int  # samples seen at the first of the looks that are bad up to now without a break
    what: str  # the measure or signal
    value: float  # now
    limit: float  # that it has crossed
    reason: str


@dataclass(frozen=True, slots=True)
class _Bound:
    """A badness that must not be crossed, and why."""

    badness: float
    why: str


def verdict(history: Sequence[Look], config: AlarmConfig, run_samples: int, since: int = 0) -> Alarm | None:
    """The first alarm that the newest looks give cause for, of a run that is to see ``run_samples``; None: healthy.

    ``history`` holds the looks since the start, or since an earlier alarm was acted on, in order; settings that changed
    ``since`` so many samples have their own grace.
    """
    judged_after = config.judged_after(run_samples, since)
    limits = {name: limit for name, limit in {**LIMITS, **config.limits}.items() if limit is not None}
    found = (_alarm(name, limit, history, config, judged_after) for name, limit in limits.items())
    first = next((alarm for alarm in found if alarm is not None), None)
    if first is None:
        return None
    return replace(first, began=min([first.began, *(_ill_since(name, limits[name], history) for name in limits)]))


def _alarm(name: str, limit: Limit, history: Sequence[Look], config: AlarmConfig, judged_after: int) -> Alarm | None:
    """What one figure gives cause for."""
    points = _points(name, limit, history)
    judged = [badness for seen, badness in points if seen > judged_after]
    before, now = judged[: -config.looks], judged[-config.looks :]
    if len(now) < config.looks or now[-1] < now[0] - config.mending * abs(now[0]):
        return None
    bound = next((b for b in _bounds(limit, before, config.looks) if min(now) > b.badness), None)
    if bound is None:
        return None
    bad = list(takewhile(lambda point: point[1] > bound.badness, reversed(points)))
    (seen, value), (began, _) = bad[0], bad[-1]
    value, crossed = limit.figure(value), limit.figure(bound.badness)
    reason = (
        f"{name} ({_meaning(name)}) is {value:.3g} after {seen:,} samples, and for {len(bad)} looks in a row beyond "
        f"{crossed:.3g}: {bound.why}."
    )
    return Alarm(seen, began, name, value, crossed, reason)


def _ill_since(name: str, limit: Limit, history: Sequence[Look]) -> int:
    """Samples seen at the first of the looks with a figure beyond its fixed limit up to now, or now if it is not.

    A run that has collapsed is often told by one figure long after others show that it never was well.
    """
    now, bound = history[-1].samples_seen, next(iter(_bounds(limit, (), 1)), None)
    if bound is None:
        return now
    bad = takewhile(lambda point: point[1] > bound.badness, reversed(_points(name, limit, history)))
    return min((seen for seen, _ in bad), default=now)


def _points(name: str, limit: Limit, history: Sequence[Look]) -> list[tuple[int, float]]:
    """Samples seen and badness of one figure at each look that has it."""
    return [(look.samples_seen, limit.badness(value)) for look in history for value in _read(look, name)]


def _meaning(name: str) -> str:
    return _MEASURES[name].means if name in _MEASURES else SIGNALS[name]


def _read(look: Look, name: str) -> list[float]:
    """The figure as the look has it, a signal in whichever phase; none or one."""
    if name in _MEASURES:
        value = None if look.measures is None else _MEASURES[name].read(look.measures)
        return [] if value is None else [value]
    return [value for key, value in look.logs.items() if key.rpartition("/")[2] == name][:1]


def _bounds(limit: Limit, before: Sequence[float], looks: int) -> Iterable[_Bound]:
    """What the newest looks must not cross, after those ``before``."""
    fixed = limit.least if limit.least is not None else limit.most
    if fixed is not None:
        yield _Bound(limit.badness(fixed), "the limit for any run")
    if len(before) < looks:
        return
    if limit.drift is not None:
        windows = [before[first : first + looks] for first in range(len(before) - looks + 1)]
        best = min(map(max, windows))  # the best level that was kept for so many looks in a row
        yield _Bound(best + limit.drift, f"this run had kept {limit.figure(best):.3g}")
    if limit.growth is not None:
        usual = median(before)
        yield _Bound(max(limit.growth * usual, limit.above), f"{usual:.3g} was usual in this run")
