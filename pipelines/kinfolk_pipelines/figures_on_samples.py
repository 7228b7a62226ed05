"""Figures on samples, measured on the features of a local classifier."""

import torch
from torch import Tensor

from kinfolk.contract import Model
from kinfolk.data.source import Source
from kinfolk.judge import as_shown, encoded, judged
from kinfolk.metrics.accuracy import class_accuracy, class_counts
from kinfolk.metrics.diversity import mean_distance_within_classes, mean_pairwise_distance, vendi_score
from kinfolk.metrics.frechet import FeatureStatistics, frechet_distance
from kinfolk.metrics.kernel import kernel_distance
from kinfolk.metrics.manifold import manifold_scores

_VENDI_ROWS = 1000
_REFERENCE_ROWS = 10_000  # of the train split; the kernel distance compares all pairs
_REFERENCE_SEED = 0


@torch.no_grad()
def on_features(
    features: Model, train: Source, test: Source, samples: Tensor, labels: list[int] | None
) -> dict[str, float]:
    """Distances, coverage and diversity of samples (N, *), and whether they are of the classes asked for.

    In the distances each class counts as often as among the real samples, however often it was asked for.
    """
    shown = as_shown(samples, train.spec)
    reference = train.batch(_REFERENCE_SEED, 0, min(len(train), _REFERENCE_ROWS))
    asked = None if labels is None else torch.tensor(labels)
    weight = None if asked is None else _as_often(reference.label, asked)
    real = encoded(features, reference.x)
    held_out = encoded(features, test.take(0, min(len(test), _REFERENCE_ROWS)).x)
    drawn = encoded(features, shown)
    statistics = FeatureStatistics.of(real)
    equal = min(len(real), len(drawn))
    scores = manifold_scores(real[:equal], drawn[:equal])
    metrics = {
        "fd_local": frechet_distance(statistics, FeatureStatistics.of(drawn, weight)),
        "fd_local_test": frechet_distance(statistics, FeatureStatistics.of(held_out)),
        "kd_local": kernel_distance(real, drawn, weight, asked),
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


def _as_often(real: Tensor | None, asked: Tensor) -> Tensor:
    """What each sample counts for its class to count as often as among ``real`` ones. (N,), (M,) int64 -> (M,)"""
    assert real is not None
    classes = int(max(real.max(), asked.max())) + 1
    often, seldom = (torch.bincount(labels, minlength=classes) for labels in (real, asked))
    return (often / seldom)[asked]


def _by_class(features: Model, shown: Tensor, labels: list[int] | None) -> dict[str, float]:
    classify = features.tasks.classify
    if classify is None:
        return {}
    logits = judged(classify, shown)
    if labels is None:
        return {"classes_covered": float((class_counts(logits) > 0).sum())}
    found = class_accuracy(logits, torch.tensor(labels))
    return {"class_accuracy": found.accuracy, "classes_covered": float(found.covered)}
