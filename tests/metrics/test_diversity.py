import math

import pytest
import torch

from kinfolk.errors import DataError
from kinfolk.metrics import features
from kinfolk.metrics.diversity import mean_distance_within_classes, mean_pairwise_distance, vendi_score
from kinfolk.rng import generator


def test_three_points_on_a_line_by_hand() -> None:
    assert mean_pairwise_distance(torch.tensor([[0.0], [3.0], [4.0]])) == pytest.approx((3 + 4 + 1) / 3)


def test_collapsed_set_has_distance_zero() -> None:
    assert mean_pairwise_distance(torch.full((20, 5), 7.3)) == 0


def test_distance_scales_with_the_features() -> None:
    x = torch.randn(50, 4, generator=generator(0))
    assert mean_pairwise_distance(3 * x + 5) == pytest.approx(3 * mean_pairwise_distance(x), rel=1e-6)


def test_gaussian_pairs_have_the_closed_form() -> None:
    # The difference of two draws of N(0, 1) is N(0, 2), whose mean size is 2 / sqrt(pi).
    x = torch.randn(4000, 1, generator=generator("line"))
    assert mean_pairwise_distance(x) == pytest.approx(2 / math.sqrt(math.pi), rel=0.03)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 4, generator=generator(0))
    whole = mean_pairwise_distance(x)
    monkeypatch.setattr(features, "BLOCK_ELEMENTS", 7 * 50)
    assert mean_pairwise_distance(x) == pytest.approx(whole, rel=1e-9)


def test_one_picture_a_class_is_diverse_over_all_and_not_within() -> None:
    label = torch.arange(4).repeat(5)
    x = torch.eye(4)[label]
    assert mean_pairwise_distance(x) > 1
    assert mean_distance_within_classes(x, label) == pytest.approx(0, abs=1e-6)


def test_classes_weigh_the_same_and_single_rows_nothing() -> None:
    x = torch.tensor([[0.0], [2.0], [0.0], [0.0], [8.0], [99.0]])
    label = torch.tensor([0, 0, 1, 1, 1, 2])
    assert mean_distance_within_classes(x, label) == pytest.approx((2 + (0 + 8 + 8) / 3) / 2)


def test_classes_of_single_rows_are_refused() -> None:
    with pytest.raises(DataError, match="Draw more"):
        mean_distance_within_classes(torch.eye(3), torch.arange(3))


def test_labels_of_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2,\).*3"):
        mean_distance_within_classes(torch.eye(3), torch.zeros(2))


@pytest.mark.parametrize("dims", [3, 50])
def test_identical_samples_count_as_one(dims: int) -> None:
    assert vendi_score(torch.full((20, dims), 0.7)) == pytest.approx(1, abs=1e-9)


def test_orthogonal_samples_count_each() -> None:
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator("rotation"), dtype=torch.float64)).Q
    assert vendi_score(rotation[:7]) == pytest.approx(7, rel=1e-9)


def test_repeats_and_length_do_not_count() -> None:
    x = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    assert vendi_score(torch.cat([x, 5 * x, x])) == pytest.approx(vendi_score(x), rel=1e-9)


def test_unequal_groups_count_by_the_entropy_of_their_shares() -> None:
    x = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    entropy = 0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6
    assert vendi_score(x) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_a_row_of_zeros_has_no_similarity() -> None:
    with pytest.raises(DataError, match="row of zeros"):
        vendi_score(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
