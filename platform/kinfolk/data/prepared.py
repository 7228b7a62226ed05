"""A prepared data set: a folder of Parquet shards and the record that says what they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator

from kinfolk.contract import Config, DataSpec
from kinfolk.data.entry import SplitName
from kinfolk.data.modes import KnownModes
from kinfolk.data.shards import read_shard
from kinfolk.data.source import Source, TensorSource, stored_dtype
from kinfolk.data.streaming import ShardSource
from kinfolk.errors import DataError, IntegrityError
from kinfolk.manifest import sha256_of

RECORD = "dataset.json"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"
MEMORY_BYTES = 4 * 2**30


class Shard(Config):
    """One Parquet file of a data set."""

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # a file of the data set's own folder
    split: SplitName
    rows: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DatasetRecord(Config):
    """Everything there is to know of a prepared data set but its samples: ``dataset.json``."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    spec: DataSpec
    class_names: tuple[str, ...] = ()
    splits: dict[SplitName, int]  # samples in each
    source: str
    licence: str
    skipped: int = Field(0, ge=0)  # unreadable files that were left out on request
    modes: KnownModes | None = None
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> "DatasetRecord":
        rows: Counter[str] = Counter()
        for shard in self.shards:
            rows[shard.split] += shard.rows
        if dict(rows) != self.splits:
            raise ValueError(f"splits={self.splits} but the shards hold {dict(rows)}")
        if len(self.class_names) != (self.spec.classes or 0):
            raise ValueError(f"{len(self.class_names)} class_names but classes={self.spec.classes}")
        return self


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set on disk whose every byte was checked."""

    path: Path
    record: DatasetRecord

    @property
    def spec(self) -> DataSpec:
        """What one sample is."""
        return self.record.spec

    @classmethod
    def open(cls, path: Path) -> "Prepared":
        """The data set in folder ``path``, after comparing each shard with its recorded sha256.

        Raises:
            DataError: there is no data set at ``path``, or a shard is missing.
            IntegrityError: the record or a shard is not what was written; the file is named.
        """
        prepared = cls(path, _read_record(path))
        for shard in prepared.record.shards:
            _verify(path, prepared.record.name, shard)
        return prepared

    def source(self, split: SplitName, memory_bytes: int = MEMORY_BYTES) -> Source:
        """Samples of ``split``: held in memory if they take at most ``memory_bytes`` decoded, else streamed.

        Raises:
            DataError: there is no such split, or a shard does not hold what the record says.
        """
        if split not in self.record.splits:
            raise DataError(f"{self.path} has no split {split!r}. It has {' and '.join(self.record.splits)}.")
        files = [(self.path / shard.path, shard.rows) for shard in self.record.shards if shard.split == split]
        sample_bytes = self.spec.dims * stored_dtype(self.spec).itemsize
        if sample_bytes * self.record.splits[split] > memory_bytes:
            return ShardSource(self.spec, files)
        return _in_memory(self.spec, files)


def _in_memory(spec: DataSpec, files: Sequence[tuple[Path, int]]) -> TensorSource:
    total = sum(rows for _, rows in files)
    x = torch.empty(total, *spec.shape, dtype=stored_dtype(spec))
    label = torch.empty(total, dtype=torch.int64) if spec.classes else None
    start = 0
    for path, count in files:
        rows = read_shard(path, spec, count)
        x[start : start + count] = rows.x
        if label is not None and rows.label is not None:
            label[start : start + count] = rows.label
        start += count
    return TensorSource(spec, x, label)


def _read_record(folder: Path) -> DatasetRecord:
    path = folder / RECORD
    try:
        return DatasetRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"No prepared data set at {folder}: {RECORD} is missing. Run `kinfolk data prepare {folder.name}`; "
            "`kinfolk data list` names what can be prepared."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise IntegrityError(
            f"{path} is not a record this version reads: {where}: {first['msg']}. "
            f"Run `kinfolk data prepare {folder.name}` to write it again."
        ) from None


def _verify(folder: Path, name: str, shard: Shard) -> None:
    path = folder / shard.path
    remedy = f"Run `kinfolk data prepare {name}` to write it again."
    if not path.is_file():
        raise DataError(f"{path} is missing although {RECORD} lists it. {remedy}")
    if (got := sha256_of(path)) != shard.sha256:
        raise IntegrityError(
            f"{path} was altered or cut short: {RECORD} expects sha256 {shard.sha256}, got {got}. {remedy}"
        )
