"""The commands' functions on a small MLflow store, with a training that runs in this process instead of on Ray."""

import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console

from kinfolk.data.catalogue import prepare
from kinfolk.errors import KinfolkError
from kinfolk_pipelines.settings import Settings

RECIPE = """
family: gaussian
data: ring
training: {samples: 64, batch_size: 32, log_every_samples: 32}
evaluation: {samples: 12, options: {steps: 2, temperature: 0.5}}
"""


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory):
    """A folder of prepared data sets that holds ``ring``."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("ring", folder / "ring")
    return folder


@pytest.fixture
def settings(tmp_path, empty_store, prepared_folder, toy):
    (tmp_path / "recipes" / "ring").mkdir(parents=True)
    (tmp_path / "recipes" / "ring" / "blob.yaml").write_text(RECIPE)
    (tmp_path / "state").mkdir()
    shutil.copy(empty_store, tmp_path / "state" / "mlflow.db")
    return Settings(state=tmp_path / "state", data=prepared_folder, recipes=tmp_path / "recipes")


@dataclass
class InProcess:
    """What was asked of Ray; ``stop_after`` samples ends a training as Ctrl-C does, ``fails`` as a fault does."""

    cpus: int = 8
    asked: list[dict[str, Any]] = field(default_factory=list)
    stop_after: int | None = None
    says_from: int = 0  # samples seen that a training says it goes on from
    fails: KinfolkError | None = None
    alarm: str | None = None  # what its monitor warns of in the end

    def launch(self, job, *, listener, **asked):
        from kinfolk.data.prepared import Prepared
        from kinfolk.training.launch import Outcome
        from kinfolk.training.loop import train
        from kinfolk.training.worker import fresh_state

        self.asked.append({"job": job, **asked})
        if self.fails:
            raise self.fails
        data = Prepared.open(job.data)
        state = fresh_state(job, data.spec)
        listener({"kind": "start", "samples_seen": self.says_from, "problems": []})
        learned = Prepared.open(job.latents) if job.latents else data
        for report in train(state, learned.source("train"), job.recipe.training, job.recipe.seed):
            logs = {"logs": dict(report.logs)} if report.kind == "log" else {}
            picture = {"picture": "cGljdHVyZQ=="} if report.kind == "preview" else {}
            listener({"kind": report.kind, "samples_seen": report.samples_seen, **logs, **picture})
            if self.stop_after is not None and report.samples_seen >= self.stop_after:
                return Outcome(None, report.samples_seen, True, "")
        if self.alarm is None:
            return Outcome(state.served(), state.samples_seen, False, "")
        seen = {"noted": {"alarm": {"reason": self.alarm}}, "samples": "bnB5", "picture": "cG5n"}
        listener({"kind": "alarm", "samples_seen": state.samples_seen, "reason": self.alarm, **seen})
        return Outcome(state.served(), state.samples_seen, False, "", (self.alarm,))


@pytest.fixture
def ray(monkeypatch):
    """Stands in for Ray: a machine of eight CPUs that trains at once."""
    import kinfolk.training.launch as launch
    import kinfolk_pipelines.train as train
    from kinfolk.training import attempts

    standing_in = InProcess()
    monkeypatch.setattr(attempts, "launch", standing_in.launch)
    monkeypatch.setattr(launch, "check_workers", lambda workers, use_gpu: None)
    monkeypatch.setattr(train, "connect", lambda *_, **__: None)
    monkeypatch.setattr(train, "_node_cpus", lambda: standing_in.cpus)
    return standing_in


@pytest.fixture
def quiet():
    return Console(quiet=True)
