"""Train a recipe on Ray, track it in MLflow, register what comes out."""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from kinfolk import sampling
from kinfolk.bundle import save_bundle
from kinfolk.cluster import connect
from kinfolk.config import Recipe, find_recipe, load_recipe, parse
from kinfolk.contract import Family, Model
from kinfolk.errors import ConfigError, KinfolkError, RegistryError
from kinfolk.families import find_family
from kinfolk.metrics.speed import sampling_speed
from kinfolk.tracking import registry
from kinfolk.tracking.history import RUN_TAG, Earlier, earlier_run
from kinfolk.tracking.lineage import Lineage, Version
from kinfolk.tracking.reference import parse_name
from kinfolk.tracking.runs import DataVersion, Run, Tracker
from kinfolk.training.loop import build, check_batch
from kinfolk_pipelines.datasets import Dataset, open_dataset
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.progress import display
from kinfolk_pipelines.settings import Settings, git_commit

_SPEED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that was checked as a whole, before anything is touched."""

    recipe: Recipe
    family: Family
    data: Dataset
    model_name: str
    run_name: str
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left in the registry."""

    version: Version
    metrics: Mapping[str, float]
    seconds: float | None  # None for a training that had been done before
    reused: bool


class InterruptedTrainingError(KinfolkError):
    """The user stopped the training; the message says how to go on."""


def plan(settings: Settings, recipe_name: str, sets: Sequence[str] = (), name: str | None = None) -> Plan:
    """Check everything that can be wrong with a training.

    Raises:
        ConfigError: the recipe, a setting or the name is not allowed, or the recipe is for another kind of data.
        DataError: the data set is not there.
    """
    recipe = load_recipe(find_recipe(recipe_name, settings.recipe_folder), sets)
    family = find_family(recipe.family)
    config = parse(family.config, recipe.model, f"recipe {recipe.name}, model")
    recipe = recipe.model_copy(update={"model": config.model_dump(mode="json")})
    data = open_dataset(settings, recipe.data)
    untrained = build(family, config, data.prepared.spec, recipe.seed)  # a network that does not fit fails here
    model_name = parse_name(name or f"{recipe.data}-{recipe.name}")
    initial, parents = _initial(settings, recipe, untrained)
    digest = recipe.digest(data.digest, *parents.values())
    return Plan(recipe, family, data, model_name, f"{model_name}-{digest}", initial, parents)


