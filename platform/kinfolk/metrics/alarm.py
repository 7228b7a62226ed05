"""When to say that a run has collapsed: a pure rule over what was measured of its samples and what its losses logged.

A young model is bad and yet healthy. So nothing is judged before a grace period; what is wrong must last several looks
in a row and not be mending; and a run that was good is held to its own best, one that never was to the data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from pydantic import Field, model_validator

from kinfolk.contract import SIGNALS, Config
from kinfolk.errors import nearest
from kinfolk.metrics.collapse import CollapseMeasures


class Limit(Config):
    """How far a figure may go, and how far from the run's own; what is left out is not looked at.

    With ``least`` the lower side is the bad one, else the higher.
    """

    most: float | None = None
    least: float | None = None
    drift: float | None = Field(None, gt=0)  # most that it may worsen from the run's own best, kept over the looks
    growth: float | None = Field(None, gt=1)  # most that it may grow over the run's own median before the looks

    @model_validator(mode="after")
    def _one_bad_side(self) -> "Limit":
        if self.most is not None and self.least is not None:
            raise ValueError("most and least make no one bad side; give one of them")
        return self


class MeasureLimits(Config):
    """Limits of figures of samples; null where one is not to be watched."""

    missing: Limit | None = Limit(most=0.3, drift=0.2)  # share of the data in bins all but lost
    distance_ratio: Limit | None = Limit(least=0.5, drift=0.3)  # of two samples, in shares of the data's
    support_share: Limit | None = Limit(least=0.05)  # different samples, by near duplicates, for each one drawn
    effective_bins: Limit | None = None  # bins in even use, in shares of the data's


class AlarmConfig(Config):
    """What counts as collapse. Figures of samples are ``CollapseMeasures``; signals are what losses log."""

    grace_samples: int | None = Field(None, ge=0)  # samples seen before anything is judged; None: a quarter of the run
    looks: int = Field(3, ge=2)  # in a row that must all be bad
    mending: float = Field(0.05, ge=0)  # improvement over those looks, in shares of the first, that earns more time
    measures: MeasureLimits = MeasureLimits()
    signals: Mapping[str, Limit] = {
        "logit_gap": Limit(growth=10.0),
        "energy_gap": Limit(growth=10.0),
        "kl": Limit(least=0.05),
        "kl_active": Limit(least=0.05),
        "usage": Limit(least=0.05),
    }

    @model_validator(mode="after")
    def _signals_are_known(self) -> "AlarmConfig":
        for name in self.signals.keys() - SIGNALS.keys():
            raise ValueError(f"no signal is called {name!r}.{nearest(name, SIGNALS)} Known: {', '.join(SIGNALS)}")
        return self

    def grace(self, run_samples: int) -> int:
        """Samples seen before anything is judged in a run of so many."""
        return run_samples // 4 if self.grace_samples is None else self.grace_samples


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
    what: str  # the measure or signal
    value: float  # now
    limit: float  # that it has crossed
    reason: str


@dataclass(frozen=True, slots=True)
class _Watch:
    """One figure of a run, look by look."""

    name: str
    values: Sequence[float]
    limit: Limit
    means: str  # what the figure is, in words


def verdict(history: Sequence[Look], config: AlarmConfig, run_samples: int) -> Alarm | None:
    """The first alarm that the newest looks give cause for, of a run that is to see ``run_samples``; None: healthy."""
    judged = [look for look in history if look.samples_seen > config.grace(run_samples)]
    for watch in _watches(judged, config):
        if len(watch.values) < config.looks:
            continue
        for bound, reason in _bounds(watch, config.looks):
            now = watch.values[-config.looks :]
            if all(_worse(watch.limit, value, bound) for value in now) and not _mending(watch.limit, now, config):
                words = f"{watch.means}: {now[-1]:.3g} after {judged[-1].samples_seen:,} samples seen, {reason}"
                said = f"{words}, for {config.looks} looks in a row."
                return Alarm(judged[-1].samples_seen, watch.name, now[-1], bound, said)
    return None


_MEANS = {
    "missing": "share of the data in regions that samples have all but lost",
    "distance_ratio": "mean distance of two samples, in shares of the data's",
    "support_share": "different samples at least, by near duplicates, for each sample drawn",
    "effective_bins": "regions in even use, in shares of the data's",
}

_READ: Mapping[str, Callable[[CollapseMeasures], float]] = {
    "missing": lambda seen: seen.missing,
    "distance_ratio": lambda seen: seen.distance_ratio,
    "support_share": lambda seen: seen.support / seen.samples,
    "effective_bins": lambda seen: seen.effective_bins,
}


def _watches(looks: Sequence[Look], config: AlarmConfig) -> Iterable[_Watch]:
    for measure, limit in config.measures:
        if limit is not None:
            values = [_READ[measure](look.measures) for look in looks if look.measures is not None]
            yield _Watch(measure, values, limit, _MEANS[measure])
    for name, limit in config.signals.items():
        yield _Watch(name, [value for look in looks for value in _signal(look, name)], limit, SIGNALS[name])


def _signal(look: Look, name: str) -> list[float]:
    """The signal as the look's logs have it, in whichever phase; none or one."""
    return [value for key, value in look.logs.items() if key.rpartition("/")[2] == name][:1]


def _falls(limit: Limit) -> bool:
    """Whether lower is the bad side."""
    return limit.least is not None


def _worse(limit: Limit, value: float, bound: float) -> bool:
    return value < bound if _falls(limit) else value > bound


def _mending(limit: Limit, values: Sequence[float], config: AlarmConfig) -> bool:
    """Whether the figure got better by enough from the first to the last of ``values``."""
    gained = values[-1] - values[0] if _falls(limit) else values[0] - values[-1]
    return gained > config.mending * abs(values[0])


def _bounds(watch: _Watch, looks: int) -> Iterable[tuple[float, str]]:
    """What the newest looks must not cross, each with why."""
    limit, before = watch.limit, watch.values[:-looks]
    if limit.most is not None:
        yield limit.most, f"at most {limit.most:g} is healthy"
    if limit.least is not None:
        yield limit.least, f"at least {limit.least:g} is healthy"
    if limit.drift is not None and len(before) >= looks:
        best = _best_kept(before, looks, _falls(limit))
        bound = best - limit.drift if _falls(limit) else best + limit.drift
        yield bound, f"{bound:.3g} is too far from this run's own best, {best:.3g}"
    if limit.growth is not None and len(before) >= looks:
        usual = median(abs(value) for value in before)
        yield limit.growth * usual, f"more than {limit.growth:g} times what was usual in this run, {usual:.3g}"


def _best_kept(values: Sequence[float], looks: int, falls: bool) -> float:
    """The best level that the run kept for so many looks in a row."""
    windows = [values[i : i + looks] for i in range(len(values) - looks + 1)]
    return max(min(window) for window in windows) if falls else min(max(window) for window in windows)
