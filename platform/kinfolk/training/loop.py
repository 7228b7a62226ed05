"""The training loop: a generator that knows neither Ray nor a file, for one worker of any number.

Resuming is exact: data order and noise are functions of (seed, samples seen), and ``TrainState.snapshot`` holds
the rest.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from kinfolk.checkpoint import Snapshot
from kinfolk.config import Training
from kinfolk.contract import Batch, Phase, Progress
from kinfolk.errors import ConfigError, DivergenceError
from kinfolk.rng import generator
from kinfolk.step import NonFiniteError, World, turn
from kinfolk.training.means import Means
from kinfolk.training.state import TrainState

Kind = Literal["log", "preview", "look", "checkpoint", "rollback"]


class Stream(Protocol):
    """Endless shuffled training data; positions count samples over all epochs and workers."""

    def batch(self, seed: int, start: int, stop: int) -> Batch:
        """The samples at positions [start, stop)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the loop yields. ``logs`` are means since the last report of the same kind, ``log`` or ``look``."""

    kind: Kind
    samples_seen: int
    logs: Mapping[str, float] = field(default_factory=dict)
    snapshot: Snapshot | None = None  # of a checkpoint


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _progress(state: TrainState, noise: torch.Generator, world: World) -> Progress:
    return Progress(state.samples_seen, state.step, noise, world.all_reduce, world.rank, world.size)


@torch.no_grad()
def initialise(state: TrainState, batch: Batch, seed: int, world: World) -> None:
    """Let a family that initialises from data do so; the average of the weights starts where that ends."""
    module, start = state.model.module, state.model.family.initialise
    if start is None:
        return
    start(module, batch, _progress(state, generator(seed, "initialise", device=_device(module)), world))
    if state.ema is not None:
        state.ema.restart()


def take_step(state: TrainState, stream: Stream, training: Training, seed: int, world: World) -> dict[str, Tensor]:
    """One step over the next global batch: a turn of every phase that is due. Logs are named ``phase/what``.

    Raises:
        NonFiniteError: nothing was counted, and the phase that failed changed no parameter.
    """
    share = training.batch_size // world.size
    start = state.samples_seen + world.rank * share
    device = _device(state.model.module)
    batch = stream.batch(seed, start, start + share).to(device)
    if state.step == 0 and not state.tuned:
        initialise(state, batch, seed, world)
    microbatches = batch.split(training.accumulate)
    logs: dict[str, Tensor] = {}
    for phase in state.phases:
        if state.step % phase.every_steps:
            continue
        key = (seed, world.rank, state.step, state.rollbacks, phase.name)
        progress = [
            _progress(state, generator(*key, part, device=device), world) for part in range(training.accumulate)
        ]
        lr_scale = training.divergence_lr_factor**state.rollbacks
        turned = turn(
            phase,
            state.optimizers[phase.name],
            microbatches,
            progress,
            world,
            precision=training.precision,
            lr_scale=lr_scale,
        )
        logs |= {f"{phase.name}/{name}": value for name, value in turned.items()}
    state.step += 1
    state.samples_seen += training.batch_size
    if state.ema is not None:
        state.ema.update(training.batch_size, state.samples_seen)
    return logs


class _Log:
    """Means of logs between two reports, and samples per second."""

    def __init__(self, samples_seen: int) -> None:
        self.means, self._since, self._started = Means(), samples_seen, time.perf_counter()

    def take(self, samples_seen: int) -> dict[str, float]:
        """What there is since the last time."""
        seconds = time.perf_counter() - self._started
        speed = (samples_seen - self._since) / max(seconds, 1e-9)
        taken = {**self.means.read(), "samples_per_second": speed}
        self.means, self._since, self._started = Means(), samples_seen, time.perf_counter()
        return taken


def judged_together(phases: Sequence[Phase]) -> int:
    """The samples that a microbatch is a multiple of, so that every loss of ``phases`` has its groups whole."""
    return math.lcm(*(phase.group for phase in phases))


def check_batch(training: Training, workers: int, group: int = 1) -> None:
    """Refuse a batch that the workers and microbatches cannot share equally, in whole groups of ``group`` samples.

    Raises:
        ConfigError: with the nearest batch sizes that can be.
    """
    unit = workers * training.accumulate * group
    if training.batch_size % unit:
        lower = training.batch_size // unit * unit
        allowed = f"{lower} or {lower + unit}" if lower else str(unit)
        groups = f" in groups of {group} samples that the loss judges together" if group > 1 else ""
        raise ConfigError(
            f"batch_size={training.batch_size} does not divide over {workers} workers with accumulate="
            f"{training.accumulate}{groups}. Use a multiple of {unit}, e.g. {allowed}."
        )


def train(
    state: TrainState,
    stream: Stream,
    training: Training,
    seed: int,
    world: World | None = None,
    look_every: int | None = None,
) -> Iterator[Report]:
    """Train until ``training.samples`` are seen, yielding reports; close the generator to stop early.

    Checkpoint reports hold a snapshot to store; the last report is always a checkpoint. What is put into
    ``state.looks`` at a look, every ``look_every`` samples, is part of the checkpoint after it. After a loss that is
    not finite the state goes back to the last checkpoint, with a lower learning rate, at most ``divergence_retries``
    times.

    Raises:
        ConfigError: the batch does not divide.
        DivergenceError: the loss was not finite once more.
    """
    world = world or World()
    check_batch(training, world.size, judged_together(state.phases))
    intervals = _intervals(training, look_every)
    good, log = state.snapshot(), _Log(state.samples_seen)
    while state.samples_seen < training.samples:
        before = state.samples_seen
        try:
            logs = take_step(state, stream, training, seed, world)
        except NonFiniteError as error:
            _roll_back(state, good, training, error)
            log = _Log(state.samples_seen)
            yield Report("rollback", state.samples_seen, {"rollbacks": state.rollbacks})
            continue
        for means in (log.means, state.watched) if look_every else (log.means,):
            means.add(logs)
        for kind in _due(intervals, before, state.samples_seen, training.samples):
            report = _report(kind, state, log)
            good = report.snapshot or good
            yield report


def _report(kind: Kind, state: TrainState, log: _Log) -> Report:
    """The report that is due; what it took from the logs is taken once."""
    seen = state.samples_seen
    match kind:
        case "checkpoint":
            return Report(kind, seen, snapshot=state.snapshot())
        case "look":
            means, state.watched = state.watched.read(), Means()
            return Report(kind, seen, means)
        case "log":
            return Report(kind, seen, log.take(seen))
        case _:
            return Report(kind, seen)


def _intervals(training: Training, look_every: int | None) -> dict[Kind, int]:
    """Samples between two reports of each kind, in the order in which those of one step come."""
    looks: dict[Kind, int] = {} if look_every is None else {"look": look_every}
    return {
        "log": training.every(training.log_every_samples, 100),
        "preview": training.every(training.preview_every_samples, 5),
        **looks,
        "checkpoint": training.checkpoint_interval,
    }


def _due(intervals: Mapping[Kind, int], before: int, seen: int, last: int) -> list[Kind]:
    """The reports whose interval ended between ``before`` and ``seen``; all of them at the end."""
    return [kind for kind, every in intervals.items() if seen >= last or before // every != seen // every]


def _roll_back(state: TrainState, good: Snapshot, training: Training, error: NonFiniteError) -> None:
    failed_at, tries = state.samples_seen, state.rollbacks
    if tries >= training.divergence_retries:
        raise DivergenceError(
            f"Training diverged after {failed_at} samples, {tries} roll-backs with lower rates included ({error}). "
            f"Lower the learning rate, set optimizer.clip_norm, or allow more with training.divergence_retries."
        ) from None
    state.load(good)
    state.rollbacks = tries + 1
