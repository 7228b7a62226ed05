"""What a built model can be asked for, read off its tasks: the endpoints of a server, the columns of a list."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import NEEDS, Batch, DataSpec, Model, RowTask, Sort, Tasks

_DENOISE = "denoise"


@dataclass(frozen=True, slots=True)
class Ability:
    """One task of one model: what it must be told beside seeds, what goes in and what comes out."""

    name: str
    needs: tuple[str, ...]  # of "x", "mask", "seed_to"
    takes: DataSpec | None  # what ``x`` is; None where it takes none
    gives: DataSpec | None  # what comes out; None: numbers, (N,) or (N, K)
    rows: RowTask | None = None  # all that is to be done, in one go; None: rows are started and advanced
    rows_with_noise: Callable[[float], RowTask] | None = None  # as ``rows``, of the noise's standard deviation
    unit: str = ""  # of the numbers

    @property
    def samples(self) -> bool:
        """Whether rows are started and advanced, call by call."""
        return self.rows is None and self.rows_with_noise is None


def row_task_names() -> tuple[str, ...]:
    """Names of the tasks that take a batch and give something for each of its rows."""
    return tuple(each.name for each in fields(Tasks) if each.metadata)


def _spec_of(sort: Sort, model: Model, latent: DataSpec | None) -> DataSpec | None:
    return {"sample": model.spec, "latent": latent, "numbers": None}[sort]


def _row_abilities(model: Model, tasks: Tasks) -> list[Ability]:
    found = []
    for task in fields(Tasks):
        function = getattr(tasks, task.name)
        if function is None or not task.metadata:
            continue
        takes, gives = (_spec_of(task.metadata[end], model, tasks.latent_spec) for end in ("takes", "gives"))
        if task.name == "log_prob":
            unit = f"nats, {function.kind} of {function.of}"
            found.append(Ability(task.name, ("x",), takes, gives, function.nats, unit=unit))
        else:
            found.append(Ability(task.name, ("x",), takes, gives, function))
    return found


def denoising(tasks: Tasks, noise_level: float) -> RowTask:
    """The estimate of clean rows from rows with Gaussian noise of standard deviation ``noise_level``."""
    assert tasks.denoise is not None
    function = tasks.denoise

    def estimate(batch: Batch, _: Tensor) -> Tensor:
        sigma = torch.full((len(batch),), noise_level, device=batch.x.device)
        return function(batch.x, sigma, batch.label)

    return estimate


def abilities(model: Model) -> Mapping[str, Ability]:
    """Everything a model can be asked for, by name: its sampling tasks first.

    A model that draws what lay under the noise has no other ``denoise`` beside that.
    """
    tasks, spec = model.tasks, model.spec
    found = []
    for name in tasks.starts:
        needs = NEEDS.get(name, ())
        found.append(Ability(name, needs, spec if "x" in needs else None, spec))
    found += _row_abilities(model, tasks)
    if tasks.denoise is not None and _DENOISE not in tasks.starts:
        found.append(Ability(_DENOISE, ("x",), spec, spec, rows_with_noise=partial(denoising, tasks)))
    return {ability.name: ability for ability in found}
