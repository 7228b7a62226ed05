import pytest
import torch
from torch import Tensor

from kinfolk.errors import ConfigError, DataError
from kinfolk.metrics import features, kernel
from kinfolk.metrics.kernel import cubic_kernel, kernel_distance, kernel_distance_on_subsets
from kinfolk.rng import generator


def normal(rows: int, dims: int, *key: int | str) -> Tensor:
    return torch.randn(rows, dims, generator=generator(*key), dtype=torch.float64)


def test_two_pairs_of_numbers_by_hand() -> None:
    # k(a, b) = (ab + 1)^3: k(0, 1) = 1, k(1, 2) = 27, and across 1, 1, 8, 27.
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(x, y) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, abs=1e-12)


def test_same_distribution_averages_to_zero() -> None:
    values = torch.tensor([kernel_distance(normal(20, 2, "x", i), normal(30, 2, "y", i)) for i in range(400)])
    standard_error = float(values.std()) / 400**0.5
    assert abs(float(values.mean())) < 3 * standard_error
    assert standard_error < 0.05  # a biased estimate, which keeps the diagonal, is 1.3 too high here


def test_shifted_gaussian_averages_to_the_closed_form() -> None:
    # (xy + 1)^3 = sum over j of binomial(3, j) x^j y^j, so MMD^2 = sum of binomial(3, j) (difference of moment j)^2;
    # N(1, 1) has moments 1, 2, 4 and N(0, 1) has 0, 1, 0: 3 * 1 + 3 * 1 + 16.
    values = torch.tensor([kernel_distance(normal(60, 1, "x", i), normal(60, 1, "y", i) + 1) for i in range(300)])
    standard_error = float(values.std()) / 300**0.5
    assert abs(float(values.mean()) - 22) < 3 * standard_error
    assert standard_error < 1


def test_samples_count_their_weight() -> None:
    """Over all pairs but those of a row with itself, as by hand."""
    x, y, weight = normal(5, 2, "x"), normal(4, 2, "y"), torch.tensor([3.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    pairs = weight[:, None] * weight * (1 - torch.eye(4))
    among_y = (pairs * cubic_kernel(y, y)).sum() / pairs.sum()
    among_x = (cubic_kernel(x, x) * (1 - torch.eye(5))).sum() / 20
    across = (cubic_kernel(x, y) * weight).sum() / (5 * weight.sum())
    assert kernel_distance(x, y, weight) == pytest.approx(float(among_x + among_y - 2 * across), rel=1e-12)
    with pytest.raises(DataError, match="weight must be 4"):
        kernel_distance(x, y, weight[:3])


def test_samples_of_as_many_of_each_class_average_to_zero() -> None:
    """Of classes at -3, 0 and 3 that are 1/2, 1/4 and 1/4 of the data, 4, 4 and 2 samples are drawn."""
    asked = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    weight = torch.tensor([0.5 / 4, 0.25 / 4, 0.25 / 2])[asked]
    values = []
    for i in range(400):
        drawn = torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), 20, replacement=True, generator=generator("of", i))
        x, y = (normal(len(of), 1, name, i) + 3.0 * (of[:, None] - 1) for name, of in (("x", drawn), ("y", asked)))
        values.append([kernel_distance(x, y, weight, stratum) for stratum in (asked, None)])
    mean, error = torch.tensor(values).mean(0), torch.tensor(values).std(0) / 400**0.5
    assert abs(mean[0]) < 3 * error[0]
    assert mean[1] < -5 * error[1]  # as if drawn independently, pairs of one class would be too few


def test_strata_change_nothing_where_there_is_one() -> None:
    x, y = normal(9, 2, "x"), normal(7, 2, "y")
    assert kernel_distance(x, y, stratum=torch.zeros(7)) == pytest.approx(kernel_distance(x, y), rel=1e-9)


def test_kernel_is_that_of_kid() -> None:
    from torchmetrics.image.kid import poly_kernel

    x, y = normal(5, 7, "x"), normal(6, 7, "y")
    assert torch.allclose(cubic_kernel(x, y), poly_kernel(x, y))


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(200, 16, "x"), 1.2 * normal(200, 16, "y")
    assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 4, "x"), normal(70, 4, "y") + 0.5
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "BLOCK_ELEMENTS", 7 * 50)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)
    assert features.BLOCK_ELEMENTS > 7 * 50


def test_one_subset_of_everything_is_the_full_set() -> None:
    x, y = normal(50, 4, "x"), normal(50, 4, "y") + 0.5
    estimate = kernel_distance_on_subsets(x, y, generator("subsets"), subsets=3, subset_size=50)
    assert estimate.mean == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert estimate.std == pytest.approx(0, abs=1e-12)


def test_subsets_average_to_the_full_set() -> None:
    x, y = normal(100, 2, "x"), normal(100, 2, "y") + 1
    estimate = kernel_distance_on_subsets(x, y, generator("subsets"), subsets=1000, subset_size=20)
    assert abs(estimate.mean - kernel_distance(x, y)) < 4 * estimate.std / 1000**0.5
    assert estimate.std > 0


def test_subsets_are_a_function_of_the_generator() -> None:
    x, y = normal(60, 2, "x"), normal(60, 2, "y")
    before = torch.random.get_rng_state()
    first, again, other = (
        kernel_distance_on_subsets(x, y, generator(seed), subsets=5, subset_size=10) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("subsets", "size"), [(0, 5), (3, 1), (3, 11)])
def test_impossible_subsets_are_refused(subsets: int, size: int) -> None:
    with pytest.raises(ConfigError, match="2 to 10 rows"):
        kernel_distance_on_subsets(normal(10, 2, "x"), normal(12, 2, "y"), generator(0), subsets, size)


def test_another_dimension_is_refused() -> None:
    with pytest.raises(DataError, match="same network"):
        kernel_distance(normal(10, 2, "x"), normal(10, 3, "y"))