def _initial(settings: Settings, recipe: Recipe, untrained: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights to start from and where they come from, for a recipe with ``init_from``."""
    if recipe.init_from is None:
        return {}, {}
    loaded = load_model(settings, recipe.init_from)
    given, wanted = (shapes(model) for model in (loaded.model, untrained))
    if different := sorted(name for name in given | wanted if given.get(name) != wanted.get(name)):
        name = different[0]
        raise ConfigError(
            f"init_from={recipe.init_from} does not fit the recipe's network: {name} is {given.get(name, 'missing')} "
            f"there and {wanted.get(name, 'missing')} here. Fine-tuning needs the same network on samples of one shape."
        )
    return dict(loaded.model.module.state_dict()), {"init_from": loaded.version.reference}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything a model stores."""
    return {name: tuple(value.shape) for name, value in model.module.state_dict().items()}


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
    check_batch(planned.recipe.training, workers)
    tracker = Tracker(settings.tracking, settings.experiment, settings.state.absolute() / "spool")
    tracker.check()
    run_name = f"{planned.run_name}-{int(time.time())}" if fresh else planned.run_name
    earlier = earlier_run(settings.tracking, settings.experiment, run_name)
    if earlier is not None and (done := _finished(settings, earlier)):
        return Trained(done, done.metrics, None, True)
    _claim(settings, workers, use_gpu)
    run = tracker.start_run(
        run_name,
        planned.recipe.model_dump(mode="json"),
        _tags(planned, run_name),
        DataVersion(planned.data.name, planned.data.digest, planned.data.prepared.record.source),
        earlier.run_id if earlier else None,
    )
    return _tracked(settings, planned, run, run_name, console, workers, use_gpu)


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
    settings: Settings, planned: Plan, run: Run, run_name: str, console: Console, workers: int, use_gpu: bool
) -> Trained:
    """Train under an MLflow run that ends as the training does."""
    from kinfolk.training.launch import launch
    from kinfolk.training.worker import Job

    started = time.perf_counter()
    threads = max(_node_cpus() // workers, 1)
    job = Job(planned.recipe, planned.data.prepared.path, threads, planned.initial)
    last: dict[str, float] = {}
    try:
        with display(console, planned.model_name, planned.recipe.training.samples) as shown:
            listener = _listener(run, shown.show, last)
            outcome = launch(
                job, name=run_name, storage=settings.checkpoints, workers=workers, use_gpu=use_gpu, listener=listener
            )
        if outcome.model is None:
            raise InterruptedTrainingError(
                f"{planned.model_name} stopped after {outcome.samples_seen} of {planned.recipe.training.samples} "
                f"samples; a checkpoint was written. {_how_to_go_on(planned, run_name)}"
            )
        last["train_seconds"] = time.perf_counter() - started
        version = _register(settings, planned, run, run_name, outcome.model, last)
    except InterruptedTrainingError:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
    delivery = run.finish("FINISHED")
    if not delivery.complete:
        console.print(
            f"{delivery.unsent} entries could not be sent to MLflow yet ({delivery.trouble}). `kinfolk deliver` sends "
            "them once it answers."
        )
    return Trained(version, version.metrics, time.perf_counter() - started, False)


def _how_to_go_on(planned: Plan, run_name: str) -> str:
    if run_name == planned.run_name:
        return "The same command goes on from there."
    return "A run started with --fresh is not gone on with: the same command starts another."


def _node_cpus() -> int:
    """CPUs of the largest machine of the cluster."""
    import ray

    return int(max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))


def _listener(
    run: Run, show: Callable[[Mapping[str, Any]], None], last: dict[str, float]
) -> Callable[[Mapping[str, Any]], None]:
    """Show each report and pass it on to the run; ``last`` keeps the newest figures."""

    def listen(report: Mapping[str, Any]) -> None:
        show(report)
        seen = report["samples_seen"]
        if report.get("logs"):
            run.log(report["logs"], seen)
            last.update(report["logs"])
        if "picture" in report:
            run.log_picture(base64.b64decode(report["picture"]), f"samples/{seen:012d}.png")

    return listen


def _speed(model: Model) -> dict[str, float]:
    if "sample" not in model.tasks.starts:
        return {}
    speed = sampling_speed(lambda n: sampling.sample(model, n), _SPEED_ROWS, time.perf_counter, warmup=0, repeats=1)
    return {"samples_per_second": speed.samples_per_s}


def _register(
    settings: Settings, planned: Plan, run: Run, run_name: str, model: Model, last: Mapping[str, float]
) -> Version:
    speed = _speed(model)
    lineage = Lineage(
        family=planned.family.name,
        recipe=f"{planned.recipe.data}/{planned.recipe.name}",
        recipe_digest=planned.recipe.digest(),
        data=planned.data.name,
        data_digest=planned.data.digest,
        git_commit=git_commit(),
        parents=dict(planned.parents),
        samples_per_second=speed.get("samples_per_second"),
    )
    folder: Path = settings.state.absolute() / "bundles" / run_name
    card = {"lineage": lineage.tags(), "recipe": planned.recipe.model_dump(mode="json")}
    save_bundle(model, folder, card)
    metrics = {name: value for name, value in last.items() if name != "samples_per_second"} | speed
    try:
        return registry.register(settings.tracking, folder, planned.model_name, run.run_id, lineage, metrics)
    except RegistryError as error:
        raise RegistryError(
            f"The training is complete, but its model could not be registered. {error} The same command registers it "
            "without training again."
        ) from error
