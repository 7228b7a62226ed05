"""Kernel distance: squared maximum mean discrepancy of features under a cubic kernel, free of bias at every N.

With Inception features it is KID; with features of a local network the number is ``kd_local``.
Source: Binkowski et al., 2018, https://arxiv.org/abs/1801.01401; estimator: Gretton et al., 2012, lemma 6.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import ConfigError
from kinfolk.metrics.features import BLOCK_ELEMENTS, checked_pair, shares


@dataclass(frozen=True, slots=True)
class SubsetEstimate:
    """A figure estimated on random subsets."""

    mean: float
    std: float  # between subsets, divided by their number
    subsets: int
    subset_size: int


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(<x, y> / D + 1)^3, the kernel of KID. (N, D), (M, D) -> (N, M)"""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _kernel_sum(x: Tensor, of_x: Tensor, y: Tensor, of_y: Tensor) -> Tensor:
    """Kernel times shares (N,), (M,), summed over all pairs of a row of x and one of y."""
    rows = max(1, BLOCK_ELEMENTS // len(y))
    parts = zip(x.split(rows), of_x.split(rows), strict=True)
    return torch.stack([share @ cubic_kernel(part, y) @ of_y for part, share in parts]).sum()


def _of_other_rows(x: Tensor, of_x: Tensor) -> Tensor:
    """Sum of kernel times shares over pairs of different rows, as large as if a row paired with itself like any."""
    diagonal = of_x.square() @ (x.square().sum(1) / x.shape[1] + 1).pow(3)
    whole = of_x.sum().square()
    return (_kernel_sum(x, of_x, x, of_x) - diagonal) * whole / (whole - of_x.square().sum())


def _of_strata(x: Tensor, of_x: Tensor, stratum: Tensor) -> Tensor:
    """The same of rows that were drawn so many of each stratum: within one, pairs of different rows stand for all."""
    total = _kernel_sum(x, of_x, x, of_x)
    for rows in (stratum == each for each in stratum.unique()):
        if int((of_x[rows] > 0).sum()) > 1:
            total += _of_other_rows(x[rows], of_x[rows]) - _kernel_sum(x[rows], of_x[rows], x[rows], of_x[rows])
    return total


def kernel_distance(
    reference: Tensor, samples: Tensor, weight: Tensor | None = None, stratum: Tensor | None = None
) -> float:
    """Unbiased squared MMD over all pairs; zero on average when the two agree, so it may be negative. (N, D), (M, D)

    Each sample counts its ``weight`` (M,), or 1. ``stratum`` (M,) int64 is what a number of samples was asked for each
    of, such as a class: two samples or more of each, or the estimate is biased.

    Raises:
        DataError: fewer than two rows, values that are not finite, another D, or weights that are none.
    """
    x, y = checked_pair(reference, samples)
    of_x, of_y = shares(len(x), None).to(x.device), shares(len(y), weight).to(y.device)
    among_y = _of_other_rows(y, of_y) if stratum is None else _of_strata(y, of_y, stratum.to(y.device))
    return float(_of_other_rows(x, of_x) + among_y - 2 * _kernel_sum(x, of_x, y, of_y))


def kernel_distance_on_subsets(
    reference: Tensor, samples: Tensor, generator: torch.Generator, subsets: int = 100, subset_size: int = 1000
) -> SubsetEstimate:
    """Mean and spread of ``kernel_distance`` between random subsets, drawn without replacement. (N, D), (M, D)

    The defaults are those of Binkowski et al.; ``generator`` is a CPU generator.

    Raises:
        ConfigError: a subset would be larger than a set, or smaller than two.
        DataError: values that are not finite, or another D.
    """
    x, y = checked_pair(reference, samples)
    if subsets < 1 or not 2 <= subset_size <= min(len(x), len(y)):
        raise ConfigError(
            f"subsets={subsets} of subset_size={subset_size} cannot be drawn from {len(x)} reference and {len(y)} "
            f"sample rows. Use at least one subset of 2 to {min(len(x), len(y))} rows."
        )

    def draw(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:subset_size].to(rows.device)]

    values = torch.tensor([kernel_distance(draw(x), draw(y)) for _ in range(subsets)], dtype=torch.float64)
    return SubsetEstimate(float(values.mean()), float(values.std(correction=0)), subsets, subset_size)
