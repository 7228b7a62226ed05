"""The data sets that can be prepared by name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinfolk.config import parse
from kinfolk.data import digits, folder, mixtures, mnist, patches, stacked_mnist
from kinfolk.data.entry import Entry, Report, Request
from kinfolk.data.preparation import check_destination, write
from kinfolk.data.prepared import NAME_PATTERN, Prepared
from kinfolk.errors import ConfigError, DataError, nearest

_ALL = (
    digits.ENTRY,
    mnist.ENTRY,
    stacked_mnist.ENTRY,
    mixtures.RING,
    mixtures.GRID,
    patches.ENTRY,
    folder.ENTRY,
)
_ENTRIES = {entry.name: entry for entry in _ALL}


def names() -> tuple[str, ...]:
    """Every name that can be prepared."""
    return tuple(_ENTRIES)


def entry(name: str) -> Entry:
    """What the catalogue knows of ``name``.

    Raises:
        DataError: nothing is called so; the nearest name is given.
    """
    if name not in _ENTRIES:
        raise DataError(f"No data set is called {name!r}.{nearest(name, _ENTRIES)} Known: {', '.join(_ENTRIES)}.")
    return _ENTRIES[name]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def prepare(
    kind: str,
    destination: Path,
    *,
    name: str | None = None,
    source: Path | None = None,
    options: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    progress: Report = silent,
) -> Prepared:
    """Make catalogue entry ``kind`` into the prepared data set ``destination``, and open it.

    A data set already there is replaced, and only once the new one is complete. ``name`` is what the record calls it,
    by default ``kind``.

    Raises:
        DataError: ``kind`` or ``source`` is unknown, unreadable or missing, or ``destination`` holds something else.
        ConfigError: an option is unknown or not allowed.
    """
    wanted = entry(kind)
    check_name(name or kind)
    _check_source(wanted, source)
    check_destination(destination)
    request = Request(source, parse(wanted.options, options or {}, f"Options of {kind}"), skip_bad, progress)
    contents = wanted.contents(request)
    try:
        write(destination, name or kind, wanted, contents, progress)
    except OSError as error:
        raise DataError(f"{destination} cannot be written: {error}. What was there before is untouched.") from None
    return Prepared.open(destination)


def check_name(name: str) -> None:
    """Refuse what cannot name a data set, and so a folder.

    Raises:
        ConfigError: with what is allowed.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name!r} cannot name a data set. Use lower-case letters, digits, '.', '_' and '-', for example 'my-cats'."
        )


def _check_source(wanted: Entry, source: Path | None) -> None:
    if source is None and wanted.source == "required":
        raise DataError(f"{wanted.name} is made from your own files. Name the path that holds them.")
    if source is not None and wanted.source == "none":
        raise DataError(f"{wanted.name} takes no path, got {source}: it is not made from files. Leave the path out.")
    if source is not None and not source.exists():
        raise DataError(f"{source} does not exist. Name the path that holds the files for {wanted.name}.")
