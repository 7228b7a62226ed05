"""A trial of several workers: Ray Train inside a trial of Tune, which measures each checkpoint the workers leave."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType
from ray import tune

from kinfolk.checkpoint import Snapshot, newest_good
from kinfolk.data.prepared import Prepared
from kinfolk.training.launch import launch
from kinfolk.training.worker import Job, fresh_state
from kinfolk.tuning.trial import Work, figures_of, job_of, reasons, said, stored_at


def run_team_trial(config: Mapping[str, Any], work: Work) -> None:
    """Tune's trainable. Train goes on from what it stored under the trial's name in an earlier start by itself."""
    order = config["trial"]
    try:
        job = job_of(work, order["settings"], order["seed"])
        storage = f"{work.storage}/teams"
        watcher = _Watcher(work, job, f"{storage}/{order['id']}")
        launch(job, name=order["id"], storage=storage, workers=work.sweep.workers, listener=watcher.listen)
    except Exception as error:
        tune.report({"error": said(error)})


@dataclass(slots=True)
class _Watcher:
    """Turns the reports of a training into those of a trial."""

    work: Work
    job: Job
    folder: str  # where Train keeps this trial's checkpoints
    _logs: dict[str, list[float]] = field(default_factory=dict)
    _measured: str = ""

    def listen(self, report: Mapping[str, Any]) -> None:
        """One report of the training; a checkpoint is measured, unless it was before."""
        for name, value in report.get("logs", {}).items():
            self._logs.setdefault(name, []).append(value)
        if report["kind"] != "checkpoint" or (found := self._newest()) is None:
            return
        self._measured, snapshot = found
        state = fresh_state(self.job, Prepared.open(self.job.data).spec)
        state.load(snapshot)
        figures = figures_of(self.work, state, self._logs)
        score, seen = self.work.sweep.score(figures), int(figures["samples_seen"])
        result = {"score": score, "samples_seen": seen, "figures": figures, "alarms": reasons(state.looks)}
        tune.report({**result, "checkpoint": self._measured})
        self._logs.clear()

    def _newest(self) -> tuple[str, Snapshot] | None:
        """The newest that is whole, unless it was measured: Train may be writing one or deleting another."""
        for path in checkpoints(self.folder):
            if path <= self._measured:
                return None
            snapshot, _ = newest_good(stored_at(self.work.storage, path))
            if snapshot is not None:
                return path, snapshot
        return None


def checkpoints(folder: str) -> list[str]:
    """Paths, in their storage, of the checkpoints below ``folder``, the one that Train began last first."""
    files, path = FileSystem.from_uri(folder)
    found = files.get_file_info(FileSelector(path, allow_not_found=True))
    names = (each.path for each in found if each.type == FileType.Directory and "checkpoint" in each.base_name)
    return sorted(names, reverse=True)
