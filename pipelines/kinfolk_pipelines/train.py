"""Train a recipe on Ray, track it in MLflow, register what comes out."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kinfolk import sampling
from kinfolk.bundle import save_bundle
from kinfolk.cluster import connect
from kinfolk.contract import FIRST_STAGE, Model
from kinfolk.errors import KinfolkError, RegistryError
from kinfolk.metrics.speed import sampling_speed
from kinfolk.reference import reference_file
from kinfolk.tracking import registry
from kinfolk.tracking.history import RUN_TAG, SECONDS, Earlier, earlier_run
from kinfolk.tracking.lineage import Lineage, Version
from kinfolk.tracking.runs import DataVersion, Run, Tracker
from kinfolk_pipelines.datasets import encode_dataset
from kinfolk_pipelines.figures import SPEED_ROWS
from kinfolk_pipelines.monitor_plan import check_batches
from kinfolk_pipelines.plan import Plan
from kinfolk_pipelines.progress import display
from kinfolk_pipelines.settings import Settings, git_commit

if TYPE_CHECKING:
    from kinfolk.training.worker import Job  # loads Ray


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left in the registry."""

    version: Version
    metrics: Mapping[str, float]
    seconds: float | None  # None for a training that had been done before
    reused: bool


class InterruptedTrainingError(KinfolkError):
    """The user stopped the training; the message says how to go on."""


@dataclass(slots=True)
class _Attempt:
    """A training under way in its MLflow run, which an earlier attempt may have begun."""

    run: Run
    name: str
    started: float  # of perf_counter
    seconds_before: float  # of training that this attempt goes on from

    def seconds(self) -> float:
        """Seconds of training so far, those before a stop included."""
        return self.seconds_before + time.perf_counter() - self.started


def train(
    settings: Settings,
    planned: Plan,
    console: Console,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    fresh: bool = False,
) -> Trained:
    """Train ``planned`` to its end and register it; a training done before is not repeated unless ``fresh``.

    Raises:
        RegistryError: MLflow does not answer: nothing was started.
        InterruptedTrainingError: stopped by a signal, after a checkpoint.
        DivergenceError: the loss stayed not finite; nothing was registered.
    """
    check_batches(planned.recipe, workers, planned.groups)
    tracker = Tracker(settings.tracking, settings.experiment, settings.state.absolute() / "spool")
    tracker.check()
    run_name = f"{planned.run_name}-{int(time.time())}" if fresh else planned.run_name
    earlier = earlier_run(settings.tracking, settings.experiment, run_name)
    if earlier is not None and (done := _finished(settings, earlier)):
        return Trained(done, done.metrics, None, True)
    _claim(settings, workers, use_gpu)
    if planned.latents is not None:
        encode_dataset(planned.latents, planned.data, planned.parents[FIRST_STAGE].model)
    run = tracker.start_run(
        run_name,
        planned.recipe.model_dump(mode="json"),
        _tags(planned, run_name),
        DataVersion(planned.data.name, planned.data.digest, planned.data.prepared.record.source),
        earlier.run_id if earlier else None,
    )
    attempt = _Attempt(run, run_name, time.perf_counter(), earlier.train_seconds if earlier else 0.0)
    return _tracked(settings, planned, attempt, console, workers, use_gpu)


def _finished(settings: Settings, earlier: Earlier) -> Version | None:
    if earlier.status != "FINISHED":
        return None
    versions = registry.models(settings.tracking)
    return next((version for version in versions if version.run_id == earlier.run_id), None)


def _tags(planned: Plan, run_name: str) -> dict[str, str]:
    tags = {
        RUN_TAG: run_name,
        "family": planned.family.name,
        "recipe": planned.recipe.name,
        "data": planned.data.name,
        "data_digest": planned.data.digest,
    }
    commit = git_commit()
    return {**tags, "git_commit": commit} if commit else tags


def _claim(settings: Settings, workers: int, use_gpu: bool) -> None:
    """Connect to Ray and see that it can hold the workers."""
    connect(settings.ray_address, settings.state, cpus=settings.cpus)
    from kinfolk.training.launch import check_workers

    check_workers(workers, use_gpu)


