"""The thread that carries a run's spool to MLflow at its own pace, so that training never waits for a server."""

import base64
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kinfolk.tracking.connection import connect
from kinfolk.tracking.spool import Entry, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH_ENTRIES = 50
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a run's entries got."""

    run_id: str
    unsent: int  # entries that are still in the spool
    refused: tuple[str, ...]  # entries that MLflow will never take, each with its reason
    trouble: str  # why the rest was not sent

    @property
    def complete(self) -> bool:
        """Whether MLflow holds all that it will take."""
        return self.unsent == 0


class Courier(threading.Thread):
    """Sends what is in the spool whenever MLflow answers, and sleeps while there is nothing to send."""

    def __init__(self, tracking_uri: str, run_id: str, spool: Spool) -> None:
        super().__init__(name=f"courier-{run_id[:8]}", daemon=True)
        self._uri, self._run_id, self._spool = tracking_uri, run_id, spool
        self._change = threading.Condition()
        self._failures = 0  # in a row
        self._trouble = ""
        self._refused: list[str] = []
        self._draining = self._ending = False

    def post(self, entry: Entry) -> None:
        """Put an entry into the spool and return; nothing is sent here."""
        with self._change:
            self._spool.append(entry)
            self._change.notify_all()

    def settle(self, timeout_s: float) -> Delivery:
        """Send what is left for up to ``timeout_s`` seconds and end; the spool is deleted if all was sent."""
        with self._change:
            self._draining = True
            self._change.notify_all()
            self._change.wait_for(lambda: not self._spool.unsent(1), timeout_s)
            self._ending = True
            self._change.notify_all()
        self.join(_STOP_TIMEOUT_S)
        delivery = Delivery(self._run_id, len(self._spool.unsent()), tuple(self._refused), self._trouble)
        if delivery.complete:
            self._spool.remove()
        self._spool.close()
        return delivery

    def run(self) -> None:
        """Carry batches until told to end."""
        while self._has_work():
            try:
                self._carry_batch()
            except Exception as error:  # whatever it is: training goes on, and the entries stay in the spool
                self._rest(str(error))
            else:
                self._failures, self._trouble = 0, ""

    def _has_work(self) -> bool:
        with self._change:
            self._change.notify_all()  # settle looks again
            self._change.wait_for(lambda: self._ending or self._spool.unsent(1))
            return not self._ending

    def _rest(self, trouble: str) -> None:
        with self._change:
            self._failures, self._trouble = self._failures + 1, trouble
            if self._draining:
                self._change.wait_for(lambda: self._ending, _FIRST_PAUSE_S)
            else:
                pause_s = min(_FIRST_PAUSE_S * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
                self._change.wait_for(lambda: self._ending or self._draining, pause_s)

    def _carry_batch(self) -> None:
        waiting = self._spool.unsent(_BATCH_ENTRIES)
        figures = list(takewhile(lambda item: "metrics" in item[0], waiting))
        self._carry(connect(self._uri), figures or waiting[:1])

    def _carry(self, client: "MlflowClient", items: Sequence[tuple[Entry, int]]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            _send(client, self._run_id, [entry for entry, _ in items])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(items) > 1:  # find the one that is refused
                for item in items:
                    self._carry(client, [item])
                return
            self._refused.append(f"{_summary(items[0][0])}: {str(error)[:200]}")
        self._spool.sent(items[-1][1])


def _summary(entry: Entry) -> str:
    if "metrics" in entry:
        return f"metrics {', '.join(entry['metrics'])} at step {entry['step']}"
    if "file" in entry:
        return f"file {entry['path']}"
    return f"tag {entry['tag']}" if "tag" in entry else f"status {entry['status']}"


def _send(client: "MlflowClient", run_id: str, entries: Sequence[Entry]) -> None:
    """One entry of any kind, or several of figures."""
    first = entries[0]
    if "metrics" in first:
        _send_figures(client, run_id, entries)
    elif "file" in first:
        _send_file(client, run_id, PurePosixPath(first["path"]), base64.b64decode(first["file"]))
    elif "tag" in first:
        client.set_tag(run_id, first["tag"], first["value"])
    else:
        client.set_terminated(run_id, first["status"], first["at_ms"])


def _send_figures(client: "MlflowClient", run_id: str, entries: Sequence[Entry]) -> None:
    from mlflow.entities import Metric

    figures = [
        Metric(name, value, entry["at_ms"], entry["step"])
        for entry in entries
        for name, value in entry["metrics"].items()
    ]
    client.log_batch(run_id, metrics=figures)


def _send_file(client: "MlflowClient", run_id: str, path: PurePosixPath, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / path.name
        file.write_bytes(content)
        client.log_artifact(run_id, str(file), str(path.parent) if path.parent.name else None)
