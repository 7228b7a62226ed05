"""What one trial does in its process: train, measure at every report, hand figures and a checkpoint to Tune."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pyarrow.fs import FileSystem
from ray import tune
from torch import Tensor

from kinfolk.checkpoint import Snapshot, newest_good, save_checkpoint
from kinfolk.cluster import export
from kinfolk.contract import Model
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import keep
from kinfolk.errors import KinfolkError
from kinfolk.memory import keep_freed_memory
from kinfolk.training.lookout import look_every, watch_of
from kinfolk.training.loop import Report, train
from kinfolk.training.state import TrainState
from kinfolk.training.stored import each_fetched
from kinfolk.training.watch import alarms
from kinfolk.training.worker import Job, fresh_state, trained_model
from kinfolk.tuning.recipes import recipe_of
from kinfolk.tuning.sweep import ALARM, Pace, Sweep

Measure = Callable[[Model], Mapping[str, float]]
_ERROR_CHARACTERS = 2000
_LEAVE_TIMEOUT_S = 60  # that a stopped trial's thread may take to end before the next trial in its process


@dataclass(frozen=True, slots=True)
class Work:
    """What all trials of a sweep have in common; pickled by Ray, within the cluster only."""

    sweep: Sweep
    base: Mapping[str, Any]  # the recipe's values, with what is fixed
    pace: Pace
    data: Path
    storage: str  # where checkpoints are, a path or s3://...
    measure: Measure
    threads: int = 1
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    parents: Mapping[str, Model] = field(default_factory=dict)
    latents: Path | None = None
    features: Model | None = None  # the network by which a recipe's monitor tells samples apart


def job_of(work: Work, settings: Mapping[str, Any], seed: int | None = None) -> Job:
    """The training job of one trial, whose monitor only warns: the sweep's constraints judge what it says."""
    recipe = recipe_of(work.base, settings, work.pace, seed)
    if recipe.monitor is not None:
        warning = recipe.monitor.model_copy(update={"act": "warn", "changes": ()})
        recipe = recipe.model_copy(update={"monitor": warning})
    return Job(recipe, work.data, work.threads, work.initial, work.parents, work.latents, features=work.features)


def run_trial(config: Mapping[str, Any], work: Work) -> None:
    """Tune's trainable. What a trial raises is reported, not raised: starting it again would not help."""
    order = config["trial"]
    export({"TUNE_FUNCTION_THREAD_TIMEOUT_S": str(_LEAVE_TIMEOUT_S)})
    keep_freed_memory()
    torch.set_num_threads(work.threads)
    try:
        for figures, snapshot in reports(work, order["settings"], order["seed"], _stored(work, order["checkpoints"])):
            score, seen = work.sweep.score(figures), int(figures["samples_seen"])
            result = {"score": score, "samples_seen": seen, "figures": figures}
            result |= {"alarms": reasons(snapshot.values["looks"])}
            _hand_over({**result, "settings": order["settings"], "copied": order.get("copied")}, snapshot)
    except Exception as error:
        tune.report({"error": said(error)})


def reasons(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the monitor has alarmed, in words."""
    return [each.reason for each in alarms(looks)]


def said(error: Exception) -> str:
    """An error in words, with its kind unless the message was written for users."""
    text = str(error) if isinstance(error, KinfolkError) else f"{type(error).__name__}: {error}"
    return text[:_ERROR_CHARACTERS]


def _hand_over(result: Mapping[str, Any], snapshot: Snapshot) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "state", snapshot)
        tune.report(dict(result), checkpoint=tune.Checkpoint.from_directory(str(Path(folder) / "state")))


def _stored(work: Work, recorded: Sequence[str]) -> Iterator[Path]:
    """Checkpoints to go on from, newest first: of this start of the sweep, then those the ledger knows."""
    if (newest := tune.get_checkpoint()) is not None:
        yield from _kept(newest)
    for path in reversed(recorded):
        yield from stored_at(work.storage, path)


def stored_at(storage: str, path: str) -> Iterator[Path]:
    """The checkpoint at ``path`` of the storage, unless it is gone."""
    return _kept(tune.Checkpoint(path, FileSystem.from_uri(storage)[0]))


def _kept(checkpoint: tune.Checkpoint) -> Iterator[Path]:
    """A copy of ``checkpoint``, unless it is gone: that of another trial, which a population copies, may be."""
    with suppress(FileNotFoundError):
        yield from each_fetched([checkpoint])


def reports(
    work: Work, settings: Mapping[str, Any], seed: int | None, stored: Iterable[Path]
) -> Iterator[tuple[dict[str, float], Snapshot]]:
    """Figures of the averaged weights and the state behind them, at every report until the trial's end.

    An alarm of the recipe's monitor is a figure, which the sweep's constraints judge.

    Raises:
        DivergenceError, ConfigError: as training does.
    """
    job = job_of(work, settings, seed)
    data = Prepared.open(job.data)
    state = fresh_state(job, data.spec)
    snapshot, _ = newest_good(stored)
    if snapshot is not None:
        state.load(snapshot)
    learned = Prepared.open(job.latents) if job.latents else data
    source = keep(learned.source("train"), job.recipe.keep_labels)
    logs: dict[str, list[float]] = {}
    watch = watch_of(job.recipe, data, job.features)
    for report in train(state, source, job.recipe.training, job.recipe.seed, look_every=look_every(job.recipe)):
        if report.kind == "look" and watch is not None:
            watch.look(state, report.logs)
            continue
        _collect(logs, report)
        if report.snapshot is not None:
            yield figures_of(work, state, logs), report.snapshot
            logs.clear()


def _collect(logs: dict[str, list[float]], report: Report) -> None:
    for name, value in report.logs.items():
        logs.setdefault(name, []).append(value)


def figures_of(work: Work, state: TrainState, logs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of the training's logs, and what is measured of the model that would be served.

    Raises:
        ConfigError: a figure that the sweep is judged by is not among them.
    """
    means = {name: fmean(values) for name, values in logs.items()}
    measured = {name: float(value) for name, value in work.measure(state.served()).items()}
    alarm = {} if work.base.get("monitor") is None else {ALARM: float(bool(alarms(state.looks)))}
    figures = {**means, **measured, **alarm}
    work.sweep.check_judged(figures)
    return {**figures, "samples_seen": float(state.samples_seen)}


def trained(work: Work, settings: Mapping[str, Any], seed: int | None, checkpoint: str) -> Model:
    """The model that a trial's checkpoint serves.

    Raises:
        KinfolkError: the checkpoint is gone or damaged.
    """
    for folder in stored_at(work.storage, checkpoint):
        return trained_model(replace(job_of(work, settings, seed), threads=1), folder)
    raise KinfolkError(f"The checkpoint {checkpoint} is gone from the storage. Start the sweep over with --fresh.")
