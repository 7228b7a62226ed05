"""Stacked MNIST: three random digits as three channels of one picture, so that its 1,000 modes can be counted.

128,000 pictures to train on, drawn once from MNIST's train split; as many to test on as the papers score, drawn from
its test split. Source: Srivastava et al., 2017, VEEGAN, https://arxiv.org/abs/1705.07761, section 5, after Metz et al.,
2017, https://arxiv.org/abs/1611.02163; the size as in Lin et al., 2018, PacGAN, https://arxiv.org/abs/1712.04086.
"""

from collections.abc import Iterator, Mapping

import torch

from kinfolk.contract import DataSpec
from kinfolk.data import mnist
from kinfolk.data.entry import Contents, Entry, Request, Split, SplitName
from kinfolk.data.modes import Stack
from kinfolk.data.source import Rows
from kinfolk.rng import generator

_NAME = "stacked-mnist"
_MODES = Stack(judge=mnist.ENTRY.name)
_SIZES: Mapping[SplitName, int] = {"train": 128_000, "test": _MODES.samples}
_CHUNK = 1024  # samples handed over at a time
_SPEC = DataSpec(kind="image", shape=(3, 28, 28), levels=256, classes=1000)


def stacked(digits: Rows, count: int, drawn: torch.Generator) -> Iterator[Rows]:
    """``count`` samples, each of three digits drawn with replacement; the label reads 100 r + 10 g + b.

    Rows of (N, 1, H, W) -> Rows of (n, 3, H, W), chunk by chunk
    """
    assert digits.label is not None
    chosen = torch.randint(len(digits), (count, 3), generator=drawn)
    place = torch.tensor([100, 10, 1])
    for index in chosen.split(_CHUNK):
        yield Rows(digits.x[index, 0], (digits.label[index] * place).sum(1))


def _contents(request: Request) -> Contents:
    digits = mnist.pictures(request)
    return Contents(
        spec=_SPEC,
        splits={
            split: Split(count, stacked(digits[split], count, generator(_NAME, split)))
            for split, count in _SIZES.items()
        },
        class_names=tuple(f"{number:03}" for number in range(1000)),
    )


ENTRY = Entry(
    name=_NAME,
    summary="154,000 pictures of three MNIST digits as colour channels, 28x28, 1,000 classes",
    origin=f"stacked after Srivastava et al., 2017, VEEGAN, and Lin et al., 2018, PacGAN, from {mnist.ORIGIN}",
    licence=mnist.LICENCE,
    spec=_SPEC,
    contents=_contents,
    source="optional",
    modes=_MODES,
)
