"""Measure an endpoint: checks before anything is sent, the load, and the figures as a table or for a program."""

import asyncio
import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from kinfolk.client import Client
from kinfolk.client.calls import LISTING
from kinfolk.client.files import files_of
from kinfolk.config import override
from kinfolk.errors import ConfigError, nearest
from kinfolk_pipelines.load import Figures, Load, Spread, drive, figures
from kinfolk_pipelines.wire import Wire

_FILES = ("x", "mask")  # settings that are files, where they are text
_OURS = ("seed", "seeds")


@dataclass(frozen=True, slots=True)
class Target:
    """One task of one served model."""

    url: str
    server: str
    model: str
    task: str

    @property
    def place(self) -> SplitResult:
        """The address in its parts."""
        return urlsplit(self.url)


def target_of(url: str) -> Target:
    """The task that an address leads to.

    Raises:
        ConfigError: it is no address of a task.
    """
    server, found, rest = url.partition(f"{LISTING}/")
    model, _, task = (unquote(part) for part in rest.partition("/"))
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not (whole and found and model and task) or "/" in task or parts.query or parts.fragment:
        raise ConfigError(
            f"{url!r} is no address of a task: use one such as http://127.0.0.1:8000{LISTING}/digits-edm/sample."
        )
    return Target(url, server, model, task)


def check_load(load: Load) -> None:
    """Refuse a load that cannot be put on.

    Raises:
        ConfigError: with the first number that is not above 0.
    """
    wanted = {"connections": load.connections, "seconds": load.seconds, "timeout": load.timeout_s}
    if load.rate is not None:
        wanted["rate"] = load.rate
    for name, value in wanted.items():
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"--{name} {value}: use a number above 0.")
    if not (isfinite(load.warm_up_s) and load.warm_up_s >= 0):
        raise ConfigError(f"--warm-up {load.warm_up_s}: use a number of seconds, 0 for none.")


def settings_of(sets: Sequence[str]) -> dict[str, Any]:
    """The settings of every request.

    Raises:
        ConfigError: one is no ``key=value``, or is a seed, which each request has of its own.
    """
    settings = override({}, sets)
    for name in _OURS:
        if name in settings:
            raise ConfigError(f"--set {name}=...: each request has a seed of its own; --seed says which is the first.")
    return settings


def body_start(settings: Mapping[str, Any]) -> bytes:
    """A request's body up to its seed; files are sent in base64."""
    told = {name: _in_base64(name, value) if name in _FILES else value for name, value in settings.items()}
    return (json.dumps(told)[:-1] + (", " if told else "") + '"seed": ').encode()


def _in_base64(name: str, value: Any) -> list[str]:
    return [base64.b64encode(content).decode() for content in files_of(name, value)]


def bodies(settings: Mapping[str, Any], first_seed: int, samples: int) -> Iterator[bytes]:
    """Bodies of requests that share no sample: sample i of a request is that of its seed + i."""
    start = body_start(settings)
    return (b"%b%d}" % (start, seed) for seed in itertools.count(first_seed, samples))


def samples_of(target: Target, settings: Mapping[str, Any], token: str | None, seed: int) -> int:
    """How many samples one answer holds, by asking once.

    Raises:
        ConfigError: the model has no such task.
        ClientError: the server refuses a setting, naming it, or does not answer.
    """
    with Client(target.server, token=token, retries=1) as client:
        tasks = client.describe(target.model).tasks
        if target.task not in tasks:
            meant, known = nearest(target.task, tasks), ", ".join(tasks)
            raise ConfigError(f"{target.model} has no task {target.task!r}.{meant} Its tasks: {known}.")
        return len(client.run(target.model, target.task, **settings, seed=seed).array)


@dataclass(frozen=True, slots=True)
class Measured:
    """A load that was put on a task, and what it showed."""

    target: Target
    load: Load
    samples: int  # of one answer
    figures: Figures


def bench(url: str, load: Load, sets: Sequence[str] = (), token: str | None = None) -> Measured:
    """Put ``load`` on one task of a served model.

    Raises:
        ConfigError: the address, the load or a setting cannot be.
        ClientError: the server refuses what is asked for, or does not answer.
    """
    target, settings = target_of(url), settings_of(sets)
    check_load(load)
    samples = samples_of(target, settings, token, load.seed)
    asked = bodies(settings, load.seed, samples)
    exchanges = asyncio.run(drive(load, asked, lambda: Wire(target.place, token)))
    return Measured(target, load, samples, figures(exchanges, load, samples))


def facts(measured: Measured) -> dict[str, Any]:
    """All of it for a program; units are in the names."""
    return {
        "url": measured.target.url,
        **asdict(measured.load),
        "samples_per_answer": measured.samples,
        "answered": measured.figures.answered,
        **asdict(measured.figures),
    }


def lines(measured: Measured) -> list[list[str]]:
    """What was measured, by name, for people."""
    found = measured.figures
    failed = ", ".join(f"{count} with {why}" for why, count in found.failed.items())
    return [
        ["requests", str(found.requests)],
        ["failed", failed or "none"],
        ["requests/s", f"{found.requests_per_s:.1f}"],
        ["samples/s", f"{found.samples_per_s:.1f}"],
        ["bytes/s", f"{found.bytes_per_s:,.0f}"],
        ["bytes", f"{found.bytes:,}"],
    ]


def times(measured: Measured) -> tuple[list[str], list[list[str]]]:
    """The spread of latencies and of what the server says of them, in milliseconds: title and lines."""
    found, is_open = measured.figures, measured.load.rate is not None
    rows: dict[str, Spread] = {
        "latency since due" if is_open else "latency": found.latency_ms,
        "until sent": found.unsent_ms if is_open else {},
        "queued": found.queued_ms,
        "computed": found.computed_ms,
    }
    title = ["milliseconds", *found.latency_ms]
    return title, [[name, *(f"{value:.2f}" for value in each.values())] for name, each in rows.items() if each]