def _tracked(
    settings: Settings, planned: Plan, attempt: _Attempt, console: Console, workers: int, use_gpu: bool
) -> Trained:
    """Train under an MLflow run that ends as the training does."""
    from kinfolk.training import attempts

    last: dict[str, float] = {}
    try:
        with display(console, planned.model_name, planned.recipe.training.samples) as shown:
            listener = _listener(attempt, shown.show, last)
            outcome = attempts.train(
                _job(planned, workers),
                name=attempt.name,
                storage=settings.checkpoints,
                workers=workers,
                use_gpu=use_gpu,
                listener=listener,
            )
        if outcome.model is None:
            raise InterruptedTrainingError(
                f"{planned.model_name} stopped after {outcome.samples_seen} of {planned.recipe.training.samples} "
                f"samples; a checkpoint was written. {_how_to_go_on(planned, attempt.name)}"
            )
        last["train_seconds"] = attempt.seconds()
        version = register_trained(
            settings, planned, attempt.name, attempt.run.run_id, outcome.model, last, outcome.alarms
        )
    except InterruptedTrainingError:
        attempt.run.finish("KILLED")
        raise
    except BaseException:
        attempt.run.finish("FAILED")
        raise
    delivery = attempt.run.finish("FINISHED")
    if not delivery.complete:
        console.print(
            f"{delivery.unsent} entries could not be sent to MLflow yet ({delivery.trouble}). `kinfolk deliver` sends "
            "them once it answers."
        )
    return Trained(version, version.metrics, attempt.seconds(), False)


def _job(planned: Plan, workers: int) -> "Job":
    from kinfolk.training.worker import Job

    threads = max(_node_cpus() // workers, 1)
    parents = {role: loaded.model for role, loaded in planned.parents.items()}
    return Job(
        planned.recipe,
        planned.data.prepared.path,
        threads,
        planned.initial,
        parents,
        planned.latents,
        features=planned.features,
    )


def _how_to_go_on(planned: Plan, run_name: str) -> str:
    if run_name == planned.run_name:
        return "The same command goes on from there."
    return "A run started with --fresh is not gone on with: the same command starts another."


def _how_to_register(planned: Plan, run_name: str, bundle: Path) -> str:
    if run_name == planned.run_name:
        return "The same command registers it without training again."
    return f"A run started with --fresh is not gone on with; its bundle stays in {bundle}."


def _node_cpus() -> int:
    """CPUs of the largest machine of the cluster."""
    import ray

    return int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))


def _listener(
    attempt: _Attempt, show: Callable[[Mapping[str, Any]], None], last: dict[str, float]
) -> Callable[[Mapping[str, Any]], None]:
    """Show each report and pass it on to the run; ``last`` keeps the newest figures."""

    def listen(report: Mapping[str, Any]) -> None:
        show(report)
        seen = report["samples_seen"]
        if report["kind"] == "start" and not seen:
            attempt.seconds_before = 0.0  # whatever was trained before is not there any more
        if report["kind"] == "checkpoint":
            attempt.run.log({SECONDS: attempt.seconds()}, seen)
        if report.get("logs"):
            attempt.run.log(report["logs"], seen)
            last.update(report["logs"])
        if report["kind"] == "alarm":
            _note_alarm(attempt.run, report)
        elif "picture" in report:
            attempt.run.log_file(base64.b64decode(report["picture"]), f"samples/{seen:012d}.png")

    return listen


def _note_alarm(run: Run, report: Mapping[str, Any]) -> None:
    """Files below ``alarms/``: why it was raised, with every look and the settings; samples, and a picture of them."""
    place = f"alarms/{report['samples_seen']:012d}"
    run.log_file(json.dumps(report["noted"], indent=1).encode(), f"{place}.json")
    for name, suffix in (("samples", "npy"), ("picture", "png")):
        if name in report:
            run.log_file(base64.b64decode(report[name]), f"{place}.{suffix}")


def _speed(model: Model) -> dict[str, float]:
    if "sample" not in model.tasks.starts:
        return {}
    speed = sampling_speed(lambda n: sampling.sample(model, n), SPEED_ROWS, time.perf_counter, warmup=0, repeats=1)
    return {"samples_per_second": speed.samples_per_s}


def register_trained(
    settings: Settings,
    planned: Plan,
    name: str,
    run_id: str,
    model: Model,
    last: Mapping[str, float],
    alarms: tuple[str, ...] = (),
) -> Version:
    """Bundle what run ``name`` trained and register it with its lineage, its ``last`` figures and its alarms.

    Raises:
        RegistryError: MLflow does not take it; the message says how to go on.
    """
    speed = _speed(model)
    lineage = Lineage(
        family=planned.family.name,
        recipe=f"{planned.recipe.data}/{planned.recipe.name}",
        recipe_digest=planned.recipe.digest(),
        data=planned.data.name,
        data_digest=planned.data.digest,
        git_commit=git_commit(),
        parents=dict(planned.ancestry),
        samples_per_second=speed.get("samples_per_second"),
        sweep=planned.sweep,
    )
    folder: Path = settings.state.absolute() / "bundles" / name
    card = {"lineage": lineage.tags(), "recipe": planned.recipe.model_dump(mode="json")}
    save_bundle(model, folder, card, reference_file(model))
    metrics = {figure: value for figure, value in last.items() if figure != "samples_per_second"} | speed
    try:
        return registry.register(settings.tracking, folder, planned.model_name, run_id, lineage, metrics, alarms)
    except RegistryError as error:
        raise RegistryError(
            f"The training is complete, but its model could not be registered. {error} "
            + _how_to_register(planned, name, folder)
        ) from error
