"""What a trained network says of samples: the features and classes that figures rest on."""

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Model, RowTask

_CHUNK = 256  # rows of one forward pass


@torch.no_grad()
def judged(task: RowTask, x: Tensor) -> Tensor:
    """What ``task`` says of samples, so many at a time. (N, *) -> (N, n)"""
    return torch.cat([task(Batch(part), torch.arange(len(part))) for part in x.split(_CHUNK)])


def encoded(features: Model, x: Tensor) -> Tensor:
    """Features of samples. (N, *) -> (N, D)"""
    encode = features.tasks.encode
    assert encode is not None
    return judged(encode, x)


def as_shown(x: Tensor, spec: DataSpec) -> Tensor:
    """Samples rounded to the levels real data has, so that a classifier cannot tell them by their fractions."""
    return x if spec.levels is None else spec.from_levels(spec.to_levels(x))
