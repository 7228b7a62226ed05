"""What one Ray Train worker does: run the loop, store its checkpoints, tell the driver how it goes."""

import base64
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ray
import ray.train
import torch
import torch.distributed
from ray.actor import ActorHandle
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from torch import Tensor

from kinfolk import sampling
from kinfolk.checkpoint import Snapshot, load_checkpoint, newest_good, save_checkpoint
from kinfolk.config import Recipe, parse
from kinfolk.contract import DataSpec, Model
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import keep
from kinfolk.errors import DataError, IntegrityError, KinfolkError
from kinfolk.families import find_family
from kinfolk.memory import keep_freed_memory
from kinfolk.pictures import draw, picturable
from kinfolk.step import World
from kinfolk.training.lookout import acts, ended_by_alarm, figures, look_every, snapshot_of, warnings, watch_of
from kinfolk.training.loop import Report, train
from kinfolk.training.state import TrainState, build, prepare
from kinfolk.training.stored import each_fetched, fetched
from kinfolk.training.watch import Watch

_PREVIEW_SEED = 0  # the same rows in every preview, so that they can be compared


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a worker needs to know; pickled by Ray, within the cluster only."""

    recipe: Recipe
    data: Path  # prepared data set, readable on every node
    threads: int = 1  # of one worker
    initial: Mapping[str, Tensor] = field(default_factory=dict)  # weights to start from, by name
    parents: Mapping[str, Model] = field(default_factory=dict)  # by role
    latents: Path | None = None  # the data as the first stage encodes it, where there is one
    start: Snapshot | None = None  # where an earlier attempt, with other settings, is gone on from
    features: Model | None = None  # the network by which a monitor tells samples apart


def _all_reduce(value: Tensor) -> Tensor:
    torch.distributed.all_reduce(value)
    return value


def _world() -> World:
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    return World(rank, size, _all_reduce) if size > 1 else World()


def fresh_state(job: Job, spec: DataSpec, device: torch.device | str = "cpu") -> TrainState:
    """The state of ``job`` before its first step."""
    recipe = job.recipe
    family = find_family(recipe.family)
    config = parse(family.config, recipe.model, f"recipe {recipe.name}, model")
    model = build(family, config, spec, recipe.seed, device, job.parents)
    if job.initial:
        model.module.load_state_dict(dict(job.initial))
    state = prepare(model, recipe.training)
    state.tuned = bool(job.initial)
    return state


def _stored() -> list[ray.train.Checkpoint]:
    """Kept checkpoints, newest first."""
    newest = ray.train.get_checkpoint()
    if newest is None:
        return []
    older = [entry.checkpoint for entry in ray.train.get_all_reported_checkpoints()]
    return list({checkpoint.path: checkpoint for checkpoint in [newest, *reversed(older)]}.values())


class Reporter:
    """Passes the loop's reports on: checkpoints to storage by all workers, the rest to the mailbox by worker 0.

    Previews are drawn by a thread of their own, one at a time, while training goes on, so memory for both is needed.
    What goes wrong with one is raised before the next, or as the context ends.
    """

    def __init__(self, job: Job, state: TrainState, world: World, mailbox: ActorHandle) -> None:
        self.job, self.state, self.world, self.mailbox = job, state, world, mailbox
        self._answer: Any = None
        # Nested for good, so that no autocast of a sampler is the outermost one: leaving that would empty the cache of
        # cast weights, which all threads share, in the middle of a step.
        self._artist = ThreadPoolExecutor(1, "kinfolk-preview", torch.autocast_increment_nesting)
        self._drawing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._artist.shutdown()
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Wait for the preview that is being drawn."""
        if self._drawing is not None:
            self._drawing.result()

    def handle(self, report: Report) -> None:
        """Pass one report of the loop on."""
        if report.snapshot is not None:
            self.store(report.snapshot)
        elif report.kind == "preview":
            self._preview()
        else:
            self.tell(report.kind, logs=dict(report.logs))

    def tell(self, kind: str, **content: Any) -> None:
        """Worker 0 leaves a report for the driver; the others say nothing."""
        if self.world.rank == 0:
            self._answer = self.mailbox.put.remote({"kind": kind, "samples_seen": self.state.samples_seen, **content})

    def store(self, snapshot: Snapshot) -> None:
        """Write a checkpoint; all workers must call this together."""
        metrics = {"samples_seen": snapshot.values["samples_seen"]}
        if self.world.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder) / "state", snapshot)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(Path(folder) / "state")))
        self.tell("checkpoint")

    def _preview(self) -> None:
        model = self.state.model
        if self.world.rank or "sample" not in model.tasks.starts or not picturable(model.spec):
            return
        self.wait()
        self._drawing = self._artist.submit(self._draw, self.state.served(), self.state.samples_seen)

    def _draw(self, model: Model, samples_seen: int) -> None:
        rows = self.job.recipe.training.preview_rows
        picture = draw(sampling.sample(model, rows, _PREVIEW_SEED), model.spec, scale=4)
        report = {"kind": "preview", "samples_seen": samples_seen, "picture": base64.b64encode(picture).decode()}
        ray.get(self.mailbox.put.remote(report))  # so that the last one is there before the worker ends

    def stop_wanted(self) -> bool:
        """Whether the driver asked to stop; all workers get the same answer."""
        return self._anywhere(self._answer is not None and bool(ray.get(self._answer)))

    def alarmed(self, watch: Watch | None, report: Report) -> bool:
        """Whether the look of this report gives an alarm, by worker 0, which has ``watch``; all get its answer."""
        alarm = None if watch is None else watch.look(self.state, report.logs)
        if watch is not None:
            self.tell("look", logs=figures(self.state))
        if alarm is not None:
            self.tell_alarm()
        return self._anywhere(alarm is not None)

    def tell_alarm(self) -> None:
        """Leave the newest alarm for the driver, with what it takes to see why."""
        self.tell("alarm", **snapshot_of(self.state, self.job.recipe))

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so on any worker."""
        flag = torch.full((1,), float(here), device=get_device())
        return bool(self.world.all_reduce(flag).item())


def run_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's train loop. A user's mistake or a divergence is returned, not raised: retrying would not help.

    What one of several workers alone may meet is raised, as the others wait for it: Ray Train ends them.
    """
    job: Job = config["job"]
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    try:
        return _train(job, config["mailbox"])
    except KinfolkError as error:
        if isinstance(error, DataError | IntegrityError) and ray.train.get_context().get_world_size() > 1:
            raise
        return {"error": type(error).__name__, "message": str(error)}


