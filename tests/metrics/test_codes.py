import pytest
import torch

from kinfolk.errors import DataError
from kinfolk.metrics.codes import perplexity, usage


def test_equal_use_of_some_codes_counts_them():
    codes = torch.tensor([[0, 3], [5, 0], [3, 5]])
    assert usage(codes, 8) == pytest.approx(3 / 8)
    assert perplexity(codes, 8) == pytest.approx(3)


def test_rare_codes_hardly_count_for_perplexity():
    codes = torch.tensor([0] * 999 + [1])
    assert usage(codes, 2) == 1
    p = torch.tensor([0.999, 0.001], dtype=torch.float64)
    assert perplexity(codes, 2) == pytest.approx(float((-(p * p.log()).sum()).exp()))


@pytest.mark.parametrize("codes", [torch.tensor([8]), torch.tensor([-1]), torch.zeros(0, dtype=torch.int64)])
def test_a_code_that_is_not_in_the_book_is_refused(codes):
    with pytest.raises(DataError, match="from 0 to 7"):
        usage(codes, 8)
