"""Everything that can be measured of a model, read off what it can do; each number with what it is."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinfolk import sampling
from kinfolk.config import Evaluation
from kinfolk.contract import Batch, DataSpec, Model
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import Source
from kinfolk.metrics.accuracy import class_accuracy, class_counts
from kinfolk.metrics.diversity import mean_distance_within_classes, mean_pairwise_distance, vendi_score
from kinfolk.metrics.frechet import FeatureStatistics, frechet_distance
from kinfolk.metrics.kernel import kernel_distance
from kinfolk.metrics.likelihood import likelihood_figures
from kinfolk.metrics.manifold import manifold_scores
from kinfolk.metrics.speed import parameter_count, sampling_speed

MEANING = {
    "fd_local": "Fréchet distance to the train split on features of a local classifier; not FID. Lower is better.",
    "fd_local_test": "The same distance for the real test split: what a perfect model would reach, up to sample size.",
    "kd_local": "Kernel distance (unbiased, cubic) to the train split on the same features. Lower is better.",
    "precision": "Share of samples inside the real data's 5-neighbour balls.",
    "recall": "Share of real data inside the samples' 5-neighbour balls.",
    "density": "Real 5-neighbour balls a sample lies in, over 5; may exceed 1.",
    "coverage": "Share of real 5-neighbour balls that hold a sample.",
    "class_accuracy": "Share of samples that the local classifier takes for the class asked for.",
    "classes_covered": "Classes of which a sample was recognised.",
    "test_accuracy": "Share of the test split classified correctly.",
    "pairwise_distance": "Mean distance between two samples in feature space.",
    "distance_within_classes": "The same between two samples of one class, averaged over classes.",
    "vendi": "Effective number of different samples in feature space, of at most 1,000.",
    "samples_per_second": "Sampling speed on this machine in batches of 64, with the model's own options.",
    "nfe": "Network evaluations for one sample.",
    "parameters": "Parameters of the model, all parts.",
    "reconstruction_mse": "Mean squared error of reconstructed test samples, data in [-1, 1]. Lower is better.",
    "log_prob_nats": "Exact log-probability of the test split, nats a sample. Higher is better.",
    "log_prob_bits_per_dim": "The exact log-probability as bits per dimension. Lower is better.",
    "elbo_nats": "Lower bound of the test split's log-probability, nats a sample. Higher is better.",
    "elbo_bits_per_dim": "The bound as bits per dimension: the true figure is lower.",
    "elbo_binary_nats": "Lower bound for the binarised test split, nats a sample. Higher is better.",
    "elbo_density_nats": "Lower bound of the test split's log-density, nats a sample; no bits per dimension exist.",
    "log_prob_density_nats": "Exact log-density of the test split, nats a sample.",
}
_CHUNK = 256  # rows of one forward pass
_SPEED_ROWS = 64
_VENDI_ROWS = 1000
_REFERENCE_ROWS = 10_000  # of the train split; the kernel distance compares all pairs
_REFERENCE_SEED = 0


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
) -> Figures:
    """All figures ``model`` can have on ``data``; those on features need the data set's classifier."""
    tasks = model.tasks
    metrics: dict[str, float] = {"parameters": float(parameter_count(model.module).total)}
    test = data.source("test")
    metrics |= _on_test_data(model, test)
    samples = None
    if "sample" in tasks.starts:
        labels = _even_labels(model, evaluation.samples)
        samples = sampling.sample(model, evaluation.samples, seed, labels, evaluation.options)
        metrics |= _cost(model, evaluation)
        if features is not None:
            metrics |= _on_features(features, data, samples, labels)
    return Figures(metrics, samples)


def _even_labels(model: Model, n: int) -> list[int] | None:
    """As many samples of each class as the count allows, for a model that can be asked."""
    if "label" not in model.tasks.conditions:
        return None
    return [index % (model.spec.classes or 1) for index in range(n)]