def _train(job: Job, mailbox: ActorHandle) -> dict[str, Any]:
    world, recipe = _world(), job.recipe
    data = Prepared.open(job.data)
    learned = Prepared.open(job.latents) if job.latents else data
    state = fresh_state(job, data.spec, get_device())
    problems = _go_on(state, job, world)
    source = keep(learned.source("train"), recipe.keep_labels)
    watch = None if world.rank else watch_of(recipe, data, job.features)
    with Reporter(job, state, world, mailbox) as reporter:
        reporter.tell("start", problems=problems)
        if ended := ended_by_alarm(state, recipe):  # and the driver may have died before it heard
            reporter.tell_alarm()
            return _end(state, recipe, alarm=ended)
        for report in train(state, source, recipe.training, recipe.seed, world, look_every(recipe)):
            if report.kind != "look":
                reporter.handle(report)
            elif reporter.alarmed(watch, report) and acts(recipe):
                reporter.store(state.snapshot())
                return _end(state, recipe, alarm=ended_by_alarm(state, recipe))
            if report.kind == "log" and state.samples_seen < recipe.training.samples and reporter.stop_wanted():
                reporter.store(state.snapshot())
                return _end(state, recipe, interrupted=True)
    return _end(state, recipe)


def _go_on(state: TrainState, job: Job, world: World) -> list[str]:
    """Load the newest good checkpoint, or what fits of the attempt before; what was wrong with newer checkpoints.

    Worker 0 says which one is good. A worker that cannot read it raises, and all start again: each on its own choice
    would train another model.
    """
    stored = _stored()
    snapshot, problems = (None, []) if world.rank else newest_good(each_fetched(stored))
    if world.size > 1:
        damaged = broadcast_from_rank_zero(None if snapshot is None else len(problems))
        if world.rank and damaged is not None:
            with fetched(stored[damaged]) as folder:
                snapshot = load_checkpoint(folder)
    if snapshot is not None:
        state.load(snapshot)
    elif job.start is not None:
        state.adopt(job.start)
    return problems


def _end(
    state: TrainState, recipe: Recipe, interrupted: bool = False, alarm: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the driver hears of a training that did not fail."""
    ended = {"samples_seen": state.samples_seen, "interrupted": interrupted, "alarm": alarm}
    return {**ended, "alarms": warnings(state, recipe)}


def trained_model(job: Job, checkpoint: Path) -> Model:
    """The model a stored checkpoint serves: averaged weights, on the CPU, in eval mode."""
    snapshot, problems = newest_good([checkpoint])
    if snapshot is None:
        raise KinfolkError(problems[0])
    state = fresh_state(job, Prepared.open(job.data).spec)
    state.load(snapshot)
    return state.served()
