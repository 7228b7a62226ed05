"""Pairs of noise levels a model is trained at, and how they close in as training goes on.

B pairs, N levels; schedules are functions of the samples seen.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from kinfolk_families._shared.noise import log_normal, rho_level
from kinfolk_families.consistency.config import DistillationConfig, EasyTuningConfig, ImprovedTrainingConfig


class Pair(NamedTuple):
    """Two levels of one path, (B,) each."""

    sigma: Tensor
    after: Tensor  # the lower one, nearer to the data


def tuning_stage(samples_seen: int, config: EasyTuningConfig) -> int:
    """The stage of ECT, from 0."""
    return min(samples_seen // config.stage_samples, config.stages - 1)


def tuning_level(t: Tensor, stage: int, config: EasyTuningConfig) -> Tensor:
    """r(t) = t max(0, 1 - (1 + k sigmoid(-b t)) / q^(stage + 1)). (B,) -> (B,)

    Where r is 0 the target is the clean sample: plain diffusion.
    Source: Geng et al., 2024 (ECT), the mapping function, https://arxiv.org/abs/2406.14548.
    """
    apart = (1 + config.k * torch.sigmoid(-config.b * t)) / config.q ** (stage + 1)
    return t * (1 - apart).clamp(min=0)


def draw_tuning_pair(
    count: int, stage: int, config: EasyTuningConfig, sigma_min: float, sigma_max: float, generator: Generator
) -> Pair:
    """Levels t, log-normal, with r(t). -> (count,) each, on the generator's device

    t stays below sigma_max and above 2 sigma_min: nearer to the end of the path (1.35 % of draws by default) the gap
    would drown in rounding. r ends at sigma_min, where the target is x + sigma_min noise and the loss that of plain
    diffusion at t.
    """
    t = log_normal(config.p_mean, config.p_std, count, generator).clamp(2 * sigma_min, sigma_max)
    return Pair(t, tuning_level(t, stage, config).clamp(min=sigma_min))


def interval_count(samples_seen: int, config: ImprovedTrainingConfig) -> int:
    """N(k) - 1, the intervals between iCT's levels: s_0, doubled every K' samples up to s_1.

    Source: Song and Dhariwal, 2023 (iCT), section 3.4, https://arxiv.org/abs/2310.14189, where k and K count steps.
    """
    first, last = config.first_intervals, config.last_intervals
    every = max(int(config.curriculum_samples / (math.log2(last // first) + 1)), 1)  # K'
    doublings = min(samples_seen // every, last.bit_length())
    return min(first * 2**doublings, last)


def noise_levels(count: int, rho: float, sigma_min: float, sigma_max: float) -> Tensor:
    """``count`` levels from sigma_min up to sigma_max, evenly spaced in their rho-th root. -> (N,) float64

    Source: Karras et al., 2022 (EDM), eq. 5, https://arxiv.org/abs/2206.00364.
    """
    return rho_level(torch.linspace(1, 0, count, dtype=torch.float64), rho, sigma_min, sigma_max)


def interval_probabilities(sigmas: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Share of ln(sigma) ~ N(p_mean, p_std^2) between neighbouring levels, of all between first and last.

    (N,) float64 -> (N - 1,)
    Source: Song and Dhariwal, 2023 (iCT), section 3.5, https://arxiv.org/abs/2310.14189.
    """
    below = torch.erf((sigmas.log() - p_mean) / (math.sqrt(2) * p_std))  # twice the share below, less 1
    share = below.diff()
    return share / share.sum()


def draw_neighbours(probabilities: Tensor, sigmas: Tensor, count: int, generator: Generator) -> Pair:
    """Neighbouring levels, each interval as likely as said. (N - 1,), (N,) -> (count,) each, float32"""
    device = generator.device
    index = torch.multinomial(probabilities.to(device), count, replacement=True, generator=generator)
    levels = sigmas.float().to(device)
    return Pair(levels[index + 1], levels[index])


def draw_training_pair(
    count: int, intervals: int, config: ImprovedTrainingConfig, sigma_min: float, sigma_max: float, generator: Generator
) -> Pair:
    """Neighbouring levels of iCT, drawn by its log-normal shares. -> (count,) each"""
    sigmas = noise_levels(intervals + 1, config.rho, sigma_min, sigma_max)
    return draw_neighbours(interval_probabilities(sigmas, config.p_mean, config.p_std), sigmas, count, generator)


def draw_distillation_pair(
    count: int, config: DistillationConfig, sigma_min: float, sigma_max: float, generator: Generator
) -> Pair:
    """Neighbouring levels of CD, all equally likely. -> (count,) each"""
    sigmas = noise_levels(config.levels, config.rho, sigma_min, sigma_max)
    return draw_neighbours(torch.ones(config.levels - 1), sigmas, count, generator)
