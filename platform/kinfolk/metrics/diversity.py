"""How different the samples of one set are from each other."""

import torch
from torch import Tensor, nn

from kinfolk.errors import DataError
from kinfolk.metrics.features import checked, distance_blocks


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance over all pairs of different rows; 0 for a collapsed set. (N, D)

    Raises:
        DataError: fewer than two rows, or a value that is not finite.
    """
    x = checked("features", features)
    total = sum(float(distance.sum()) for _, distance in distance_blocks(x, x))
    return total / (len(x) * (len(x) - 1))


def mean_distance_within_classes(features: Tensor, label: Tensor) -> float:
    """Mean over classes of the mean distance inside the class; classes of one row say nothing. (N, D), (N,)

    A conditional model that draws one picture a class is diverse over all rows and scores 0 here.

    Raises:
        DataError: label and features differ in N, or no class has two rows.
    """
    if label.shape != features.shape[:1]:
        raise DataError(f"label has shape {tuple(label.shape)}, want one for each of {len(features)} feature rows.")
    groups = [features[label == value] for value in label.unique()]
    spreads = [mean_pairwise_distance(group) for group in groups if len(group) > 1]
    if not spreads:
        raise DataError(f"No class has two of the {len(features)} samples. Draw more samples.")
    return sum(spreads) / len(spreads)


def vendi_score(features: Tensor) -> float:
    """Effective number of different samples under cosine similarity, from 1 to min(N, D). (N, D)

    The exponential of the entropy of the eigenvalues of K / N, which are those of X^T X / N for rows X of length 1.
    Source: Friedman and Dieng, 2023, https://arxiv.org/abs/2210.02410.

    Raises:
        DataError: a value that is not finite, or a row of zeros, which has no direction.
    """
    x = checked("features", features, least=1)
    if not bool(x.any(1).all()):
        raise DataError("features hold a row of zeros, which has no cosine similarity. Look at the feature network.")
    unit = nn.functional.normalize(x, dim=1)
    gram = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit
    weight = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return float(torch.special.entr(weight).sum().exp())
