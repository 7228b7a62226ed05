"""Runs in MLflow: started only when MLflow answers, then never held up by it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from kinfolk.errors import ConfigError, RegistryError
from kinfolk.tracking.connection import connect, registry_errors, sqlite_path
from kinfolk.tracking.courier import Courier, Delivery
from kinfolk.tracking.spool import Entry, Spool, file_entry, metrics_entry, points_of, status_entry, tag_entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
Point = tuple[str, int, float]  # name, step, value
_DIGEST_CHARACTERS = 36  # MLflow's column; as long as DVC's hash of a folder, "<32 digits>.dir"
_SETTLE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class DataVersion:
    """The data a run reads."""

    name: str
    digest: str  # of DVC
    source: str  # where it came from: an address, a path or a package


class Run:
    """A run in MLflow. Logging writes to the spool and returns; a thread delivers, now or when MLflow is back.

    Pickles as its address, so it can be handed to the process that trains; one process at a time may log to it.
    """

    def __init__(self, tracking_uri: str, run_id: str, spool: Path, known: frozenset[Point] = frozenset()) -> None:
        self.run_id = run_id
        self._tracking_uri, self._folder, self._known = tracking_uri, spool, known
        self._seen = set(known)
        self._courier: Courier | None = None

    def __reduce__(self) -> tuple[type["Run"], tuple[str, str, Path, frozenset[Point]]]:
        return Run, (self._tracking_uri, self.run_id, self._folder, self._known)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures at ``step`` samples seen. A point that is there already (exact resume repeats some) is not repeated.

        Raises:
            RegistryError: another living process logs to this run.
        """
        courier = self._open()
        entry = metrics_entry(metrics, step)
        new = {name: value for name, value in entry["metrics"].items() if (name, step, value) not in self._seen}
        if new:
            courier.post({**entry, "metrics": new})
            self._seen.update(points_of({**entry, "metrics": new}))

    def log_file(self, content: bytes, path: str) -> None:
        """A file among the run's artifacts, for example at ``samples/000100.png``.

        Raises:
            ConfigError: the path is absolute or leads out of the run's artifacts.
            RegistryError: another living process logs to this run.
        """
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or not place.name:
            raise ConfigError(f"A file cannot be logged as {path!a}: use a relative path such as samples/1.png.")
        self._post(file_entry(content, path))

    def tag(self, name: str, value: str) -> None:
        """A tag of the run, in place of an earlier one of this name.

        Raises:
            RegistryError: another living process logs to this run.
        """
        self._post(tag_entry(name, value))

    def finish(self, status: Status = "FINISHED", timeout_s: float = _SETTLE_TIMEOUT_S) -> Delivery:
        """End the run, delivering for up to ``timeout_s`` seconds; what is left stays for ``deliver_spool``."""
        self._post(status_entry(status))
        return self.close(timeout_s)

    def close(self, timeout_s: float = _SETTLE_TIMEOUT_S) -> Delivery:
        """Deliver as ``finish`` does without ending the run, so that another process may log to it."""
        delivery = self._open().settle(timeout_s)
        self._courier = None
        return delivery

    def _post(self, entry: Entry) -> None:
        self._open().post(entry)

    def _open(self) -> Courier:
        if self._courier is None:
            spool = Spool(self._folder, self.run_id)
            self._seen.update(spool.points())
            self._courier = Courier(self._tracking_uri, self.run_id, spool)
            self._courier.start()
        return self._courier


@dataclass(frozen=True, slots=True)
class Tracker:
    """One experiment at one MLflow, with the folder where what could not be sent is kept."""

    tracking_uri: str
    experiment: str
    spool: Path

    def check(self) -> None:
        """Return if MLflow answers and can be read: asked before training starts.

        Raises:
            ConfigError: the address is none that can be used.
            RegistryError: MLflow is out of reach, or what answers there is not MLflow.
        """
        client = connect(self.tracking_uri)
        with registry_errors(self.tracking_uri, "list experiments"):
            client.search_experiments(max_results=1)

    def start_run(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        data: DataVersion | None = None,
        resume_run_id: str | None = None,
    ) -> Run:
        """A new run, or the earlier one set running again; nested ``params`` are logged under dotted keys.

        Raises:
            ConfigError: the address is none that can be used.
            RegistryError: MLflow is out of reach, has no such run, or the run was started with other params.
        """
        client = connect(self.tracking_uri)
        with registry_errors(self.tracking_uri, f"start run {name}"):
            if resume_run_id is None:
                run = client.create_run(self._experiment_id(client), tags=dict(tags), run_name=name)
                known: frozenset[Point] = frozenset()
            else:
                run = client.get_run(resume_run_id)
                client.update_run(resume_run_id, "RUNNING")
                known = frozenset(_history(client, run))
            _log_params(client, run.info.run_id, params)
            if data is not None:
                _log_data(client, run.info.run_id, data)
        return Run(self.tracking_uri, run.info.run_id, self.spool, known)

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        if found := client.get_experiment_by_name(self.experiment):
            return str(found.experiment_id)
        file = sqlite_path(self.tracking_uri)  # MLflow alone would put artifacts into the working directory
        place = None if file is None else str(file.parent / "artifacts" / quote(self.experiment, safe=""))
        try:
            return str(client.create_experiment(self.experiment, place))
        except MlflowException:  # another process may have been quicker
            if found := client.get_experiment_by_name(self.experiment):
                return str(found.experiment_id)
            raise


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` as ``{"a.b": "1"}``; what is neither a mapping nor text is written as JSON."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, value) for key, value in flatten(params).items()])


def _log_data(client: "MlflowClient", run_id: str, data: DataVersion) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": data.source, "digest": data.digest})
    dataset = Dataset(data.name, data.digest[:_DIGEST_CHARACTERS], source_type="dvc", source=source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])


def _history(client: "MlflowClient", run: Any) -> Iterator[Point]:
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            yield name, point.step, point.value


def deliver_spool(folder: Path, tracking_uri: str, timeout_s: float = _SETTLE_TIMEOUT_S) -> list[Delivery]:
    """Deliver what earlier processes left in ``folder``, each run for up to ``timeout_s``; runs in use are passed over.

    Raises:
        ConfigError, RegistryError: as ``Tracker.check``; nothing was touched.
    """
    deliveries = []
    for path in sorted(folder.glob("*.jsonl")):
        connect(tracking_uri)
        try:
            spool = Spool(folder, path.stem, lock_wait_s=0.0)
        except RegistryError:
            continue
        courier = Courier(tracking_uri, path.stem, spool)
        courier.start()
        deliveries.append(courier.settle(timeout_s))
    return deliveries
