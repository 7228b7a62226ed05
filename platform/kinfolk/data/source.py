"""Where training and evaluation take samples from. Torch only: it serves a machine without pyarrow or numpy.

Stored samples are levels (uint8, or int32 for more than 256 of them), or float32 where data is continuous.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec
from kinfolk.data.order import positions
from kinfolk.errors import DataError


class Source(Protocol):
    """A split of a data set. Both views of it are pure: the same arguments give the same samples."""

    @property
    def spec(self) -> DataSpec:
        """What one sample is."""

    def __len__(self) -> int:
        """Samples in the split."""

    def batch(self, seed: int, start: int, stop: int) -> Batch:
        """The samples at positions [start, stop) of the endless shuffled stream that ``seed`` defines."""

    def take(self, start: int, stop: int) -> Batch:
        """Samples [start, stop) in stored order, for evaluation.

        Raises:
            DataError: the split has fewer.
        """


def stored_dtype(spec: DataSpec) -> torch.dtype:
    """How samples of ``spec`` are held: the smallest of uint8, int32 and float32 that loses nothing."""
    if spec.levels is None:
        return torch.float32
    return torch.uint8 if spec.levels <= 256 else torch.int32


def check_range(start: int, stop: int, rows: int | None = None) -> None:
    """Refuse [start, stop) unless it is a stretch of a split of ``rows`` samples, or of an endless stream.

    Raises:
        DataError: it starts before 0, is empty, or ends past ``rows``.
    """
    if not 0 <= start < stop or (rows is not None and stop > rows):
        end = "" if rows is None else f" <= {rows}, the size of the split"
        raise DataError(f"Samples [{start}, {stop}) were asked for. Ask for 0 <= start < stop{end}.")


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as they are stored, with their classes."""

    x: Tensor  # (B, *shape) of ``stored_dtype``
    label: Tensor | None = None  # (B,) int64

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> "Rows":
        return Rows(self.x[index], None if self.label is None else self.label[index])

    @classmethod
    def cat(cls, parts: list["Rows"]) -> "Rows":
        """All rows of ``parts``, in order."""
        labels = [part.label for part in parts if part.label is not None]
        return cls(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)

    def to_batch(self, spec: DataSpec) -> Batch:
        """The same samples as a family sees them."""
        return Batch(self.x if spec.levels is None else spec.from_levels(self.x), self.label)

    def check(self, spec: DataSpec, where: str) -> None:
        """Refuse rows that are not what ``spec`` says; ``where`` stands before the message.

        Raises:
            DataError: shape, dtype, a value or a label is not allowed by ``spec``.
        """
        for fault in (*_sample_faults(self.x, spec), *_label_faults(self, spec)):
            raise DataError(f"{where}: {fault}. Prepare the data set again, or mend what it was made from.")


def _sample_faults(x: Tensor, spec: DataSpec) -> Iterator[str]:
    if x.shape[1:] != spec.shape:
        yield f"a sample has shape {tuple(x.shape[1:])}, the record says {spec.shape}"
    elif x.dtype != stored_dtype(spec):
        yield f"samples are {x.dtype}, levels={spec.levels} is stored as {stored_dtype(spec)}"
    elif spec.levels is None and not x.isfinite().all():
        yield "a value is not finite"
    elif spec.levels is not None:
        yield from _range_fault(x, spec.levels, "a level")


def _label_faults(rows: Rows, spec: DataSpec) -> Iterator[str]:
    label = rows.label
    if (label is None) != (spec.classes is None):
        yield f"labels are {'missing' if label is None else 'present'}, the record says classes={spec.classes}"
    elif label is None or spec.classes is None:
        return
    elif label.shape != rows.x.shape[:1] or label.dtype != torch.int64:
        yield f"labels are {label.dtype} of shape {tuple(label.shape)}, one int64 for each sample is needed"
    else:
        yield from _range_fault(label, spec.classes, "a label")


def _range_fault(values: Tensor, stop: int, what: str) -> Iterator[str]:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if low < 0 or high >= stop:
        yield f"{what} is outside [0, {stop}), got {low} to {high}"


class TensorSource:
    """A split that is held in memory whole, as stored, and turned into a family's view batch by batch."""

    def __init__(self, spec: DataSpec, x: Tensor, label: Tensor | None = None) -> None:
        """``x`` (N, *shape) of ``stored_dtype(spec)``, ``label`` (N,) int64.

        Raises:
            DataError: there are no samples, or they are not what ``spec`` says.
        """
        self.spec = spec
        self.rows = Rows(x, label)
        self.rows.check(spec, "Samples in memory")
        if not len(x):
            raise DataError("A split without samples cannot be drawn from. Give it at least one.")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, seed: int, start: int, stop: int) -> Batch:
        """The samples at positions [start, stop) of the endless shuffled stream that ``seed`` defines."""
        check_range(start, stop)
        return self.rows[positions(seed, start, stop, len(self))].to_batch(self.spec)

    def take(self, start: int, stop: int) -> Batch:
        """Samples [start, stop) in stored order."""
        check_range(start, stop, len(self))
        return self.rows[start:stop].to_batch(self.spec)


def keep(source: Source, labels: Sequence[int]) -> Source:
    """The samples of some classes alone; all of them where ``labels`` is empty.

    Raises:
        DataError: the data has no such class or no sample of it, or is too large to be held in memory.
    """
    if not labels:
        return source
    classes = source.spec.classes or 0
    if bad := [label for label in labels if not 0 <= label < classes]:
        allowed = f"Use 0 to {classes - 1}" if classes else "This data has no classes: leave it out"
        raise DataError(f"keep_labels={bad[0]} is not a class of the data. {allowed}.")
    if not isinstance(source, TensorSource) or source.rows.label is None:
        raise DataError("keep_labels needs data that fits in memory. Prepare the wanted classes as a data set.")
    wanted = torch.isin(source.rows.label, torch.tensor(labels))
    rows = source.rows[wanted.nonzero().flatten()]
    return TensorSource(source.spec, rows.x, rows.label)
