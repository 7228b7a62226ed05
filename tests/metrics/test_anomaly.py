import pytest
import torch

from kinfolk.errors import DataError
from kinfolk.metrics.anomaly import auroc


def test_it_is_the_share_of_pairs_in_the_right_order_with_ties_half():
    normal, strange = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 3.0])
    pairs = [(s > n).double() + 0.5 * (s == n).double() for n in normal for s in strange]
    assert auroc(normal, strange) == pytest.approx(float(sum(pairs)) / 6)


def test_two_shifted_gaussians_give_the_closed_form():
    x = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(torch.special.ndtr(torch.tensor(1.0 / 2**0.5)))  # P(X + 1 > Y)
    assert auroc(x[0], x[1] + 1) == pytest.approx(expected, abs=0.005)


def test_an_impossible_sample_is_the_strangest():
    normal, strange = torch.tensor([0.0, 2.0]), torch.tensor([1.0, float("inf")])
    assert auroc(normal, strange) == 0.75
    assert auroc(-strange, -normal) == 0.75


@pytest.mark.parametrize(
    ("normal", "strange", "said"),
    [(torch.ones(0), torch.ones(2), "normal"), (torch.ones(2), torch.tensor([float("nan")]), "strange")],
)
def test_missing_or_broken_scores_are_refused(normal, strange, said):
    with pytest.raises(DataError, match=said):
        auroc(normal, strange)
