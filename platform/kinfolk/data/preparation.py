"""Writing a data set: shards first, the record last, in a folder that takes its place only when it is whole."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from kinfolk.contract import DataSpec
from kinfolk.data.entry import Contents, Entry, Report, SplitName
from kinfolk.data.prepared import RECORD, DatasetRecord, Shard
from kinfolk.data.shards import SHARD_SUFFIX, sharded, write_shard
from kinfolk.data.source import Rows
from kinfolk.errors import DataError
from kinfolk.manifest import sha256_of, taking_place_of

_ELEMENTS_AT_ONCE = 2**22  # measured in float64, eight times the memory of levels
_STD_DECIMALS = 6  # further ones change with the number of threads that sum


class Moments:
    """Mean and variance over all elements seen, merged chunk by chunk in float64.

    Source: Chan, Golub and LeVeque, 1979, Updating formulae and a pairwise algorithm, eq. 2.1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean

    def add(self, values: torch.Tensor) -> None:
        """Take in every element of ``values``. (*)"""
        variance, mean = torch.var_mean(values.double(), correction=0)
        count, shift = values.numel(), float(mean) - self.mean
        total = self.count + count
        self.squares += float(variance) * count + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation of everything seen."""
        return math.sqrt(self.squares / self.count)


def check_destination(destination: Path) -> None:
    """Refuse to replace anything but a prepared data set.

    Raises:
        DataError: ``destination`` is a file, or a folder that holds something else.
    """
    if destination.is_dir():
        foreign = [path.name for path in destination.iterdir() if path.name != RECORD and path.suffix != SHARD_SUFFIX]
    else:
        foreign = [destination.name] if destination.exists() else []
    if foreign:
        raise DataError(
            f"{destination} holds {sorted(foreign)[0]!r}, which is no part of a prepared data set and would be lost. "
            "Name a new folder, an empty one, or one that a data set was prepared in."
        )


def write(destination: Path, name: str, entry: Entry, contents: Contents, report: Report) -> None:
    """Write ``contents`` as the data set ``destination``, replacing one that is there only once complete.

    Raises:
        DataError: a split is empty, the train split does not vary, or bad files are not to be left out.
    """
    with taking_place_of(destination.resolve()) as folder:
        moments = Moments()
        shards: list[Shard] = []
        for split, part in contents.splits.items():
            chunks = _reported(_checked(part.chunks, contents.spec), f"{name}: {split}", part.rows, report)
            if split == "train":
                chunks = _measured(chunks, contents.spec, moments)
            shards += _write_split(folder, split, chunks)
        skipped, sizes = contents.skipped(), _sizes(shards)
        record = DatasetRecord(
            name=name,
            spec=_with_std(contents.spec, moments),
            class_names=contents.class_names,
            splits=sizes,
            source=entry.origin,
            licence=entry.licence,
            skipped=skipped,
            modes=entry.modes,
            shards=tuple(shards),
        )
        (folder / RECORD).write_text(_text(record), encoding="utf-8")


def _text(record: DatasetRecord) -> str:
    """The record as it is stored; data without known modes has the bytes, and so the hash, it always had."""
    left_out = {"modes"} if record.modes is None else None
    return record.model_dump_json(indent=1, exclude=left_out) + "\n"


def _checked(chunks: Iterable[Rows], spec: DataSpec) -> Iterator[Rows]:
    for rows in chunks:
        rows.check(spec, "What is to be written")
        yield rows


def _reported(chunks: Iterable[Rows], what: str, total: int, report: Report) -> Iterator[Rows]:
    done = 0
    report(what, done, total)
    for rows in chunks:
        yield rows
        done += len(rows)
        report(what, done, total)


def _measured(chunks: Iterable[Rows], spec: DataSpec, moments: Moments) -> Iterator[Rows]:
    at_once = max(1, _ELEMENTS_AT_ONCE // spec.dims)
    for rows in chunks:
        for start in range(0, len(rows), at_once):
            moments.add(rows[start : start + at_once].to_batch(spec).x)
        yield rows


def _write_split(folder: Path, split: SplitName, chunks: Iterable[Rows]) -> Iterator[Shard]:
    for number, rows in enumerate(sharded(chunks)):
        path = folder / f"{split}-{number:05d}{SHARD_SUFFIX}"
        write_shard(path, rows)
        yield Shard(path=path.name, split=split, rows=len(rows), sha256=sha256_of(path))


def _sizes(shards: Iterable[Shard]) -> dict[SplitName, int]:
    sizes: dict[SplitName, int] = {"train": 0, "test": 0}
    for shard in shards:
        sizes[shard.split] += shard.rows
    for split, rows in sizes.items():
        if not rows:
            raise DataError(f"The {split} split would have no samples. Give more data, or change how it is split.")
    return sizes


def _with_std(spec: DataSpec, moments: Moments) -> DataSpec:
    if spec.kind == "tokens":
        return spec
    std = round(moments.std, _STD_DECIMALS)
    if not std > 0:
        raise DataError("Every value of the train split is the same: there is nothing to learn. Give data that varies.")
    return spec.model_copy(update={"data_std": std})
