"""What a run has to say, on disk before it is sent: one JSON line an entry, and how many bytes of them were sent.

An entry is appended before anybody tries to send it and marked sent only after MLflow took it. A death in between
sends it twice; every entry carries the time it was made, so MLflow recognises the second one as the same point.
"""

import base64
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kinfolk.errors import RegistryError

Entry = Mapping[str, Any]
_LOCK_WAIT_S = 10.0  # a process that was just ended may still hold the file


def metrics_entry(metrics: Mapping[str, float], step: int) -> Entry:
    """Figures measured at a step."""
    return {"at_ms": _now_ms(), "step": step, "metrics": {name: float(value) for name, value in metrics.items()}}


def file_entry(content: bytes, path: str) -> Entry:
    """A file for the run's artifacts, at a relative path."""
    return {"at_ms": _now_ms(), "path": path, "file": base64.b64encode(content).decode("ascii")}


def tag_entry(name: str, value: str) -> Entry:
    """What the run is said to be, in place of what was said before under this name."""
    return {"at_ms": _now_ms(), "tag": name, "value": value}


def status_entry(status: str) -> Entry:
    """The end of the run."""
    return {"at_ms": _now_ms(), "status": status}


def _now_ms() -> int:
    return int(time.time() * 1000)


class Spool:
    """The entries of one run that this process alone may write and send, ``FOLDER/RUN_ID.jsonl``."""

    def __init__(self, folder: Path, run_id: str, lock_wait_s: float = _LOCK_WAIT_S) -> None:
        """Open or create the spool; a line that a death cut short is taken off.

        Raises:
            RegistryError: another living process writes this run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{run_id}.jsonl"
        self._sent_path = folder / f"{run_id}.sent"
        self._file = self.path.open("ab+")
        self._lock(lock_wait_s)
        self._cut_torn_line()
        self._sent_bytes = self._read_sent()

    def _lock(self, wait_s: float) -> None:
        give_up = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    self._file.close()
                    raise RegistryError(
                        f"{self.path} is in use: another process writes this run. End it, or wait until it is done."
                    ) from None
                time.sleep(0.05)

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)

    def _read_sent(self) -> int:
        text = self._sent_path.read_text() if self._sent_path.exists() else ""
        return min(int(text), self._file.tell()) if text.isdigit() else 0

    def append(self, entry: Entry) -> None:
        """Add an entry; it survives the process from here on."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def unsent(self, limit: int | None = None) -> list[tuple[Entry, int]]:
        """The first ``limit`` entries that were not sent, each with the mark to hand to ``sent`` once it is."""
        entries: list[tuple[Entry, int]] = []
        with self.path.open("rb") as file:
            file.seek(self._sent_bytes)
            while len(entries) != limit and (line := file.readline()).endswith(b"\n"):
                entries.append((json.loads(line), file.tell()))
        return entries

    def sent(self, mark: int) -> None:
        """Everything before ``mark`` was taken by MLflow; without effect once the spool is closed."""
        if self._file.closed:  # a slow answer, after another process may have taken over
            return
        aside = self._sent_path.with_suffix(".sent.new")
        aside.write_text(str(mark))
        aside.replace(self._sent_path)
        self._sent_bytes = mark

    def points(self) -> Iterator[tuple[str, int, float]]:
        """(name, step, value) of every figure in the spool, sent or not."""
        with self.path.open("rb") as file:
            for line in file:
                yield from points_of(json.loads(line))

    def close(self) -> None:
        """Let go of the spool; what was not sent stays for later."""
        self._file.close()

    def remove(self) -> None:
        """Delete the spool and let go of it."""
        self._sent_path.unlink(missing_ok=True)  # first: a mark without its spool would hide the next one's entries
        self.path.unlink(missing_ok=True)
        self._file.close()


def points_of(entry: Entry) -> list[tuple[str, int, float]]:
    """(name, step, value) of each figure of an entry."""
    return [(name, entry["step"], value) for name, value in entry.get("metrics", {}).items() if not math.isnan(value)]
