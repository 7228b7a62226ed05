"""What the measures on features share: checked feature sets, and their distances block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kinfolk.errors import DataError

BLOCK_ELEMENTS = 2**24  # distances held at once: 128 MiB of float64


def checked(name: str, features: Tensor, least: int = 2) -> Tensor:
    """``features`` in float64, without gradient. (N, D) -> (N, D)

    Raises:
        DataError: it is no matrix of at least ``least`` rows, or holds a value that is not finite.
    """
    if features.dim() != 2 or len(features) < least or not features.shape[1]:
        raise DataError(
            f"{name} must be features of shape (N, D) with N >= {least}, got {tuple(features.shape)}. "
            "Flatten each sample, or draw more of them."
        )
    if bad := int((~features.isfinite().all(1)).sum()):
        raise DataError(
            f"{name}: {bad} of {len(features)} rows hold values that are not finite. "
            "Look at the samples: the model that made them has diverged."
        )
    return features.detach().double()


def checked_pair(reference: Tensor, samples: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two checked feature sets of one space. (N, D), (M, D) -> (N, D), (M, D)

    Raises:
        DataError: either set is unusable, or they differ in D.
    """
    reference, samples = checked("reference", reference, least), checked("samples", samples, least)
    same_space(reference.shape[1], samples.shape[1])
    return reference, samples


def shares(rows: int, weight: Tensor | None) -> Tensor:
    """What each row counts, of 1 in all; without ``weight`` (N,) every row the same. -> (N,) float64

    Raises:
        DataError: ``weight`` is of another length, holds what is no weight, or leaves less than two rows.
    """
    if weight is None:
        return torch.full((rows,), 1 / rows, dtype=torch.float64)
    if weight.shape != (rows,) or not bool((weight.isfinite() & (weight >= 0)).all()) or int((weight > 0).sum()) < 2:
        raise DataError(
            f"weight must be {rows} numbers of 0 or more, two of them above 0. Ask for classes of the data."
        )
    return weight.double() / weight.double().sum()


def same_space(reference_dims: int, sample_dims: int) -> None:
    """Refuse to compare features of different networks.

    Raises:
        DataError: the dimensions differ.
    """
    if reference_dims != sample_dims:
        raise DataError(
            f"reference features have {reference_dims} dimensions, sample features {sample_dims}. "
            "Compute both with the same network."
        )


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances from a slice of ``x`` to all of ``y``. (N, D), (M, D) -> slice, (n, M)

    Both are moved by the mean of ``y`` first, which changes no distance and keeps the products small.
    """
    centre = y.mean(0)
    x, y = x - centre, y - centre
    rows = max(1, BLOCK_ELEMENTS // len(y))
    for first in range(0, len(x), rows):
        block = slice(first, min(first + rows, len(x)))
        yield block, torch.cdist(x[block], y)
