"""Earlier runs of the same name, so that a repeated command goes on instead of starting over."""

from dataclasses import dataclass
from typing import Literal

from kinfolk.tracking.connection import connect, registry_errors

SECONDS = "train_seconds_so_far"  # the run's metric, at each checkpoint
RUN_TAG = "kinfolk.run"  # the run's name, which holds the digest of its settings


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run that was started before."""

    run_id: str
    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
    train_seconds: float = 0.0  # up to its last checkpoint


def earlier_run(tracking_uri: str, experiment: str, name: str) -> Earlier | None:
    """The newest run tagged with ``name``, or None.

    Raises:
        RegistryError: MLflow is out of reach.
    """
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"look for run {name}"):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs([found.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
    if not runs:
        return None
    return Earlier(runs[0].info.run_id, runs[0].info.status, runs[0].data.metrics.get(SECONDS, 0.0))