def _cost(model: Model, evaluation: Evaluation) -> dict[str, float]:
    def draw(n: int) -> object:
        return sampling.sample(model, n, 0, None, evaluation.options)

    tasks = model.tasks
    state = sampling.start(tasks, sampling.make_request(model, 1, 0, None, evaluation.options))
    speed = sampling_speed(draw, _SPEED_ROWS, time.perf_counter, warmup=1, repeats=3)
    return {"nfe": float((state.calls * state.cost).sum()), "samples_per_second": speed.samples_per_s}


def _chunks(source: Source) -> list[tuple[Batch, Tensor]]:
    """A split in stored order, each row with the seed of its position."""
    starts = range(0, len(source), _CHUNK)
    stops = [min(start + _CHUNK, len(source)) for start in starts]
    return [(source.take(a, b), torch.arange(a, b)) for a, b in zip(starts, stops, strict=True)]


@torch.no_grad()
def _on_test_data(model: Model, test: Source) -> dict[str, float]:
    tasks = model.tasks
    metrics: dict[str, float] = {}
    if tasks.log_prob is not None:
        nats = torch.cat([tasks.log_prob.nats(batch, seeds) for batch, seeds in _chunks(test)])
        metrics |= likelihood_figures(tasks.log_prob, nats, test.spec)
    if tasks.reconstruct is not None:
        errors = [(tasks.reconstruct(b, s) - b.x).square().flatten(1).mean(1) for b, s in _chunks(test)]
        metrics["reconstruction_mse"] = float(torch.cat(errors).mean())
    if tasks.classify is not None:
        right = [
            torch.eq(tasks.classify(b, s).argmax(1), b.label).float() for b, s in _chunks(test) if b.label is not None
        ]
        metrics["test_accuracy"] = float(torch.cat(right).mean())
    return metrics


@torch.no_grad()
def _encoded(features: Model, x: Tensor) -> Tensor:
    encode = features.tasks.encode
    assert encode is not None
    return torch.cat([encode(Batch(part), torch.arange(len(part))) for part in x.split(_CHUNK)])


def as_shown(x: Tensor, spec: DataSpec) -> Tensor:
    """Samples rounded to the levels real data has, so that a classifier cannot tell them by their fractions."""
    return x if spec.levels is None else spec.from_levels(spec.to_levels(x))


@torch.no_grad()
def _on_features(features: Model, data: Prepared, samples: Tensor, labels: list[int] | None) -> dict[str, float]:
    train, test = data.source("train"), data.source("test")
    shown = as_shown(samples, data.spec)
    real = _encoded(features, train.batch(_REFERENCE_SEED, 0, min(len(train), _REFERENCE_ROWS)).x)
    held_out = _encoded(features, test.take(0, min(len(test), _REFERENCE_ROWS)).x)
    drawn = _encoded(features, shown)
    statistics = FeatureStatistics.of(real)
    equal = min(len(real), len(drawn))
    scores = manifold_scores(real[:equal], drawn[:equal])
    metrics = {
        "fd_local": frechet_distance(statistics, FeatureStatistics.of(drawn)),
        "fd_local_test": frechet_distance(statistics, FeatureStatistics.of(held_out)),
        "kd_local": kernel_distance(real, drawn),
        "precision": scores.precision,
        "recall": scores.recall,
        "density": scores.density,
        "coverage": scores.coverage,
        "pairwise_distance": mean_pairwise_distance(drawn[:_VENDI_ROWS]),
        "vendi": vendi_score(drawn[:_VENDI_ROWS]),
    }
    if labels is not None:
        metrics["distance_within_classes"] = mean_distance_within_classes(drawn, torch.tensor(labels))
    return metrics | _by_class(features, shown, labels)


def _by_class(features: Model, shown: Tensor, labels: list[int] | None) -> dict[str, float]:
    classify = features.tasks.classify
    if classify is None:
        return {}
    logits = torch.cat([classify(Batch(part), torch.arange(len(part))) for part in shown.split(_CHUNK)])
    if labels is None:
        return {"classes_covered": float((class_counts(logits) > 0).sum())}
    found = class_accuracy(logits, torch.tensor(labels))
    return {"class_accuracy": found.accuracy, "classes_covered": float(found.covered)}
