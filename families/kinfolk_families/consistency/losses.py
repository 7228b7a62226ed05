"""Consistency losses: how far f is from itself at two levels of one path.

B batch, D elements of a sample. The target, f at the lower level, is held constant in every one of them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk.rng import generator as generator_of
from kinfolk_families._shared.noise import per_row
from kinfolk_families.consistency.config import DistillationConfig, EasyTuningConfig, ImprovedTrainingConfig
from kinfolk_families.consistency.levels import (
    Pair,
    draw_distillation_pair,
    draw_training_pair,
    draw_tuning_pair,
    interval_count,
    tuning_stage,
)
from kinfolk_families.consistency.model import Consistency

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x_t (B, *), sigma (B,), label (B,) -> (B, *)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c: |d|^2 / 2c where d is small, |d| where it is large or c is 0. (B, *) -> (B,)

    Source: Song and Dhariwal, 2023 (iCT), section 3.3, https://arxiv.org/abs/2310.14189.
    """
    flat = difference.flatten(1)
    corner = torch.cat([flat, flat.new_full((len(flat), 1), c)], dim=1)
    return torch.linalg.vector_norm(corner, dim=1) - c  # unlike a root of squares, it has a gradient at 0


def huber_constant(dims: int) -> float:
    """c = 0.00054 sqrt(D) (iCT, section 3.3)."""
    return 0.00054 * math.sqrt(dims)


def heun(denoise: Denoise, x_t: Tensor, pair: Pair, label: Tensor | None) -> Tensor:
    """A step of the probability flow from ``pair.sigma`` to ``pair.after`` > 0. (B, *) -> (B, *)

    Source: Karras et al., 2022 (EDM), algorithm 1, https://arxiv.org/abs/2206.00364.
    """
    sigma, after = (per_row(level, x_t) for level in pair)
    slope = (x_t - denoise(x_t, pair.sigma, label)) / sigma
    euler = x_t + (after - sigma) * slope
    slope_after = (euler - denoise(euler, pair.after, label)) / after
    return x_t + (after - sigma) * (slope + slope_after) / 2


def _huber(module: Consistency) -> float:
    given = module.config.objective.huber
    return huber_constant(module.spec.dims) if given is None else given


def masks(seed: int | None, x: Tensor) -> Generator | None:
    """A generator of dropout on the device of ``x``: all of one seed drop the same elements. None drops nothing."""
    return None if seed is None else generator_of(seed, "dropout", device=x.device)


def training_loss(module: Consistency, batch: Batch, noise: Tensor, pair: Pair, seed: int | None = None) -> Loss:
    """Distance of f at two levels of x + sigma noise, over the gap: the loss of ECT and iCT. noise (B, *)

    ``seed`` is of the dropout that both share. Logs ``distance``, which does not divide by the gap.
    Source: Song and Dhariwal, 2023 (iCT), Table 1; Geng et al., 2024 (ECT), eq. 13.
    """
    x, label = batch.x, batch.label
    student = module(x + per_row(pair.sigma, x) * noise, pair.sigma, label, masks(seed, x))
    with torch.no_grad():
        target = module(x + per_row(pair.after, x) * noise, pair.after, label, masks(seed, x))
    distance = pseudo_huber(student - target, _huber(module))  # (B,)
    return Loss((distance / (pair.sigma - pair.after)).mean(), {"distance": distance.detach().mean()})


def distillation_loss(module: Consistency, batch: Batch, noise: Tensor, pair: Pair, seed: int | None = None) -> Loss:
    """Distance of f at x + sigma noise to the target network's f where the teacher's step leads. noise (B, *)

    ``seed`` is of the dropout that student and target share; the teacher has none.
    Source: Song et al., 2023 (CD), eq. 7 and algorithm 2, https://arxiv.org/abs/2303.01469, with weight 1.
    """
    assert module.teacher is not None
    teach = module.teacher.tasks.denoise
    assert teach is not None
    x, label = batch.x, batch.label
    x_t = x + per_row(pair.sigma, x) * noise
    with torch.no_grad():
        x_after = heun(teach, x_t, pair, label if module.classes else None)
        target = module.at_target(x_after, pair.after, label, masks(seed, x))
    student = module(x_t, pair.sigma, label, masks(seed, x))
    return Loss(pseudo_huber(student - target, _huber(module)).mean())


def draw_pair(module: Consistency, count: int, progress: Progress) -> Pair:
    """Levels to train at, as the objective and the samples seen say. -> (count,) each"""
    low, high = module.config.sigma_min, module.config.sigma_max
    seen, generator = progress.samples_seen, progress.generator
    match module.config.objective:
        case EasyTuningConfig() as ect:
            return draw_tuning_pair(count, tuning_stage(seen, ect), ect, low, high, generator)
        case ImprovedTrainingConfig() as ict:
            return draw_training_pair(count, interval_count(seen, ict), ict, low, high, generator)
        case DistillationConfig() as distillation:
            return draw_distillation_pair(count, distillation, low, high, generator)


def _loss(module: Consistency, batch: Batch, progress: Progress) -> Loss:
    generator = progress.generator
    pair = draw_pair(module, len(batch), progress)
    noise = torch.randn(batch.x.shape, generator=generator, device=generator.device)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device)) if module.dropout else None
    loss = training_loss if module.target is None else distillation_loss
    return loss(module, batch, noise, pair, seed)


def follow(module: Consistency, progress: Progress) -> None:  # noqa: ARG001
    """The target network's step towards the student that has just been updated."""
    objective = module.config.objective
    assert isinstance(objective, DistillationConfig)
    assert module.target is not None
    module.target.update(module.denoiser, objective.target_decay)


def phases(module: Consistency) -> Sequence[Phase]:
    """One phase: f learns to agree with itself; the target network of distillation follows after each step."""
    after = None if module.target is None else partial(follow, module)
    return [Phase("student", module, partial(_loss, module), module.config.optimizer, after=after)]
