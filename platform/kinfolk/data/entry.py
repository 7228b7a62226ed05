"""What a catalogue entry is, and what it hands over to be written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinfolk.contract import Config, DataSpec
from kinfolk.data.modes import KnownModes
from kinfolk.data.source import Rows

SplitName = Literal["train", "test"]
Report = Callable[[str, int, int], None]  # (what is being done, done, of how many)


class NoOptions(Config):
    """A data set with nothing to choose."""


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set, drawn once, chunk by chunk."""

    rows: int  # as expected; fewer arrive where bad files are left out
    chunks: Iterable[Rows]


@dataclass(frozen=True, slots=True)
class Contents:
    """A data set on its way to disk."""

    spec: DataSpec  # ``data_std`` is measured while writing
    splits: Mapping[SplitName, Split]
    class_names: tuple[str, ...] = ()
    skipped: Callable[[], int] = lambda: 0  # samples left out, asked after the last chunk; raises to refuse them


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks of an entry."""

    source: Path | None  # where their own files are
    options: Any  # an instance of the entry's options
    skip_bad: bool  # leave unreadable files out instead of refusing
    report: Report


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set that can be prepared by name."""

    name: str
    summary: str
    origin: str  # who made it, with what to cite
    licence: str
    spec: DataSpec  # a preview, under default options and before ``data_std`` is measured
    contents: Callable[[Request], Contents]
    options: type[Config] = NoOptions
    source: Literal["none", "optional", "required"] = "none"  # whether a user's path is taken
    modes: KnownModes | None = None  # for counting those that a model has lost
