"""Samples side by side, so that the critic sees whether they differ.

Source: Lin et al., 2018, PacGAN, https://arxiv.org/abs/1712.04086. B samples, m of them in each of P packs.
"""

from torch import Tensor


def packed(x: Tensor, size: int) -> Tensor:
    """``size`` neighbours as the channels of one. (B, C, *) -> (P, m*C, *)"""
    return x.unflatten(0, (-1, size)).flatten(1, 2)


def unpacked(packs: Tensor, size: int) -> Tensor:
    """The samples again. (P, m*C, *) -> (B, C, *)"""
    return packs.unflatten(1, (size, -1)).flatten(0, 1)
