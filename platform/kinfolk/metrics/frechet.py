"""Frechet distance between Gaussian fits of two feature sets.

With features of a locally trained network it is called ``fd_local``; FID is the same formula on features of one
particular Inception network, and the two numbers cannot be compared. The value falls as N grows: compare at equal N.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kinfolk.metrics.features import checked, same_space, shares


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """A Gaussian fit of features, small enough to keep for a reference set."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64, free of bias where rows are drawn independently
    count: int  # N

    @classmethod
    def of(cls, features: Tensor, weight: Tensor | None = None) -> Self:
        """Mean and covariance of ``features``, of which each row counts its ``weight``, or 1. (N, D), (N,)

        Raises:
            DataError: fewer than two rows, a value that is not finite, or weights that are none.
        """
        features = checked("features", features)
        share = shares(len(features), weight).to(features.device)
        mean = share @ features
        centred = features - mean
        return cls(mean, centred.T @ (share[:, None] * centred) / (1 - share.square().sum()), len(features))


def _root(covariance: Tensor) -> Tensor:
    """A matrix R with R R^T = covariance; directions without variance get none. (D, D) -> (D, D)"""
    variance, axes = torch.linalg.eigh(covariance)
    tolerance = variance[-1] * len(variance) * torch.finfo(variance.dtype).eps  # that of torch.linalg.matrix_rank
    return axes * torch.where(variance > tolerance, variance, 0.0).sqrt()


def frechet_distance(reference: FeatureStatistics, samples: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared feature units.

    tr (C1 C2)^(1/2) is the sum of singular values of R1^T R2 with C = R R^T, which stays real and finite for singular
    covariances. Source: Dowson and Landau, 1982, https://doi.org/10.1016/0047-259X(82)90077-X; as a score: Heusel et
    al., 2017, https://arxiv.org/abs/1706.08500.

    Raises:
        DataError: the two were fitted to features of different dimension.
    """
    same_space(len(reference.mean), len(samples.mean))
    offset = (reference.mean - samples.mean).square().sum()
    spread = reference.covariance.trace() + samples.covariance.trace()
    shared = torch.linalg.svdvals(_root(reference.covariance).T @ _root(samples.covariance)).sum()
    return max(0.0, float(offset + spread - 2 * shared))
