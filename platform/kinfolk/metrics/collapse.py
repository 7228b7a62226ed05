"""Whether a model has lost part of the data: measures of a batch of samples against what real data looks like.

All are taken in one space of features, (N, D): samples as they are, flattened, or what a feature network says of them.
"""

from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from kinfolk.errors import ConfigError
from kinfolk.metrics.bins import Bins, bin_scores, k_means
from kinfolk.metrics.diversity import mean_pairwise_distance
from kinfolk.metrics.duplicates import pair_distances, support_estimate
from kinfolk.metrics.features import checked
from kinfolk.metrics.modes import histogram_entropy, mode_scores

ROWS = 1000  # of which all pairs are compared
_MOST_BINS = 100  # of Richardson and Weiss, 2018
_ROWS_PER_BIN = 50
_PARTS = 5  # disjoint sets of real rows that the distance of duplicates is the median of


@dataclass(frozen=True, slots=True)
class CollapseReference:
    """Real data as a batch of samples is held against it; built once."""

    bins: Bins  # clusters of the data, or its known modes
    pairwise_distance: float  # mean over pairs of real samples
    duplicate_distance: float  # of the closest two among ``ROWS`` real samples
    mode_std: float | None  # of the Gaussian modes that the bins are centred on; None: clusters


@dataclass(frozen=True, slots=True)
class CollapseMeasures:
    """How much of the data a batch of samples covers, and how different its samples are."""

    samples: int
    missing: float  # share of the data in bins that the samples have all but lost; 0 is best
    bins_different: float  # NDB/K; about 0.05 for real data
    js_divergence: float  # nats, of the histograms over bins
    effective_bins: float  # exp of the entropy of samples over bins, in shares of the data's own
    distance_ratio: float  # mean distance of two samples, in shares of the data's own; 0: all the same
    support: float  # lower estimate of how many different samples there are, by near duplicates
    modes: float | None = None  # share of the known modes that hold a sample of high quality
    high_quality: float | None = None  # share of samples near a known mode


def reference_of_modes(real: Tensor, centres: Tensor, std: float) -> CollapseReference:
    """Data whose modes are round Gaussians of known centres: a bin for each. (N, D), (K, D)

    Raises:
        DataError: values that are not finite, or centres of another D.
    """
    return _reference(real, Bins.around(centres, real), std)


def reference_of_clusters(real: Tensor, generator: torch.Generator, most: int = _MOST_BINS) -> CollapseReference:
    """Data of unknown modes: bins by k-means, a function of the CPU ``generator``. (N, D)

    There is a bin for 50 rows, and no more than ``most``, by default the 100 of Richardson and Weiss; a batch of
    samples should hold at least ten for each bin, or none can be found missing.

    Raises:
        ConfigError: there would be fewer than two bins.
        DataError: there are fewer different rows than bins, or a value is not finite.
    """
    count = min(most, len(real) // _ROWS_PER_BIN)
    if count < 2:
        raise ConfigError(
            f"{len(real)} real rows make {count} of at most {most} bins: use at least 2 bins, and {_ROWS_PER_BIN} rows "
            "for each."
        )
    return _reference(real, Bins.around(k_means(real, count, generator), real), None)


def _reference(real: Tensor, bins: Bins, std: float | None) -> CollapseReference:
    real = checked("real", real)
    parts = [part for part in islice(real.split(ROWS), _PARTS) if len(part) == min(ROWS, len(real))]
    closest = median(float(pair_distances(part).min()) for part in parts)
    return CollapseReference(bins, mean_pairwise_distance(real[:ROWS]), closest, std)


def collapse_measures(reference: CollapseReference, samples: Tensor) -> CollapseMeasures:
    """Every measure of a batch of samples; pairs are compared among its first ``ROWS``. (N, D)

    Raises:
        DataError: fewer than two rows, a value that is not finite, or another D than the data's.
    """
    counts = reference.bins.count(samples)
    compared = bin_scores(reference.bins.counts, counts)
    entropy = histogram_entropy(counts) - histogram_entropy(reference.bins.counts)
    distances = pair_distances(samples[:ROWS])
    pairs = int((distances <= reference.duplicate_distance).sum())
    modes, high_quality = _modes(reference, samples)
    return CollapseMeasures(
        samples=len(samples),
        missing=compared.missing,
        bins_different=compared.different,
        js_divergence=compared.js_divergence,
        effective_bins=float(torch.tensor(entropy).exp()),
        distance_ratio=float(distances.mean()) / reference.pairwise_distance,
        support=support_estimate(pairs, min(len(samples), ROWS)),
        modes=modes,
        high_quality=high_quality,
    )


def _modes(reference: CollapseReference, samples: Tensor) -> tuple[float | None, float | None]:
    if reference.mode_std is None:
        return None, None
    scores = mode_scores(samples, reference.bins.centres, reference.mode_std)
    return scores.captured / scores.modes, scores.high_quality
