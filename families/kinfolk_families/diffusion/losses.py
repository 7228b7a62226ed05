"""The denoising loss: how far the denoised estimate is from the clean sample, at random noise levels."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.model import Adapted, Diffusion


def denoising_loss(denoised: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error (EDM eq. 8, over elements too). (B, *), (B, *), (B,) -> ()"""
    return (per_row(weight, x) * (denoised - x).square()).mean()


def hidden(label: Tensor, unknown: int, share: float, generator: Generator) -> Tensor:
    """``label`` with a random ``share`` of it replaced by ``unknown``, so that one network learns both. (B,) -> (B,)

    Source: Ho & Salimans, 2022, algorithm 1, https://arxiv.org/abs/2207.12598.
    """
    drawn = torch.rand(len(label), generator=generator, device=generator.device)
    return torch.where(drawn < share, unknown, label)


def phases(module: Diffusion | Adapted) -> Sequence[Phase]:
    """One phase: the denoiser learns at noise levels its preconditioner draws."""

    def loss(batch: Batch, progress: Progress) -> Loss:
        x, generator = module.learnt(batch.x), progress.generator
        sigma = module.preconditioner.draw(len(x), generator)  # (B,)
        noise = torch.randn(x.shape, generator=generator, device=generator.device)
        label = None
        if module.classes and batch.label is not None:
            label = hidden(batch.label, module.classes, module.config.label_dropout, generator)
        denoised = module(x + per_row(sigma, x) * noise, sigma, label, generator)
        value = denoising_loss(denoised, x, module.preconditioner.weight(sigma))
        return Loss(value)

    return [Phase("denoiser", module, loss, module.config.optimizer)]
