import torch
from sklearn.datasets import load_digits


def all_rows(prepared):
    parts = [prepared.source(split).rows for split in ("train", "test")]
    return torch.cat([part.x for part in parts]), torch.cat([part.label for part in parts])


def test_both_splits_together_are_the_pictures_of_scikit_learn(digits):
    stored = load_digits()
    x, label = all_rows(digits)
    got = sorted((*picture.flatten().tolist(), number) for picture, number in zip(x, label.tolist(), strict=True))
    assert got == sorted((*map(int, row), int(number)) for row, number in zip(stored.data, stored.target, strict=True))


def test_the_test_split_holds_thirty_of_each_class(digits):
    assert digits.record.splits == {"train": 1497, "test": 300}
    assert digits.source("test").rows.label.bincount().tolist() == [30] * 10


def test_pictures_span_the_whole_scale(digits):
    x = digits.source("train").take(0, 1497).x
    assert x.shape[1:] == (1, 8, 8)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert abs(float(x.std(correction=0)) - digits.spec.data_std) < 1e-5
