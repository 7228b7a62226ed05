"""Sweep files: a recipe, a space around it, how trials are chosen, stopped, judged, and what they may cost."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kinfolk.config import Recipe
from kinfolk.contract import Config
from kinfolk.errors import ConfigError, nearest
from kinfolk.tuning.space import Setting, ordered

ALARM = "alarm"  # figure: 1 once the monitor of a trial has fired
NEVER = -1e30  # score of a trial without a figure to judge it by; finite, as schedulers average scores
_INFEASIBLE = -1e12  # below every score of a trial that meets its constraints
_CONSTRAINT = re.compile(r"\s*([\w./@-]+)\s*(<=|>=|==|<|>)\s*(\S+)\s*")


class Random(Config):
    """Settings at random; trial i of a seed is always the same."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0)


class Optuna(Config):
    """Settings by Optuna's tree-structured Parzen estimator, from the trials that ended."""

    kind: Literal["optuna"]
    seed: int = Field(0, ge=0)
    startup_trials: int = Field(10, ge=1)  # at random, before anything is concluded


class Unscheduled(Config):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Config):
    """Asynchronous successive halving: at each rung, trials outside the best share are stopped.

    Source: Li et al., 2020, https://arxiv.org/abs/1810.05934.
    """

    kind: Literal["asha"]
    grace_samples: int = Field(gt=0)  # the first rung
    reduction: float = Field(3, gt=1)  # between rungs, and one trial in so many goes on


class Pbt(Config):
    """Population based training: the worst go on from copies of the best, with settings that differ a little."""

    kind: Literal["pbt"]
    perturb: tuple[str, ...] = Field(min_length=1)  # settings of the space that may change during training
    every_samples: int = Field(gt=0)
    quantile: float = Field(0.25, gt=0, le=0.5)  # share of the population that is replaced, and that is copied
    resample: float = Field(0.25, ge=0, le=1)  # probability of a fresh draw
    seed: int = Field(0, ge=0)


class Budget(Config):
    """What a sweep may cost."""

    samples: int | None = Field(None, gt=0)  # training samples of each trial; None: as many as the recipe says
    minutes: float | None = Field(None, gt=0)  # of the whole search, over all its starts


class Objective(Config):
    """The figure that decides."""

    metric: str
    mode: Literal["min", "max"]


