"""Where samples fall among the bins of real data: bins that differ, and bins that are missing.

Source: Richardson and Weiss, 2018, On GANs and GMMs, https://arxiv.org/abs/1805.12462, section 2 (NDB).
Shapes: N samples, D features, K bins.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics.features import checked, distance_blocks, same_space

SCARCE = 0.25  # a bin is missing if samples reach it less than this often, in shares of what the data does


@dataclass(frozen=True, slots=True)
class Bins:
    """Cells around centres, with how many real samples each holds."""

    centres: Tensor  # (K, D) float64
    counts: Tensor  # (K,) int64

    @classmethod
    def around(cls, centres: Tensor, real: Tensor) -> Self:
        """A bin for each centre, holding the real samples that are nearest to it. (K, D), (N, D)

        Raises:
            DataError: values that are not finite, or centres of another D.
        """
        centres, real = checked("centres", centres), checked("real", real)
        same_space(centres.shape[1], real.shape[1])
        return cls(centres, _counts(centres, real))

    def count(self, samples: Tensor) -> Tensor:
        """How many samples fall into each bin. (N, D) -> (K,) int64

        Raises:
            DataError: values that are not finite, or another D.
        """
        samples = checked("samples", samples, least=1)
        same_space(self.centres.shape[1], samples.shape[1])
        return _counts(self.centres, samples)


@dataclass(frozen=True, slots=True)
class BinScores:
    """How the histogram of samples over bins differs from the data's."""

    different: float  # NDB/K: share of bins whose proportions differ significantly; the level itself for equal ones
    js_divergence: float  # nats, between the two histograms, from 0 to log 2
    missing: float  # share of the data that lies in bins the samples have all but lost


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """The centre each row is nearest to. (N, D), (K, D) -> (N,) int64"""
    return torch.cat([distance.argmin(1) for _, distance in distance_blocks(x, centres)])


def _counts(centres: Tensor, x: Tensor) -> Tensor:
    return torch.bincount(nearest_centre(x, centres), minlength=len(centres))


def k_means(x: Tensor, k: int, generator: torch.Generator, rounds: int = 30) -> Tensor:
    """Centres of ``k`` clusters, a function of the CPU ``generator``; an empty cluster keeps its centre. -> (k, D)

    Source: Lloyd, 1982; started as in Arthur and Vassilvitskii, 2007, k-means++.

    Raises:
        DataError: there are fewer different rows than clusters, or a value is not finite.
    """
    x = checked("data", x)
    centres = _spread(x, k, generator)
    for _ in range(rounds):
        cluster = nearest_centre(x, centres)
        counts = torch.bincount(cluster, minlength=k)[:, None]  # (k, 1)
        sums = torch.zeros_like(centres).index_add_(0, cluster, x)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Rows of ``x``, each drawn in proportion to its squared distance from those before. (N, D) -> (k, D)"""
    chosen = [int(torch.randint(len(x), (), generator=generator))]
    squared = x.new_full((len(x),), torch.inf)
    while len(chosen) < k:
        squared = torch.minimum(squared, (x - x[chosen[-1]]).square().sum(1))
        if not bool(squared.any()):
            raise DataError(f"{k} bins of data with {len(chosen)} different rows: use at most {len(chosen)} bins.")
        chosen.append(int(torch.multinomial(squared.cpu(), 1, generator=generator)))
    return x[chosen]


def two_proportion_z(real: Tensor, samples: Tensor) -> Tensor:
    """z of each bin's share of samples against its share of the data, pooled; 0 where neither has any. (K,) -> (K,)

    (q - p) / sqrt(s (1 - s) (1/N + 1/M)), s the share of both together.
    """
    real, samples = real.double(), samples.double()
    n, m = real.sum(), samples.sum()
    p, q, pooled = real / n, samples / m, (real + samples) / (n + m)
    error = (pooled * (1 - pooled) * (1 / n + 1 / m)).sqrt()
    return torch.where(error > 0, (q - p) / error, 0.0)


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Divergence of two distributions in nats, from 0 to log 2: entropy of the mean less the mean entropy. (K,)"""
    entropy = torch.special.entr(torch.stack([(p + q) / 2, p, q])).sum(1)
    return max(0.0, float(entropy[0] - (entropy[1] + entropy[2]) / 2))


def bin_scores(real: Tensor, samples: Tensor, level: float = 0.05) -> BinScores:
    """Both counts of the same bins compared, each bin at significance ``level``. (K,), (K,) int64

    A bin is missing if it is significantly too rare, and more rarely reached than a quarter of the data's share.

    Raises:
        DataError: one of the two holds nothing.
    """
    if not bool(real.sum() > 0) or not bool(samples.sum() > 0):
        raise DataError(f"Bins hold {int(real.sum())} real and {int(samples.sum())} samples: each needs some.")
    z = two_proportion_z(real, samples)
    critical = float(torch.special.ndtri(torch.tensor(1 - level / 2, dtype=torch.float64)))
    p, q = real.double() / real.sum(), samples.double() / samples.sum()
    missing = (z < -critical) & (q < SCARCE * p)
    return BinScores(float((z.abs() > critical).double().mean()), jensen_shannon(p, q), float(p[missing].sum()))
