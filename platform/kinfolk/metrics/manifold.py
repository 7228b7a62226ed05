"""Precision, recall, density and coverage: does each set lie on the other's manifold of nearest-neighbour balls?

All four depend on N and M: compare at equal N, with as many samples as references.
Source: Kynkaanniemi et al., 2019, https://arxiv.org/abs/1904.06991 (precision, recall); Naeem et al., 2020,
https://arxiv.org/abs/2002.09797 (density, coverage).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import ConfigError
from kinfolk.metrics.features import checked_pair, distance_blocks


@dataclass(frozen=True, slots=True)
class ManifoldScores:
    """Shares of points inside the other set's balls; density is a mean count and may exceed 1."""

    precision: float  # samples that lie in a ball of the reference
    recall: float  # references that lie in a ball of the samples
    density: float  # reference balls a sample lies in, over k
    coverage: float  # reference balls that hold a sample


def neighbour_radius(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other point. (N, D) -> (N,)"""
    radius = x.new_empty(len(x))
    for block, distance in distance_blocks(x, x):
        row = torch.arange(len(distance), device=x.device)
        distance[row, row + block.start] = torch.inf
        radius[block] = distance.kthvalue(k, dim=1).values
    return radius


def manifold_scores(reference: Tensor, samples: Tensor, k: int = 5) -> ManifoldScores:
    """The four scores with balls that reach to the k-th neighbour. (N, D), (M, D)

    Raises:
        ConfigError: ``k`` is not below the size of both sets.
        DataError: values that are not finite, or another D.
    """
    x, y = checked_pair(reference, samples)
    if not 1 <= k < min(len(x), len(y)):
        raise ConfigError(
            f"k={k} neighbours of {len(x)} reference and {len(y)} sample rows: use 1 to {min(len(x), len(y)) - 1}."
        )
    x_radius, y_radius = neighbour_radius(x, k), neighbour_radius(y, k)
    balls = torch.zeros(len(y), device=x.device)  # (M,) reference balls around each sample
    recalled, covered = 0, 0
    for block, distance in distance_blocks(x, y):  # (n, M)
        in_reference = distance < x_radius[block, None]
        balls += in_reference.sum(0)
        covered += int(in_reference.any(1).sum())
        recalled += int((distance < y_radius).any(1).sum())
    return ManifoldScores(
        precision=float((balls > 0).double().mean()),
        recall=recalled / len(x),
        density=float(balls.double().mean()) / k,
        coverage=covered / len(x),
    )
