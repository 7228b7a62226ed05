import math

import pytest
import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics.modes import class_modes, histogram_entropy, kl_floor, kl_to_uniform, mode_scores
from kinfolk.rng import generator

ANGLE = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
RING = torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)  # (8, 2)
STD = 0.01


def ring_samples(rows: int, modes: int, seed: int) -> Tensor:
    mode = torch.randint(modes, (rows,), generator=generator(seed, "mode"))
    return RING[mode] + STD * torch.randn(rows, 2, generator=generator(seed, "noise"), dtype=torch.float64)


def test_an_ideal_sampler_keeps_all_modes_at_the_floor() -> None:
    scores = [mode_scores(ring_samples(2500, 8, seed), RING, STD) for seed in range(40)]
    assert all(score.captured == score.modes == 8 for score in scores)
    # In two dimensions a share of exp(-3^2 / 2) lies beyond three standard deviations.
    quality = sum(score.high_quality for score in scores) / 40
    assert quality == pytest.approx(1 - math.exp(-4.5), abs=0.002)
    divergence = sum(score.reverse_kl or 0 for score in scores) / 40
    assert divergence == pytest.approx(kl_floor(8, 2500), rel=0.35)
    assert scores[0].reverse_kl_floor == pytest.approx(7 / (2 * scores[0].high_quality * 2500))


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_spread_is_one_of_the_data_itself_and_shrinks_with_the_modes(dims: int) -> None:
    centres = 100.0 * torch.eye(dims, dtype=torch.float64)[:1].repeat(2, 1) * torch.tensor([[1.0], [-1.0]])
    noise = torch.randn(200_000, dims, generator=generator("spread", dims), dtype=torch.float64)
    samples = centres[torch.arange(200_000) % 2] + STD * noise
    assert mode_scores(samples, centres, STD).spread == pytest.approx(1, abs=0.01)
    near = noise.norm(dim=1) < 3
    shrunk = samples[near] - 0.75 * STD * noise[near]
    assert mode_scores(shrunk, centres, STD).spread == pytest.approx(0.25, abs=0.003)
    assert mode_scores(centres, centres, STD).spread == 0


def test_half_the_modes_cost_log_two() -> None:
    scores = mode_scores(ring_samples(50_000, 4, 0), RING, STD)
    assert scores.captured == 4
    assert scores.reverse_kl == pytest.approx(math.log(2), abs=1e-3)


def test_only_high_quality_samples_count_for_a_mode() -> None:
    inside, outside = 2.99 * STD, 3.01 * STD
    samples = torch.stack([RING[0], RING[0], RING[1], RING[2]])
    samples[1, 1] += inside
    samples[2, 0] += outside
    samples[3, 0] -= outside
    scores = mode_scores(samples, RING, STD)
    assert (scores.captured, scores.high_quality) == (1, 0.5)
    assert scores.reverse_kl == pytest.approx(math.log(8))
    assert scores.reverse_kl_floor == pytest.approx(7 / 4)


def test_no_sample_near_a_mode_has_no_divergence() -> None:
    scores = mode_scores(torch.zeros(10, 2), RING, STD)
    assert (scores.captured, scores.high_quality) == (0, 0)
    assert (scores.reverse_kl, scores.reverse_kl_floor, scores.spread) == (None, None, None)


def test_histogram_by_hand() -> None:
    assert kl_to_uniform(torch.tensor([5, 5, 5])) == pytest.approx(0, abs=1e-12)
    assert kl_to_uniform(torch.tensor([0, 9, 0])) == pytest.approx(math.log(3))
    assert kl_to_uniform(torch.tensor([1, 3])) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_floor_is_the_expected_score_of_ideal_draws() -> None:
    modes, rows, draws = 100, 2600, 60
    total = 0.0
    for seed in range(draws):
        hits = torch.randint(modes, (rows,), generator=generator(seed))
        total += kl_to_uniform(torch.bincount(hits, minlength=modes))
    assert total / draws == pytest.approx(kl_floor(modes, rows), rel=0.05)


def test_floor_of_stacked_digits() -> None:
    assert kl_floor(1000, 26_000) == pytest.approx(0.019, abs=5e-4)


def test_an_empty_histogram_is_refused() -> None:
    with pytest.raises(DataError, match="4 modes holds no sample"):
        kl_to_uniform(torch.zeros(4))


def test_entropy_runs_from_one_class_to_all_alike() -> None:
    assert histogram_entropy(torch.tensor([0, 9, 0])) == 0
    assert histogram_entropy(torch.tensor([4, 4, 0])) == pytest.approx(math.log(2))
    assert histogram_entropy(torch.ones(1000)) == pytest.approx(math.log(1000))


def test_classes_are_counted_against_all_there_are() -> None:
    counts = torch.tensor([6, 0, 2, 0])
    found = class_modes(counts)
    assert (found.captured, found.modes, found.kl_floor) == (2, 4, 3 / 16)
    assert found.kl == pytest.approx(math.log(4) - 0.75 * math.log(4 / 3) - 0.25 * math.log(4))


def test_uniform_draws_of_stacked_digits_score_the_floor() -> None:
    drawn = torch.randint(1000, (26_000,), generator=generator("stacked"))
    found = class_modes(torch.bincount(drawn, minlength=1000))
    assert found.captured == 1000
    assert found.kl == pytest.approx(found.kl_floor, rel=0.15)
