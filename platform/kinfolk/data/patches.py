"""Patches of two photographs that come with scikit-learn: natural pictures to hold against what a model has learned."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kinfolk.contract import Config, DataSpec
from kinfolk.data.entry import Contents, Entry, Request, Split, SplitName
from kinfolk.data.source import Rows

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # 427 x 640 each
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
_CLASSES = ("temple", "flower")


class PatchOptions(Config):
    """How the photographs are cut."""

    size: int = Field(28, ge=4, le=128, description="height and width of a patch, pixels")
    channels: Literal[1, 3] = 1


def cut(picture: Tensor, size: int) -> Tensor:
    """Patches that overlap by half, row by row. (C, H, W) uint8 -> (N, C, size, size) uint8"""
    columns = F.unfold(picture[None].float(), size, stride=size // 2)[0]  # (C*size*size, N)
    return columns.T.reshape(-1, len(picture), size, size).to(torch.uint8)


def halves(picture: Tensor) -> tuple[Tensor, Tensor]:
    """The left half of a photograph to train on, the right half to test on: no pixel is in both. (C, H, W)"""
    middle = picture.shape[2] // 2
    return picture[:, :, :middle], picture[:, :, middle:]


def _photograph(name: str, channels: int) -> Tensor:
    from sklearn.datasets import load_sample_image

    picture = torch.tensor(load_sample_image(name)).permute(2, 0, 1)  # (3, H, W) uint8
    if channels == 3:
        return picture
    return (picture.double() * torch.tensor(_GREY).double().view(3, 1, 1)).sum(0, keepdim=True).round().to(torch.uint8)


def _contents(request: Request) -> Contents:
    options: PatchOptions = request.options
    parts: dict[SplitName, list[Rows]] = {"train": [], "test": []}
    for label, name in enumerate(_PHOTOGRAPHS):
        for split, half in zip(parts, halves(_photograph(name, options.channels)), strict=True):
            x = cut(half, options.size)
            parts[split].append(Rows(x, torch.full((len(x),), label)))
    return Contents(
        spec=_spec(options),
        splits={name: Split(sum(map(len, rows)), [Rows.cat(rows)]) for name, rows in parts.items()},
        class_names=_CLASSES,
    )


def _spec(options: PatchOptions) -> DataSpec:
    return DataSpec(kind="image", shape=(options.channels, options.size, options.size), levels=256, classes=2)


ENTRY = Entry(
    name="patches",
    summary="patches of two photographs, 28x28 grey or as you choose, 2 classes",
    origin="scikit-learn load_sample_images: china.jpg by danielbuechele, flower.jpg by vultilion, Flickr",
    licence="CC BY 2.0",
    spec=_spec(PatchOptions()),
    contents=_contents,
    options=PatchOptions,
)
