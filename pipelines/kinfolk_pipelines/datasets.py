"""Prepared data sets by name: prepare, open, describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfolk.config import override
from kinfolk.contract import Model
from kinfolk.data import catalogue
from kinfolk.data.entry import Report
from kinfolk.data.latents import write_latents
from kinfolk.data.modes import Stack
from kinfolk.data.prepared import RECORD, Prepared
from kinfolk.data.version import content_hash
from kinfolk_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Dataset:
    """A prepared data set with the hash DVC knows it by."""

    name: str
    prepared: Prepared
    digest: str

    @property
    def judge(self) -> str:
        """The data set whose classifier figures rest on: its own, or that of what each of its channels holds."""
        modes = self.prepared.record.modes
        return modes.judge if isinstance(modes, Stack) else self.name


def open_dataset(settings: Settings, name: str) -> Dataset:
    """The data set called ``name``; one that needs nothing from the user is prepared on first use.

    Raises:
        DataError: it is not prepared and cannot be made without the user's files.
    """
    catalogue.check_name(name)
    path = settings.dataset(name)
    if not (path / RECORD).exists() and name in catalogue.names() and catalogue.entry(name).source != "required":
        catalogue.prepare(name, path)
    return Dataset(name, Prepared.open(path), content_hash(path))


def prepare_dataset(
    settings: Settings,
    kind: str,
    *,
    name: str | None = None,
    source: Path | None = None,
    sets: Sequence[str] = (),
    skip_bad: bool = False,
    progress: Report = catalogue.silent,
) -> Dataset:
    """Prepare catalogue entry ``kind``, anew if it is there, as data set ``name``."""
    options: Mapping[str, Any] = override({}, sets)
    path = settings.dataset(name or kind)
    catalogue.prepare(kind, path, name=name, source=source, options=options, skip_bad=skip_bad, progress=progress)
    return open_dataset(settings, name or kind)


def encode_dataset(destination: Path, data: Dataset, stage: Model) -> None:
    """See that ``destination`` holds ``data`` as ``stage`` encodes it, from an earlier training or made now."""
    if not (destination / RECORD).exists():
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_latents(destination, data.prepared, stage, destination.name, catalogue.silent)
    Prepared.open(destination)


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every data set there is or could be: the catalogue, and the user's own."""
    prepared = {path.parent.name for path in settings.data.glob(f"*/{RECORD}")}
    known = [
        {"name": name, "summary": catalogue.entry(name).summary, "prepared": name in prepared}
        for name in catalogue.names()
    ]
    own = [{"name": n, "summary": "your own", "prepared": True} for n in sorted(prepared - set(catalogue.names()))]
    return known + own


def facts(dataset: Dataset) -> dict[str, Any]:
    """What ``kinfolk data show`` prints."""
    record = dataset.prepared.record
    return {
        "name": dataset.name,
        "folder": str(dataset.prepared.path),
        "hash": dataset.digest,
        "spec": record.spec.model_dump(mode="json"),
        "splits": dict(record.splits),
        "class_names": list(record.class_names),
        "skipped": record.skipped,
        "source": record.source,
        "licence": record.licence,
        "shards": len(record.shards),
        "checked": "every shard has the sha256 it was written with",
    }
