"""How much of a codebook is in use."""

import torch
from torch import Tensor

from kinfolk.errors import DataError


def _shares(codes: Tensor, size: int) -> Tensor:
    if not codes.numel() or int(codes.min()) < 0 or int(codes.max()) >= size:
        found = f"{int(codes.min())} to {int(codes.max())}" if codes.numel() else "none"
        raise DataError(f"codes must be integers from 0 to {size - 1}, got {found}. The model's latent_spec is wrong.")
    counts = torch.bincount(codes.flatten(), minlength=size).double()
    return counts / counts.sum()


def usage(codes: Tensor, size: int) -> float:
    """Share of the codebook's ``size`` entries that occur in ``codes``, int64 of any shape.

    Raises:
        DataError: there are no codes, or one is not in the codebook.
    """
    return float((_shares(codes, size) > 0).double().mean())


def perplexity(codes: Tensor, size: int) -> float:
    """Effective number of entries in use: exp of the entropy of their frequencies, 1 to ``size``.

    Raises:
        DataError: there are no codes, or one is not in the codebook.
    """
    return float(torch.special.entr(_shares(codes, size)).sum().exp())
