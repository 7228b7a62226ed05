"""Noise levels of consistency training: published schedules, closed forms and the shares that are drawn."""

import math

import pytest
import torch
from pydantic import ValidationError

from kinfolk.config import parse
from kinfolk.contract import ConfigError
from kinfolk_families.consistency.config import (
    ConsistencyConfig,
    DistillationConfig,
    EasyTuningConfig,
    ImprovedTrainingConfig,
    Options,
)
from kinfolk_families.consistency.levels import (
    draw_distillation_pair,
    draw_neighbours,
    draw_training_pair,
    draw_tuning_pair,
    interval_count,
    interval_probabilities,
    noise_levels,
    tuning_level,
    tuning_stage,
)

ENDS = (0.002, 80.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("stage", [0, 1, 2, 5])
def test_the_tuning_level_is_the_published_mapping(stage):
    t = torch.tensor([0.01, 0.3, 1.0, 2.5, 7.0, 60.0], dtype=torch.float64)
    found = tuning_level(t, stage, EasyTuningConfig(q=2, k=8, b=1))
    expected = [max(0.0, v * (1 - (1 + 8 / (1 + math.exp(v))) / 2 ** (stage + 1))) for v in t.tolist()]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_tuning_level_hears_each_of_its_constants():
    """At t = 2, b = 0.5 and k = 3: 1 + 3 / (1 + e) over 5^2."""
    found = tuning_level(torch.tensor([2.0], dtype=torch.float64), 1, EasyTuningConfig(q=5, k=3, b=0.5, stages=2))
    assert found.item() == pytest.approx(2 * (1 - (1 + 3 / (1 + math.e)) / 25))


def test_at_first_everything_below_ln_7_is_plain_diffusion():
    edge = math.log(7)  # where 1 + 8 sigmoid(-t) = 2
    found = tuning_level(torch.tensor([0.5, edge - 1e-6, edge + 1e-6]), 0, EasyTuningConfig(q=2))
    assert found[:2].tolist() == [0, 0]
    assert found[2] > 0


def test_tuning_stages_follow_the_samples_seen_and_end():
    config = EasyTuningConfig(stage_samples=100, stages=3)
    assert [tuning_stage(seen, config) for seen in (0, 99, 100, 250, 300, 10**9)] == [0, 0, 1, 2, 2, 2]


def test_tuning_pairs_are_log_normal_and_close_in_with_the_stage():
    config = EasyTuningConfig(q=4, p_mean=-0.5, p_std=1.5)
    early, late = (draw_tuning_pair(20000, stage, config, *ENDS, seeded()) for stage in (0, 4))
    assert torch.equal(early.sigma, late.sigma)
    logs = early.sigma.log()
    assert float(logs.median()) == pytest.approx(-0.5, abs=0.05)
    assert float(logs.quantile(0.8413) - logs.median()) == pytest.approx(1.5, abs=0.05)
    for pair in (early, late):
        assert (pair.after >= ENDS[0]).all()
        assert (pair.after < pair.sigma).all()
    assert ((late.sigma - late.after) <= (early.sigma - early.after)).all()
    expected = tuning_level(late.sigma, 4, config).clamp(min=ENDS[0])
    assert torch.equal(late.after, expected)


def test_tuning_pairs_stay_between_the_ends_with_a_gap_above_rounding():
    pair = draw_tuning_pair(5000, 0, EasyTuningConfig(p_mean=-3, p_std=6), *ENDS, seeded())
    assert pair.sigma.max() == ENDS[1]
    assert pair.sigma.min() == pytest.approx(2 * ENDS[0])
    assert (pair.sigma - pair.after).min() >= ENDS[0] * 0.999


def test_the_curriculum_doubles_as_published():
    """s_0 = 10, s_1 = 1280, K = 400,000: K' = 50,000 and eight stages of N = 11 to 1281 levels."""
    config = ImprovedTrainingConfig(curriculum_samples=400_000)
    at = [0, 49_999, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 349_999, 350_000, 10**12]
    found = [interval_count(seen, config) + 1 for seen in at]
    assert found == [11, 11, 21, 41, 81, 161, 321, 641, 641, 1281, 1281]


def test_a_curriculum_that_does_not_end_on_a_power_of_two_is_cut_at_its_last():
    """K' = floor(1000 / (log2(floor(90 / 20)) + 1)) = 333."""
    config = ImprovedTrainingConfig(first_intervals=20, last_intervals=90, curriculum_samples=1000)
    assert [interval_count(seen, config) for seen in (0, 332, 333, 665, 666, 999)] == [20, 20, 40, 40, 80, 90]


def test_a_curriculum_shorter_than_its_stages_still_counts_up():
    config = ImprovedTrainingConfig(curriculum_samples=1)
    assert [interval_count(seen, config) for seen in (0, 1, 2, 10**9)] == [10, 20, 40, 1280]


def test_levels_are_evenly_spaced_in_their_root():
    """EDM eq. 5 with N = 5 and rho = 3, from the lowest."""
    sigmas = noise_levels(5, 3.0, 0.001, 27.0)
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx([(0.1 + i / 4 * 2.9) ** 3 for i in range(5)])


def test_the_first_level_is_where_f_is_the_identity():
    for count in (11, 18, 161, 1281):
        sigmas = noise_levels(count, 7.0, *ENDS).float()
        assert sigmas[0] == torch.tensor(ENDS[0])
        assert sigmas[-1] == torch.tensor(ENDS[1])


def test_interval_probabilities_are_normal_shares_of_ln_sigma_that_sum_to_one():
    sigmas = noise_levels(21, 7.0, *ENDS)
    found = interval_probabilities(sigmas, -1.1, 2.0)
    normal = torch.distributions.Normal(torch.tensor(-1.1, dtype=torch.float64), 2.0)
    below = normal.cdf(sigmas.log())
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(found, below.diff() / (below[-1] - below[0]))


def test_neighbours_are_drawn_as_often_as_they_are_likely():
    sigmas, probabilities = torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.tensor([0.2, 0.5, 0.3])
    pair = draw_neighbours(probabilities, sigmas, 40_000, seeded())
    for i, share in enumerate(probabilities.tolist()):
        rows = pair.after == sigmas[i]
        assert (pair.sigma[rows] == sigmas[i + 1]).all()
        assert float(rows.float().mean()) == pytest.approx(share, abs=0.01)  # 4 standard errors


def test_training_pairs_are_neighbours_of_the_curriculum_drawn_by_their_shares():
    config = ImprovedTrainingConfig(curriculum_samples=1, p_mean=0.3, p_std=1.2)
    pair = draw_training_pair(20_000, 10, config, *ENDS, seeded())
    sigmas = noise_levels(11, 7.0, *ENDS)
    index = torch.searchsorted(sigmas.float(), pair.after)
    assert torch.equal(sigmas.float()[index + 1], pair.sigma)
    drawn = index.bincount(minlength=10).double() / 20_000
    assert torch.allclose(drawn, interval_probabilities(sigmas, 0.3, 1.2), atol=0.015)


def test_distillation_pairs_are_neighbours_all_equally_likely():
    pair = draw_distillation_pair(20_000, DistillationConfig(levels=6), *ENDS, seeded())
    sigmas = noise_levels(6, 7.0, *ENDS).float()
    index = torch.searchsorted(sigmas, pair.after)
    assert torch.equal(sigmas[index + 1], pair.sigma)
    assert torch.allclose(index.bincount(minlength=5) / 20_000, torch.full((5,), 0.2), atol=0.015)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"objective": {"kind": "ect", "q": 4, "stages": 9}}, r"q\^stages is at most 2\^16"),
        ({"objective": {"kind": "ect", "q": 1}}, "greater than 1"),
        ({"objective": {"kind": "cd"}}, "'ect', 'ict', 'distillation'"),
        ({"objective": {"kind": "ict"}}, "curriculum_samples is required"),
        ({"objective": {"kind": "ict", "curriculum_samples": 9, "first_intervals": 2000}}, "more than last_intervals"),
        ({"objective": {"kind": "distillation", "levels": 1}}, "greater than or equal to 2"),
        ({"objective": {"kind": "distillation", "target_decay": 1}}, "less than 1"),
        ({"sigma_min": 90}, "must be below sigma_max"),
        ({"sampler": {"sigmas": [100]}}, "outside 0.002 to 80"),
        ({"sampler": {"sigmas": [0.5, 0.8]}}, "must fall"),
        ({"objective": {"kind": "ect", "stage": 9}}, "Did you mean 'stages'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        parse(ConsistencyConfig, values, "model")


def test_options_hold_no_more_levels_than_rows_have_room_for():
    sigmas = tuple(float(64 - i) for i in range(64))
    assert len(Options(sigmas=sigmas[1:]).sigmas) == 63
    with pytest.raises(ValidationError, match="at most 63"):
        Options(sigmas=sigmas)
