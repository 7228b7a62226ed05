import pytest
import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics.frechet import FeatureStatistics, frechet_distance
from kinfolk.rng import generator


def draw(rows: int, dims: int, name: str, scale: float = 1.0) -> Tensor:
    mix = torch.randn(dims, dims, generator=generator(name, "mix"), dtype=torch.float64)
    return scale * torch.randn(rows, dims, generator=generator(name), dtype=torch.float64) @ mix


def distance(x: Tensor, y: Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))


def gaussian(mean: list[float], covariance: list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64), 100
    )


def test_two_gaussians_with_aligned_axes_have_the_closed_form() -> None:
    x = gaussian([0.0, 0.0], [[4.0, 0.0], [0.0, 9.0]])
    y = gaussian([1.0, -2.0], [[1.0, 0.0], [0.0, 25.0]])
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 5) ** 2, abs=1e-12)


def test_crossed_axes_in_two_dimensions_have_the_closed_form() -> None:
    # For 2 x 2 matrices tr sqrt(P) = sqrt(tr P + 2 sqrt(det P)); the two covariances here do not commute.
    first, second = [[2.0, 1.0], [1.0, 3.0]], [[5.0, -2.0], [-2.0, 1.0]]
    product = torch.tensor(first, dtype=torch.float64) @ torch.tensor(second, dtype=torch.float64)
    root_trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = 2 + 3 + 5 + 1 - 2 * float(root_trace)
    assert frechet_distance(gaussian([0, 0], first), gaussian([0, 0], second)) == pytest.approx(expected, abs=1e-12)


def test_statistics_are_the_unbiased_moments() -> None:
    x = draw(50, 4, "moments")
    fit = FeatureStatistics.of(x)
    assert torch.allclose(fit.covariance, torch.cov(x.T), atol=1e-12)
    assert torch.allclose(fit.mean, x.mean(0))
    assert fit.count == 50


def test_a_row_of_weight_two_counts_as_two_and_one_of_none_not_at_all() -> None:
    x = draw(20, 4, "moments")
    weight = torch.arange(20) % 3
    fit, again = FeatureStatistics.of(x, weight), FeatureStatistics.of(x.repeat_interleave(weight, 0))
    assert torch.allclose(fit.mean, again.mean)
    biased = [each.covariance * factor for each, factor in ((fit, unbiased(weight)), (again, 1 - 1 / again.count))]
    assert torch.allclose(*biased)
    whole = FeatureStatistics.of(x)
    assert torch.allclose(FeatureStatistics.of(x, torch.full((20,), 7.0)).covariance, whole.covariance, rtol=1e-12)


def unbiased(weight: Tensor) -> Tensor:
    """What makes the covariance of independent rows free of bias: 1 less the sum of squared shares."""
    return 1 - (weight / weight.sum()).square().sum()


def test_the_weighted_covariance_is_right_on_average() -> None:
    weight = torch.tensor([5.0, 1.0, 1.0, 1.0])
    values = torch.stack([FeatureStatistics.of(draw(4, 1, str(i)), weight).covariance[0, 0] for i in range(2000)])
    assert abs(float(values.mean()) - 1) < 3 * float(values.std()) / 2000**0.5
    assert float(values.std()) < 3  # so that the mean is told from that of a division by N - 1, 0.75


@pytest.mark.parametrize("weight", [torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.tensor([0.0, 0, 0, 9])])
def test_weights_that_are_none_are_refused(weight: Tensor) -> None:
    with pytest.raises(DataError, match="weight must be 4 numbers of 0 or more"):
        FeatureStatistics.of(torch.zeros(4, 2), weight)


@pytest.mark.parametrize("rows", [200, 10])
def test_a_set_is_at_distance_zero_from_itself(rows: int) -> None:
    x = draw(rows, 16, "self")  # ten rows leave six directions without variance
    assert distance(x, x) == pytest.approx(0, abs=1e-9)


def test_translation_adds_its_squared_length() -> None:
    x, y, offset = draw(200, 8, "x"), draw(300, 8, "y"), torch.arange(8.0, dtype=torch.float64)
    y = y - y.mean(0) + x.mean(0)
    assert distance(x, y + offset) - distance(x, y) == pytest.approx(float(offset.square().sum()), rel=1e-9)


def test_rotation_of_both_sets_changes_nothing() -> None:
    x, y = draw(200, 8, "x"), draw(300, 8, "y")
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator("rotation"), dtype=torch.float64)).Q
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-9)


def test_either_set_may_be_the_reference() -> None:
    x, y = draw(200, 8, "x"), draw(300, 8, "y", scale=3)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)


def test_fewer_rows_than_dimensions_are_exact() -> None:
    # The covariances have rank 1 along the first and the second axis and share nothing.
    x, y = torch.zeros(2, 32, dtype=torch.float64), torch.zeros(2, 32, dtype=torch.float64)
    x[1, 0], y[1, 1] = 2.0, 4.0
    assert distance(x, y) == pytest.approx((1 + 4) + (2 + 8), abs=1e-12)


def test_a_constant_set_has_no_spread() -> None:
    x = draw(100, 4, "x")
    expected = float((x.mean(0) - 1).square().sum() + torch.cov(x.T).trace())
    assert distance(x, torch.ones(10, 4)) == pytest.approx(expected, rel=1e-12)


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = FeatureStatistics.of(draw(500, 12, "x")), FeatureStatistics.of(draw(400, 12, "y"))
    theirs = float(_compute_fid(x.mean, x.covariance, y.mean, y.covariance))
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-9)


def test_features_of_two_networks_are_refused() -> None:
    with pytest.raises(DataError, match=r"8 dimensions.*4"):
        distance(draw(10, 8, "x"), draw(10, 4, "y"))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(1, 3), r"\(1, 3\)"),
        (torch.zeros(4, 2, 2), r"\(4, 2, 2\)"),
        (torch.tensor([[0.0], [torch.nan], [torch.inf]]), "2 of 3 rows"),
    ],
)
def test_unusable_features_are_refused(features: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        FeatureStatistics.of(features)
