import pytest
import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics.accuracy import class_accuracy, class_counts


def logits(classes: list[int], known: int = 4) -> Tensor:
    return torch.eye(known)[classes] * 3 - 1


def test_shares_by_hand() -> None:
    scores = class_accuracy(logits([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2]))
    assert scores.accuracy == pytest.approx(4 / 5)
    assert scores.per_class == (1.0, 0.5, 1.0, None)
    assert (scores.covered, scores.classes) == (3, 4)


def test_a_class_drawn_for_another_is_not_covered() -> None:
    scores = class_accuracy(logits([1, 0]), torch.tensor([0, 1]))
    assert (scores.accuracy, scores.covered, scores.per_class[:2]) == (0, 0, (0, 0))


def test_order_of_samples_does_not_matter() -> None:
    recognised, asked = torch.tensor([0, 3, 1, 1, 2, 0]), torch.tensor([0, 3, 2, 1, 2, 1])
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    assert class_accuracy(logits(recognised.tolist()), asked) == class_accuracy(
        logits(recognised[order].tolist()), asked[order]
    )


def test_counts_are_of_the_likeliest_class() -> None:
    assert class_counts(logits([2, 2, 0])).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    ("given", "asked", "words"),
    [
        (logits([0, 1]), torch.tensor([0, 4]), "from 0 to 4, the classifier knows 0 to 3"),
        (logits([0, 1]), torch.tensor([-1, 0]), "from -1 to 0"),
        (logits([0, 1]), torch.tensor([0]), r"\(2, 4\) and \(1,\)"),
        (logits([]), torch.tensor([], dtype=torch.int64), "at least one sample"),
        (torch.full((1, 4), torch.nan), torch.tensor([0]), "not finite"),
    ],
)
def test_unusable_judgements_are_refused(given: Tensor, asked: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        class_accuracy(given, asked)