class Constraint(Config):
    """A figure that must keep to a limit."""

    metric: str
    sign: Literal["<", "<=", "==", ">=", ">"]
    limit: float

    def missed_by(self, metrics: Mapping[str, float]) -> float:
        """How far the figure is on the wrong side; 0 where it keeps to the limit, infinity where there is none."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        kept = {
            "<": value < self.limit,
            "<=": value <= self.limit,
            "==": value == self.limit,
            ">=": value >= self.limit,
            ">": value > self.limit,
        }[self.sign]
        return 0.0 if kept else max(abs(value - self.limit), math.ulp(1.0))


def _constraint(given: Any) -> Any:
    """``coverage >= 0.8`` as the entries of a Constraint."""
    if not isinstance(given, str):
        return given
    if not (found := _CONSTRAINT.fullmatch(given)):
        raise ValueError("a constraint reads like `coverage >= 0.8`, with one of < <= == >= >")
    metric, sign, limit = found.groups()
    return {"metric": metric, "sign": sign, "limit": limit}


class Sweep(Config):
    """A search for the settings of a recipe that serve an objective best."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    recipe: str  # a path or a name
    fixed: dict[str, Any] = Field(default_factory=dict)  # keys of the recipe that differ in every trial
    space: dict[str, Setting] = Field(min_length=1)  # by key of the recipe
    searcher: Annotated[Random | Optuna, Field(discriminator="kind")] = Random()
    scheduler: Annotated[Unscheduled | Asha | Pbt, Field(discriminator="kind")] = Unscheduled()
    trials: int = Field(gt=0)
    parallel: int = Field(1, gt=0)  # trials at a time
    workers: int = Field(1, gt=0)  # of each trial
    budget: Budget = Budget()
    report_every_samples: int | None = Field(None, gt=0)  # figures and a checkpoint; None: 10 in a trial
    evaluation_samples: int = Field(1000, gt=5)  # that the figures of a report rest on
    objective: Objective
    constraints: tuple[Annotated[Constraint, BeforeValidator(_constraint)], ...] = ()
    seeds: int = Field(0, ge=0)  # further trials of the best settings, with other seeds, for the spread
    finish: Literal["take", "retrain"] = "take"  # register the best trial, or train its settings as long as the recipe

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        order = ordered(self.space)
        if both := sorted(self.fixed.keys() & self.space.keys()):
            raise ValueError(f"{both[0]} is both fixed and in the space; leave it out of one")
        if isinstance(self.scheduler, Pbt):
            _check_population(self, self.scheduler, order)
        return self

    def score(self, metrics: Mapping[str, float]) -> float:
        """How good figures are: higher is better, and any that keep the constraints are above any that do not.

        Among those that do not, the smaller the violation the better. Source: Deb, 2000, Sec. 3,
        https://doi.org/10.1016/S0045-7825(99)00389-8.
        """
        value = metrics.get(self.objective.metric, math.nan)
        missed = sum(constraint.missed_by(metrics) for constraint in self.constraints)
        if not math.isfinite(value + missed):
            return NEVER
        if missed:
            return max(_INFEASIBLE * (1 + missed), NEVER)
        return -value if self.objective.mode == "min" else value

    @property
    def judged(self) -> list[str]:
        """The figures of the objective and the constraints, each once."""
        return list(dict.fromkeys([self.objective.metric, *(each.metric for each in self.constraints)]))

    def check_judged(self, figures: Mapping[str, float]) -> None:
        """Refuse the figures of a report by which nothing can be judged, before more is trained in vain.

        Raises:
            ConfigError: with the figure that is missing and those there are.
        """
        if missing := [metric for metric in self.judged if metric not in figures]:
            raise ConfigError(
                f"{self.name} is judged by {missing[0]}, which this trial does not report."
                f"{nearest(missing[0], figures)} Its figures: {', '.join(sorted(figures))}. Give another objective or "
                "constraint."
            )

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Whether figures keep every constraint and the objective is among them."""
        return self.score(metrics) > _INFEASIBLE


def _check_population(sweep: Sweep, pbt: Pbt, known: list[str]) -> None:
    if strange := [key for key in pbt.perturb if key not in known]:
        raise ValueError(
            f"scheduler.perturb names {strange[0]}, which is not in the space.{nearest(strange[0], known)} "
            f"Settings: {', '.join(known)}"
        )
    for key in pbt.perturb:
        if below := [other for other in known if key in sweep.space[other].when]:
            raise ValueError(
                f"scheduler.perturb names {key}, by which it is decided whether {below[0]} exists, so it cannot change "
                "during training; take it off, or the `when`"
            )
    if sweep.workers > 1:
        raise ValueError("pbt copies trials of one worker; use workers: 1, or another scheduler")
    if sweep.finish == "retrain":
        raise ValueError(
            "finish: retrain trains with the best trial's last settings from the start, and a population's change on "
            "the way; use finish: take, or another scheduler"
        )
    if sweep.trials < 2:
        raise ValueError("pbt needs a population: give at least 2 trials")
    if not isinstance(sweep.searcher, Random):
        raise ValueError("pbt starts its population at random: use searcher: {kind: random}, or another scheduler")


class Pace(Config):
    """How long each trial trains and how often it reports, in samples."""

    samples: int
    report_every: int


def pace(sweep: Sweep, recipe: Recipe) -> Pace:
    """The pace of trials around ``recipe``.

    Raises:
        ConfigError: the budget ends before the first report, or a scheduler's first decision comes after the end; with
            the least that would do.
    """
    batch = recipe.training.batch_size
    samples = sweep.budget.samples or recipe.training.samples
    every = max(sweep.report_every_samples or samples // 10, batch)
    least = -(-every // batch) * batch  # reports come after whole batches
    if samples < least:
        raise ConfigError(
            f"budget.samples={samples} ends before the first report, after {least} samples. Give at least "
            f"{least}, or lower report_every_samples ({every}; a batch is {batch})."
        )
    first = {"asha": "grace_samples", "pbt": "every_samples"}.get(sweep.scheduler.kind)
    if first is not None and (decided := -(-(given := getattr(sweep.scheduler, first)) // every) * every) >= samples:
        raise ConfigError(
            f"scheduler.{first}={given}: nothing is decided before a trial's end, at {samples} samples. Give a "
            f"budget.samples above {decided}, or lower {first}; a trial reports every {every} samples."
        )
    return Pace(samples=samples, report_every=every)
