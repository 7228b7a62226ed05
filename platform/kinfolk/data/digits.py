"""Handwritten digits of 8x8 pixels that come with scikit-learn: 1,497 to train on, 300 to test on."""

import torch

from kinfolk.contract import DataSpec
from kinfolk.data.entry import Contents, Entry, Request, Split, SplitName
from kinfolk.data.source import Rows
from kinfolk.rng import generator

_TEST_PER_CLASS = 30
_SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10)  # pixels count 0 to 16 inked dots


def _contents(_: Request) -> Contents:
    from sklearn.datasets import load_digits

    stored = load_digits()
    label = torch.tensor(stored.target).long()
    rows = Rows(torch.tensor(stored.images).to(torch.uint8).unsqueeze(1), label)
    test = _test_rows(label)
    splits: dict[SplitName, Rows] = {"train": rows[~test], "test": rows[test]}
    return Contents(
        spec=_SPEC,
        splits={name: Split(len(part), [part]) for name, part in splits.items()},
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _test_rows(label: torch.Tensor) -> torch.Tensor:
    """The same number of each class, chosen once and for all. (B,) int64 -> (B,) bool"""
    chosen = torch.zeros(len(label), dtype=torch.bool)
    for digit in range(10):
        members = (label == digit).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator("digits", "test", digit))
        chosen[members[order[:_TEST_PER_CLASS]]] = True
    return chosen


ENTRY = Entry(
    name="digits",
    summary="1,797 handwritten digits of 8x8 pixels, 10 classes",
    origin="scikit-learn load_digits, from Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    licence="CC BY 4.0",
    spec=_SPEC,
    contents=_contents,
)
