"""Denoisers that wrap a denoiser: classifier-free guidance, a range to stay in, elements that are known.

R rows, ``*`` the data shape.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kinfolk_families._shared.noise import per_row

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (R, *), sigma (R,), label (R,) -> estimate of x (R, *)


class Guidance(NamedTuple):
    """How strongly each row is guided, and at which noise levels; (R,) each."""

    weight: Tensor  # 1: not at all
    low: Tensor  # guided above this sigma
    high: Tensor  # and up to this one

    def active(self, sigma: Tensor) -> Tensor:
        """Which rows are guided at ``sigma``. (R,) -> (R,) bool"""
        return (self.weight != 1) & (self.low < sigma) & (sigma <= self.high)


def guided(denoise: Denoiser, guidance: Guidance, unknown: int) -> Denoiser:
    """Classifier-free guidance, ``D_unknown + weight * (D_label - D_unknown)``, in the rows it is active in.

    They are evaluated twice, in the same call as all others. Within an interval of noise levels guidance keeps the
    diversity it would take at high noise, and costs nothing where it changes nothing, at low noise.
    Sources: Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598 (there w + 1 is what ``weight`` is here);
    Kynkaanniemi et al., 2024, eq. 5, https://arxiv.org/abs/2404.07724.
    """

    def denoise_guided(x_t: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        (rows,) = guidance.active(sigma).nonzero(as_tuple=True)
        if not len(rows):
            return denoise(x_t, sigma, label)
        labels = torch.cat([label, torch.full_like(rows, unknown)])
        both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([sigma, sigma[rows]]), labels)
        denoised, without = both.split([len(x_t), len(rows)])
        lifted = without + per_row(guidance.weight[rows], x_t) * (denoised[rows] - without)
        return denoised.index_copy(0, rows, lifted)

    return denoise_guided


def clamped(denoise: Denoiser, clamp: Tensor) -> Denoiser:
    """The estimate kept in [-1, 1] in the rows where ``clamp`` (R,) bool is set."""

    def denoise_clamped(x_t: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        denoised = denoise(x_t, sigma, label)
        return torch.where(per_row(clamp, x_t), denoised.clamp(-1, 1), denoised)

    return denoise_clamped


def completed(denoise: Denoiser, given: Tensor, mask: Tensor) -> Denoiser:
    """The estimate with what is ``given`` (R, *) in place where ``mask`` (R, *) bool is set.

    A solver that starts from ``given`` plus noise then holds ``given`` plus noise of its own level at every step: the
    known part of RePaint, algorithm 1, https://arxiv.org/abs/2201.09865.
    """

    def denoise_completed(x_t: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return torch.where(mask, given.to(x_t.dtype), denoise(x_t, sigma, label))

    return denoise_completed
