"""Mode collapse on data whose modes are known: mixtures of Gaussians, or classes counted by a classifier.

Source: Lin et al., 2018, https://arxiv.org/abs/1712.04086, section 4.1 and its published code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics.features import checked_pair

HIGH_QUALITY_STD = 3.0  # a sample is of high quality within this many standard deviations of its nearest mode


@dataclass(frozen=True, slots=True)
class ModeScores:
    """What a sampler keeps of a mixture's modes."""

    captured: int  # modes that hold a high-quality sample
    modes: int
    high_quality: float  # share of samples
    reverse_kl: float | None  # nats, of the high-quality samples' modes; None where there are none
    reverse_kl_floor: float | None  # what an ideal sampler scores on as many samples
    spread: float | None  # root mean square distance of high-quality samples to their mode, in shares of its own


@dataclass(frozen=True, slots=True)
class ClassModes:
    """What a sampler keeps of classes that are equally likely in the data."""

    captured: int  # classes that a sample was recognised as
    modes: int
    kl: float  # nats, KL(histogram || uniform)
    kl_floor: float  # what an ideal sampler scores on as many samples


def histogram_entropy(counts: Tensor) -> float:
    """Entropy of a histogram's shares in nats, from 0 to log K. (K,)

    Raises:
        DataError: there are no counts.
    """
    if not bool(counts.sum() > 0):
        raise DataError(f"A histogram of {len(counts)} modes holds no sample: draw some first.")
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


def kl_to_uniform(counts: Tensor) -> float:
    """KL(histogram || uniform) in nats, from 0 to log K. (K,)

    Raises:
        DataError: there are no counts.
    """
    return math.log(len(counts)) - histogram_entropy(counts)


def kl_floor(modes: int, samples: int) -> float:
    """Expected ``kl_to_uniform`` of an ideal sampler, (K - 1) / (2 N) to first order: never compare across N."""
    return (modes - 1) / (2 * samples)


def class_modes(counts: Tensor) -> ClassModes:
    """Captured classes and KL to uniform from how often each was recognised; the papers score 26,000 samples. (K,)

    Raises:
        DataError: there are no counts.
    """
    kl, floor = kl_to_uniform(counts), kl_floor(len(counts), int(counts.sum()))
    return ClassModes(int((counts > 0).sum()), len(counts), kl, floor)


def mode_scores(samples: Tensor, centres: Tensor, std: float) -> ModeScores:
    """Captured modes, share of high quality and reverse KL of a mixture of round Gaussians. (N, D), (K, D)

    A sample belongs to the mode nearest to it, and counts there if it is nearer than 3 standard deviations.
    The papers score 2,500 samples.

    Raises:
        DataError: values that are not finite, or centres of another D.
    """
    centres, samples = checked_pair(centres, samples, least=1)
    distance, mode = torch.cdist(samples, centres, compute_mode="donot_use_mm_for_euclid_dist").min(1)  # (N,), (N,)
    good = distance < HIGH_QUALITY_STD * std
    counts = torch.bincount(mode[good], minlength=len(centres))  # (K,)
    counted = int(counts.sum())
    own = std * _truncated_rms(samples.shape[1], HIGH_QUALITY_STD)
    return ModeScores(
        captured=int((counts > 0).sum()),
        modes=len(centres),
        high_quality=counted / len(samples),
        reverse_kl=kl_to_uniform(counts) if counted else None,
        reverse_kl_floor=kl_floor(len(centres), counted) if counted else None,
        spread=float(distance[good].square().mean().sqrt()) / own if counted else None,
    )


def _truncated_rms(dims: int, radius: float) -> float:
    """Root mean square length of a standard normal vector, given that it is shorter than ``radius``.

    E[r^2; r < R] = D P(chi^2 of D + 2 < R^2), as r^2 raises the degrees of freedom of its own density by 2.
    """
    within = [torch.special.gammainc(torch.tensor(k / 2), torch.tensor(radius**2 / 2)) for k in (dims, dims + 2)]
    return math.sqrt(dims * float(within[1] / within[0]))
