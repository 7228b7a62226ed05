"""What is remembered of a sweep: one JSON file a trial, written before anything else learns of a change.

A driver may die at any moment; the next one reads the ledger and nothing else. Ray Tune's own state is never read:
it is a pickle, and says less (a trial's figures, settings, checkpoints and error are all here).
"""

import fcntl
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from kinfolk.errors import ConfigError, IntegrityError

Loaded = TypeVar("Loaded")
Status = Literal["waiting", "running", "finished", "stopped", "failed"]
ENDED: frozenset[Status] = frozenset({"finished", "stopped", "failed"})
REPEAT = "seed-"  # how the names of trials begin that repeat the best settings with other seeds
_HEAD = ("digest", "id", "seconds", "starts", "run_id", "version")
_KEPT = 2  # checkpoints to go on from: the one before a damaged one must exist


@dataclass(slots=True)
class Trial:
    """One set of settings in training, or trained."""

    id: str
    settings: dict[str, Any]  # as they are now
    seed: int | None = None  # of training; None: the recipe's
    status: Status = "waiting"
    reports: list[dict[str, float]] = field(default_factory=list)  # figures, each with its ``samples_seen``
    changes: list[dict[str, Any]] = field(default_factory=list)  # of settings: samples_seen, donor, settings before
    alarms: list[str] = field(default_factory=list)  # of its monitor, until the last report, in words
    checkpoints: list[str] = field(default_factory=list)  # paths in the storage, oldest first
    error: str | None = None
    run_id: str | None = None  # in MLflow
    told: bool = False  # MLflow was told how it ended

    @property
    def repeats(self) -> bool:
        """Whether it repeats the best settings with another seed, and is no part of the search."""
        return self.id.startswith(REPEAT)

    @property
    def samples_seen(self) -> int:
        """Of the last report."""
        return int(self.reports[-1]["samples_seen"]) if self.reports else 0

    @property
    def figures(self) -> Mapping[str, float]:
        """Of the last report; none before the first."""
        return self.reports[-1] if self.reports else {}

    @property
    def first_settings(self) -> Mapping[str, Any]:
        """As they were before any change."""
        return self.changes[0]["before"] if self.changes else self.settings

    def add(self, report: Mapping[str, float], alarms: Sequence[str] = ()) -> None:
        """A report, with all alarms so far; those it repeats or undoes, after going back to a checkpoint, make room."""
        self.reports = [each for each in self.reports if each["samples_seen"] < report["samples_seen"]]
        self.reports.append(dict(report))
        self.alarms = list(alarms)

    def stored(self, checkpoint: str) -> None:
        """A checkpoint that is complete in the storage."""
        self.checkpoints = [*[each for each in self.checkpoints if each != checkpoint], checkpoint][-_KEPT:]


@dataclass(slots=True)
class Ledger:
    """The trials of one sweep, in memory and in a folder."""

    folder: Path
    digest: str  # of the sweep, its recipe and its data
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # tells it from others of the same digest
    trials: dict[str, Trial] = field(default_factory=dict)
    seconds: float = 0.0  # of searching, over all starts
    starts: int = 0
    run_id: str | None = None  # in MLflow
    version: str | None = None  # that came of it, NAME/VERSION

    def save(self, trial: Trial) -> None:
        """Remember ``trial`` as it is now."""
        self.trials[trial.id] = trial
        _write(self.folder / "trials" / f"{trial.id}.json", asdict(trial))

    def save_head(self) -> None:
        """Remember what is not of one trial."""
        _write(self.folder / "sweep.json", {name: getattr(self, name) for name in _HEAD})


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(value, indent=1))
    aside.replace(path)


def exists(folder: Path) -> bool:
    """Whether a sweep was begun here."""
    return (folder / "sweep.json").is_file()


@contextmanager
def opened(folder: Path, digest: str, *, fresh: bool = False) -> Iterator[Ledger]:
    """The ledger in ``folder``, begun or gone on with; no other process may open it meanwhile.

    With ``fresh`` it is a new one whatever is there, which stays as it is until ``put_aside``.

    Raises:
        ConfigError: another process runs this sweep, or what was begun here differs.
        IntegrityError: a file is none of a ledger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process runs the sweep in {folder}. End it, or wait until it is done."
            ) from None
        yield _read(folder, digest) if exists(folder) and not fresh else Ledger(folder, digest)


def put_aside(folder: Path) -> None:
    """Move what an earlier sweep left in an opened folder to one beside it, named for the time."""
    kept = folder.with_name(f"{folder.name}.{time.time_ns()}")
    for name in ("sweep.json", "trials"):  # a death in between leaves no sweep that could be gone on with
        if (folder / name).exists():
            kept.mkdir(exist_ok=True)
            (folder / name).rename(kept / name)


def _read(folder: Path, digest: str) -> Ledger:
    ledger = _load(folder / "sweep.json", lambda head: Ledger(folder, **head))
    if ledger.digest != digest:
        raise ConfigError(
            f"The sweep in {folder} was begun with other settings, another recipe or other data "
            f"({ledger.digest}, now {digest}). Put them back to go on, or start over with --fresh."
        )
    for path in sorted((folder / "trials").glob("*.json")):
        trial = _load(path, lambda values: Trial(**values))
        ledger.trials[trial.id] = trial
    return ledger


def _load(path: Path, made: Callable[[dict[str, Any]], Loaded]) -> Loaded:
    try:
        return made(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path} is no record of a sweep: {error}. Start over with --fresh.") from None


def commonest_error(trials: Sequence[Trial]) -> tuple[str, int]:
    """The error that most failed trials ended with, and how many did; the first among equals."""
    errors = [trial.error for trial in trials if trial.error is not None]
    counts = {error: errors.count(error) for error in errors}
    error = max(counts, key=lambda each: counts[each])
    return error, counts[error]
