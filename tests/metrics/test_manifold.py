import pytest
import torch
from torch import Tensor

from kinfolk.errors import ConfigError
from kinfolk.metrics import features
from kinfolk.metrics.manifold import ManifoldScores, manifold_scores, neighbour_radius
from kinfolk.rng import generator


def normal(rows: int, dims: int, *key: int | str) -> Tensor:
    return torch.randn(rows, dims, generator=generator(*key), dtype=torch.float64)


def literal_scores(x: Tensor, y: Tensor, k: int) -> ManifoldScores:
    """The four definitions, point by point."""

    def inside(point: Tensor, centre: Tensor, others: Tensor) -> bool:
        radius = sorted(float((centre - other).norm()) for other in others)[k]  # [0] is the centre itself
        return float((point - centre).norm()) < radius

    hits = [[inside(sample, centre, x) for centre in x] for sample in y]  # (M, N)
    recalled = [any(inside(reference, centre, y) for centre in y) for reference in x]
    return ManifoldScores(
        precision=sum(any(row) for row in hits) / len(y),
        recall=sum(recalled) / len(x),
        density=sum(sum(row) for row in hits) / (k * len(y)),
        coverage=sum(any(column) for column in zip(*hits, strict=True)) / len(x),
    )


def close(scores: ManifoldScores, *expected: float, abs: float = 1e-12) -> bool:  # noqa: A002
    figures = (scores.precision, scores.recall, scores.density, scores.coverage)
    return figures == pytest.approx(expected, abs=abs)


@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_definitions_read_literally(k: int) -> None:
    x, y = normal(25, 2, "x"), 1.5 * normal(18, 2, "y") + 0.5
    expected = literal_scores(x, y, k)
    assert close(manifold_scores(x, y, k), expected.precision, expected.recall, expected.density, expected.coverage)
    assert expected.precision != expected.recall != expected.coverage


def test_radius_on_a_line_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert neighbour_radius(x, 1).tolist() == pytest.approx([1, 1, 2, 4])
    assert neighbour_radius(x, 2).tolist() == pytest.approx([3, 2, 3, 6])


def test_sets_far_apart_score_nothing() -> None:
    assert close(manifold_scores(normal(50, 3, "x"), normal(40, 3, "y") + 100), 0, 0, 0, 0)


def test_half_the_modes_halve_recall_and_coverage_and_keep_precision() -> None:
    near, far = normal(200, 2, "near"), normal(200, 2, "far") + 1000
    scores = manifold_scores(torch.cat([near, far]), torch.cat([normal(200, 2, "a"), normal(200, 2, "b")]))
    assert scores.precision > 0.95
    assert 0.45 < scores.recall <= 0.5
    assert 0.45 < scores.coverage <= 0.5


def test_coverage_of_the_same_distribution_has_its_closed_form() -> None:
    # Expected coverage is 1 - the product over j < k of (N - 1 - j) / (N + M - 1 - j), of order 1 - 2^-k: appendix
    # of Naeem et al.; it holds in every dimension. Here the mean over 20 draws has a standard error of 0.007.
    rows, k = 100, 3
    missed = 1.0
    for j in range(k):
        missed *= (rows - 1 - j) / (2 * rows - 1 - j)
    draws = [manifold_scores(normal(rows, 8, "x", i), normal(rows, 8, "y", i), k).coverage for i in range(20)]
    assert sum(draws) / 20 == pytest.approx(1 - missed, abs=0.02)


def test_density_of_the_same_distribution_averages_to_one() -> None:
    # A sample is nearer than the k-th of N - 1 others with probability k / N, for each of N balls: N (k / N) / k = 1.
    draws = [manifold_scores(normal(100, 2, "x", i), normal(100, 2, "y", i), 5).density for i in range(20)]
    assert sum(draws) / 20 == pytest.approx(1, abs=0.03)


def test_in_a_thousand_dimensions_neighbourhoods_are_few_and_large() -> None:
    # The self-test published with the definitions has 10,000 rows, where 12 draws gave precision 0.479 +- 0.011, recall
    # 0.473 +- 0.009, density 1.04 +- 0.07, coverage 0.972 +- 0.006 for its 0.4772, 0.4705, 1.0555, 0.9735. With 1,000
    # rows 8 other draws gave 0.59 +- 0.03, 0.58 +- 0.02, 1.07 +- 0.12 and 0.976 +- 0.008.
    scores = manifold_scores(normal(1000, 1000, "rows"), normal(1000, 1000, "columns"))
    figures = (scores.precision, scores.recall, scores.density, scores.coverage)
    for figure, mean, std in zip(figures, (0.59, 0.58, 1.07, 0.976), (0.03, 0.02, 0.12, 0.008), strict=True):
        assert abs(figure - mean) < 3.5 * std


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(90, 3, "x"), normal(70, 3, "y")
    whole = manifold_scores(x, y)
    monkeypatch.setattr(features, "BLOCK_ELEMENTS", 7 * 90)
    assert manifold_scores(x, y) == whole


def test_far_from_the_origin_distances_keep_their_digits() -> None:
    x, y = normal(60, 3, "x"), normal(60, 3, "y")
    assert manifold_scores(x + 1e7, y + 1e7) == manifold_scores(x, y)


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_points_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k={k}.*use 1 to 5"):
        manifold_scores(normal(6, 2, "x"), normal(9, 2, "y"), k)
