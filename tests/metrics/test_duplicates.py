import pytest
import torch

from kinfolk.metrics.duplicates import pair_distances, support_estimate
from kinfolk.rng import generator


def equal_pairs(x: torch.Tensor) -> int:
    return int((pair_distances(x) == 0).sum())


def test_every_pair_counts_once_and_equal_rows_are_no_distance_apart() -> None:
    x = torch.tensor([[0.1], [0.1], [3.1], [0.1]])
    assert pair_distances(x).tolist() == pytest.approx([0, 3, 0, 3, 0, 3], abs=1e-6)
    assert equal_pairs(torch.randn(1, 40, generator=generator(0)).expand(30, 40)) == 30 * 29 / 2


def test_draws_of_a_finite_support_tell_its_size() -> None:
    support, rows, draws = 2000, 400, 40
    pairs = 0
    for seed in range(draws):
        drawn = torch.randint(support, (rows,), generator=generator(seed))
        pairs += equal_pairs(drawn[:, None].float())
    assert support_estimate(round(pairs / draws), rows) == pytest.approx(support, rel=0.1)


def test_uneven_draws_tell_less_than_the_support() -> None:
    weight = torch.tensor([1.0] * 10 + [0.01] * 990)
    drawn = torch.multinomial(weight, 500, replacement=True, generator=generator(0))
    collisions = float(1 / (weight / weight.sum()).square().sum())  # of the weights: 1 / sum p^2
    assert support_estimate(equal_pairs(drawn[:, None].float()), 500) == pytest.approx(collisions, rel=0.2)
    assert collisions < 1000


def test_the_birthday_of_a_class() -> None:
    # 365 days: a class of 23 has a pair with probability one half, and 253 / 365 pairs on average.
    assert support_estimate(0, 23) == pytest.approx(253 / 3)
    assert support_estimate(253, 23) == 1


def test_fewer_than_three_pairs_are_taken_as_three() -> None:
    assert support_estimate(0, 100) == support_estimate(3, 100) > support_estimate(4, 100)
