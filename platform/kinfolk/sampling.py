"""The one sampler driver: start rows, advance them until they are done, render them.

Scripts and evaluation use it; the server's batcher drives the same three functions with rows of many requests.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinfolk.config import parse
from kinfolk.contract import DataSpec, Family, Model, RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.errors import ConfigError, nearest, no_effect

LARGEST_N = 1_000_000  # of one request; more would be held in memory at once


def _check_seed(field: str, seed: int) -> None:
    if not 0 <= seed < 2**62:
        raise RequestError(field, f"{field}={seed}: use an integer from 0 to 2^62 - 1.")


def row_seeds(seed: int, n: int) -> Tensor:
    """Seeds of ``n`` rows: picture i of seed s is picture 0 of seed s + i. -> (n,) int64

    Raises:
        RequestError: ``seed`` is outside [0, 2^62).
    """
    _check_seed("seed", seed)
    return torch.from_numpy(np.arange(seed, seed + n))  # torch's own lets go of the interpreter, which servers wait for


def resolve_options(family: Family, tasks: Tasks, given: Mapping[str, Any], task: str = "sample") -> Any:
    """The model's default options with ``given`` laid over them, checked.

    Raises:
        RequestError: an option the family lacks, a value beyond its limits, or one without effect in ``task``.
    """
    if not given:
        return tasks.options
    known = family.options.model_fields
    for key in given:
        if key not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise RequestError(
                key, f"{family.name} has no option {key!r}.{nearest(key, known)} Its options: {allowed}."
            )
    try:
        resolved = parse(family.options, {**tasks.options.model_dump(), **given}, "options")
    except ConfigError as error:
        wrong = next((key for key in given if re.search(rf" {re.escape(key)}[.:]", str(error))), "options")
        raise RequestError(wrong, str(error)) from None
    foreign = {key: f"the task {own}" for key, own in resolved.task_of.items() if own != task}
    for key, purpose in {**resolved.in_vain(), **foreign}.items():
        if key in given:
            raise RequestError(key, f"{no_effect(f'{key}={given[key]}', purpose)}.")
    return resolved


def labels_of(model: Model, label: int | Sequence[int] | None, n: int) -> Tensor | None:
    """The class of each of ``n`` rows, from one for all or one for each. -> (n,) int64

    Raises:
        RequestError: the model is not told classes, has no such class, or there are not as many.
    """
    if label is None:
        return None
    if "label" not in model.tasks.conditions:
        raise RequestError("label", f"This {model.family.name} is not class-conditional: leave label out.")
    classes = model.spec.classes or 0
    labels = [label] * n if isinstance(label, int) else list(label)
    if len(labels) != n:
        raise RequestError(
            "label", f"label has {len(labels)} entries for n={n}: give one class, or one for each sample."
        )
    if bad := [value for value in labels if not 0 <= value < classes]:
        raise RequestError("label", f"label {bad[0]} is not a class of this model: use 0 to {classes - 1}.")
    return torch.tensor(labels, dtype=torch.int64)


def make_request(
    model: Model,
    n: int,
    seed: int = 0,
    label: int | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    task: str = "sample",
) -> SampleRequest:
    """A checked request for ``n`` samples of ``model``; the same checks serve scripts, the command line and HTTP.

    Raises:
        RequestError: ``field`` names what the model cannot do.
    """
    if not 1 <= n <= LARGEST_N:
        raise RequestError("n", f"n={n}: ask for 1 to {LARGEST_N} samples at once.")
    seeds, tasks = row_seeds(seed, n), model.tasks
    resolved = resolve_options(model.family, tasks, options or {}, task)
    return SampleRequest(seeds, resolved, labels_of(model, label, n))


def interpolating(request: SampleRequest, seed_to: int) -> SampleRequest:
    """The rows of ``request`` on the way from its first seed to ``seed_to``, both ends included.

    Raises:
        RequestError: ``seed_to`` is no seed, or there are no two rows for the ends.
    """
    n = len(request.seeds)
    _check_seed("seed_to", seed_to)
    if n < 2:
        raise RequestError("n", f"n={n}: a way has two ends, ask for 2 samples or more.")
    start = request.seeds[:1].expand(n).contiguous()
    weight = torch.linspace(0, 1, n, dtype=torch.float64)
    return replace(request, seeds=start, seed_to=torch.full_like(start, seed_to), weight=weight)


def _check_rows(x: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(x.shape) != wanted:
        raise RequestError("x", f"x has shape {tuple(x.shape)}: give one sample for each row, {wanted}.")


def _check_values(spec: DataSpec, x: Tensor) -> None:
    if spec.kind == "tokens":
        most = (spec.levels or 1) - 1
        if not bool(((x >= 0) & (x <= most) & (x == x.long())).all()):
            raise RequestError("x", f"x holds values that are no tokens here: give whole numbers from 0 to {most}.")
    elif not bool(x.isfinite().all()):
        raise RequestError("x", "x holds values that are not finite: give real numbers.")


def given(request: SampleRequest, spec: DataSpec, x: Tensor) -> SampleRequest:
    """``request`` for samples that are made from ``x``. (N, *)

    Raises:
        RequestError: there is not one picture for each sample, or it holds what is not finite or no token.
    """
    _check_rows(x, (len(request.seeds), *spec.shape))
    _check_values(spec, x)
    return replace(request, x=x)


def completing(request: SampleRequest, spec: DataSpec, x: Tensor, mask: Tensor) -> SampleRequest:
    """``request`` for samples that hold ``x`` where ``mask`` is 1; no more of it is looked at. (N, *), (N, *) or (*)

    Raises:
        RequestError: there is not one picture for each sample, or what is given of it is not finite or no token, or a
            mask is of another shape or with other values.
    """
    wanted = (len(request.seeds), *spec.shape)
    if tuple(mask.shape) not in (wanted, wanted[1:]):
        raise RequestError("mask", f"mask has shape {tuple(mask.shape)}: use {wanted} or {wanted[1:]}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise RequestError("mask", "mask holds other values than 0 (asked for) and 1 (given).")
    _check_rows(x, wanted)
    _check_values(spec, x[(mask == 1).expand(wanted)])
    return replace(request, x=x, mask=mask.to(x.dtype).expand(wanted))


def check_task(tasks: Tasks, task: str) -> None:
    """Refuse a sampling task that the model does not have.

    Raises:
        RequestError: with those it has, the nearest first.
    """
    if task not in tasks.starts:
        known = ", ".join(sorted(tasks.starts)) or "none"
        raise RequestError("task", f"This model cannot {task!r}.{nearest(task, tasks.starts)} Its tasks: {known}.")


def start(tasks: Tasks, request: SampleRequest, task: str = "sample") -> SamplerState:
    """Rows of a fresh request.

    Raises:
        RequestError: the model has no such sampling task.
    """
    check_task(tasks, task)
    return tasks.starts[task](request)


def takes(model: Model, options: Mapping[str, Any]) -> bool:
    """Whether ``model`` draws samples with these options."""
    try:
        start(model.tasks, make_request(model, 1, options=options))
    except RequestError:
        return False
    return True


@torch.no_grad()
def trajectory(tasks: Tasks, request: SampleRequest, task: str = "sample") -> Iterator[SamplerState]:
    """The state after the start and after each call, until every row is done; rows of one request end together."""
    state = start(tasks, request, task)
    assert tasks.advance is not None
    yield state
    while not bool(state.done.all()):
        state = tasks.advance(state)
        yield state


@torch.no_grad()
def run(tasks: Tasks, request: SampleRequest, task: str = "sample") -> Tensor:
    """Samples of a request, all rows at once. -> (N, *) on the CPU"""
    for state in trajectory(tasks, request, task):
        last = state
    assert tasks.render is not None
    return tasks.render(last).cpu()


def sample(
    model: Model,
    n: int,
    seed: int = 0,
    label: int | Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    max_rows: int = 256,
) -> Tensor:
    """``n`` samples in chunks of ``max_rows``; chunking does not change a picture. -> (n, *) on the CPU"""
    return draw(model.tasks, make_request(model, n, seed, label, options), max_rows=max_rows)


def draw(tasks: Tasks, request: SampleRequest, task: str = "sample", max_rows: int = 256) -> Tensor:
    """Samples of any request in chunks of ``max_rows``. -> (N, *) on the CPU"""
    starts = range(0, len(request.seeds), max_rows)
    return torch.cat([run(tasks, rows_of(request, slice(first, first + max_rows)), task) for first in starts])


_ROWS = ("seeds", "label", "caption", "x", "mask", "seed_to", "weight")  # what a request has for each row


def rows_of(request: SampleRequest, rows: slice) -> SampleRequest:
    """Some rows of a request; what one entry gave to all of its rows is copied for these alone."""
    if rows == slice(0, 1) and len(request.seeds) == 1:
        return request
    have = {name: value for name in _ROWS if (value := getattr(request, name)) is not None}
    return replace(request, **{name: value[rows].contiguous() for name, value in have.items()})


def kind_of(request: SampleRequest) -> tuple[object, ...]:
    """Requests in which this is equal may be started as one."""
    return request.options, *(getattr(request, name) is None for name in _ROWS)


def joined(requests: Sequence[SampleRequest]) -> SampleRequest:
    """Requests of one kind as one, with the rows of all in order."""
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    have = [name for name in _ROWS if getattr(first, name) is not None]
    parts: dict[str, Any] = {name: torch.cat([getattr(each, name) for each in requests]) for name in have}
    return replace(first, **parts)


def evaluations(tasks: Tasks, request: SampleRequest, task: str = "sample") -> int:
    """Network evaluations that the rows of ``request`` will take in all."""
    fresh = start(tasks, request, task)
    each = fresh.calls * fresh.cost if tasks.evaluations is None else tasks.evaluations(fresh)
    return int(each.sum())
