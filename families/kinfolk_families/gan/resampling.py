"""Images to half and to double their size, whatever it is, through a [1, 2, 1] filter. B, C channels, H W pixels."""

import torch
from torch import Tensor, nn


def halving_matrix(n: int) -> Tensor:
    """Filter by [1, 2, 1] / 4 and keep every second of ``n`` pixels; beyond the border is zero. -> (ceil(n/2), n)"""
    distance = (torch.arange(n) - 2 * torch.arange((n + 1) // 2)[:, None]).abs()
    return (2 - distance).clamp(min=0) / 4


class Resample(nn.Module):
    """``rows`` @ x @ ``columns``^T for each channel. (B, C, H, W) -> (B, C, H', W')

    Products with small matrices are on a CPU faster than a convolution, and as differentiable as need be.
    """

    rows: Tensor  # (H', H)
    columns: Tensor  # (W', W)

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')"""
        return self.rows @ (x @ self.columns.T)


def halving(size: tuple[int, int]) -> Resample:
    """Images of (H, W) = ``size`` to half of it, sides rounded up."""
    return Resample(halving_matrix(size[0]), halving_matrix(size[1]))


def doubling(size: tuple[int, int]) -> Resample:
    """Images to (H, W) = ``size`` from half of it, sides rounded up: 4 times ``halving`` transposed."""
    return Resample(2 * halving_matrix(size[0]).T, 2 * halving_matrix(size[1]).T)
