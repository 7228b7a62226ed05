"""Whether samples are what was asked for, by the judgement of a classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import DataError


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Samples classified as the class they were asked to be."""

    accuracy: float  # share of all samples
    per_class: tuple[float | None, ...]  # (K,) share of those asked to be of the class; None where none was asked
    covered: int  # classes of which at least one sample was asked for and recognised
    classes: int


def class_accuracy(logits: Tensor, asked: Tensor) -> ClassAccuracy:
    """How often the likeliest class is the one asked for. (N, K), (N,) int64

    Raises:
        DataError: there are no samples, logits are not finite, or ``asked`` holds no class of the classifier.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    _check(logits, asked)
    classes = logits.shape[1]
    confusion = multiclass_confusion_matrix(logits.argmax(1), asked, num_classes=classes)  # (K asked, K recognised)
    right, wanted = confusion.diagonal(), confusion.sum(1)
    per_class = [hit / n if n else None for hit, n in zip(right.tolist(), wanted.tolist(), strict=True)]
    return ClassAccuracy(int(right.sum()) / len(asked), tuple(per_class), int((right > 0).sum()), classes)


def class_counts(logits: Tensor) -> Tensor:
    """Samples the classifier assigns to each class, for models that cannot be asked. (N, K) -> (K,) int64"""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1])


def _check(logits: Tensor, asked: Tensor) -> None:
    if logits.dim() != 2 or asked.shape != logits.shape[:1] or not len(asked):
        raise DataError(
            f"want logits (N, K) and classes (N,) of at least one sample, got {tuple(logits.shape)} and "
            f"{tuple(asked.shape)}."
        )
    if not bool(logits.isfinite().all()):
        raise DataError("logits are not finite: the samples or the classifier that judged them have diverged.")
    if bool((asked < 0).any() or (asked >= logits.shape[1]).any()):
        raise DataError(
            f"asked classes run from {int(asked.min())} to {int(asked.max())}, the classifier knows 0 to "
            f"{logits.shape[1] - 1}. Use the classifier of the same data set."
        )
