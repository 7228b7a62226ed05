"""Everything that can be measured of a model, read off what it can do; each number with what it is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from kinfolk import sampling
from kinfolk.config import Evaluation
from kinfolk.contract import Model
from kinfolk.data.modes import KnownModes
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import Source, keep
from kinfolk.errors import ConfigError
from kinfolk.metrics.speed import parameter_count, sampling_speed
from kinfolk_pipelines.figures_on_data import on_data
from kinfolk_pipelines.figures_on_modes import on_modes
from kinfolk_pipelines.figures_on_samples import on_features

SPEED_ROWS = 64  # drawn together to time a model


@dataclass(frozen=True, slots=True)
class Figures:
    """Metrics of one model with what they rest on."""

    metrics: Mapping[str, float]
    samples: Tensor | None  # (N, *) those the metrics were measured on
    basis: Mapping[str, str] = field(default_factory=dict)  # how it was measured, in words


def measure(
    model: Model,
    data: Prepared,
    evaluation: Evaluation,
    features: Model | None = None,
    seed: int = 1,
    *,
    learned: Sequence[int] = (),
    against: Source | None = None,
    modes: KnownModes | None = None,
) -> Figures:
    """All figures ``model`` can have on ``data``; those on features need the data set's classifier.

    ``learned`` are the classes it was trained on (none given: all), which are what it is measured on; ``against`` are
    samples that ought to look strange to it, as the other classes do. ``modes`` are counted of a model of all classes,
    in samples whose classes are left to their seeds.

    Raises:
        ConfigError, DataError, RequestError: something is asked that the model cannot do; before anything is measured.
    """
    check(model, evaluation)
    tasks, whole = model.tasks, data.source("test")
    strange = {"against": against} if against is not None else {}
    if rest := set(range(data.spec.classes or 0)) - set(learned) if learned else set():
        strange["rest"] = keep(whole, sorted(rest))
    test = keep(whole, learned)
    metrics: dict[str, float] = {"parameters": float(parameter_count(model.module).total)}
    metrics |= on_data(model, test, evaluation, strange, learned)
    samples = None
    if "sample" in tasks.starts:
        labels = even_labels(model, evaluation.samples, learned)
        samples = sampling.sample(model, evaluation.samples, seed, labels, evaluation.options)
        metrics |= _cost(model, evaluation)
        if features is not None:
            metrics |= on_features(features, keep(data.source("train"), learned), test, samples, labels)
        if modes is not None and not learned:
            drawn = samples if labels is None else samples[:0]
            metrics |= on_modes(modes, partial(_first, model, evaluation, seed, drawn), data.spec, features)
    return Figures(metrics, samples)


def check(model: Model, evaluation: Evaluation) -> None:
    """Refuse what the model cannot be asked.

    Raises:
        ConfigError, RequestError: with what is asked.
    """
    tasks, name = model.tasks, model.family.name
    asked = {
        "likelihood_samples (--likelihood)": (evaluation.likelihood_samples, tasks.log_prob, "likelihood"),
        "importance_draws (--importance)": (evaluation.importance_draws, tasks.importance_bound, "bound of many draws"),
        "against": (evaluation.against, tasks.anomaly_score, "anomaly score"),
    }
    for entry, (given, task, thing) in asked.items():
        if given is not None and task is None:
            raise ConfigError(f"This {name} model has no {thing}: leave evaluation.{entry} out.")
    if "sample" in tasks.starts:
        sampling.start(tasks, sampling.make_request(model, 1, 0, None, evaluation.options))
    elif evaluation.options:
        raise ConfigError(f"This {name} model draws no samples: leave evaluation.options (--set) out.")


def learned_classes(learned: Sequence[int], classes: int | None) -> str:
    """The classes of ``keep_labels``, which figures are measured against, of so many ``classes``, in words."""
    some = sorted(set(learned))
    return ", ".join(map(str, some)) if 0 < len(some) < (classes or 0) else "all"


def even_labels(model: Model, n: int, learned: Sequence[int] = ()) -> list[int] | None:
    """As many samples of each class it learned as the count allows, for a model that can be asked."""
    if "label" not in model.tasks.conditions:
        return None
    classes = sorted(learned) or range(model.spec.classes or 1)
    return [classes[index % len(classes)] for index in range(n)]


def _first(model: Model, evaluation: Evaluation, seed: int, drawn: Tensor, n: int) -> Tensor:
    """The first ``n`` samples of ``seed``, from those already ``drawn`` if they are enough. -> (n, *)"""
    return drawn[:n] if len(drawn) >= n else sampling.sample(model, n, seed, None, evaluation.options)


def _cost(model: Model, evaluation: Evaluation) -> dict[str, float]:
    def draw(n: int) -> object:
        return sampling.sample(model, n, 0, None, evaluation.options)

    one = sampling.make_request(model, 1, 0, None, evaluation.options)
    nfe = sampling.evaluations(model.tasks, one)
    speed = sampling_speed(draw, SPEED_ROWS, time.perf_counter, warmup=1, repeats=3)
    return {"nfe": float(nfe), "samples_per_second": speed.samples_per_s}
