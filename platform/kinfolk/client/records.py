"""What a server says of its models, as records."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import httpx

from kinfolk.client.errors import FaultError


@dataclass(frozen=True, slots=True)
class Data:
    """What one sample, or one latent, is."""

    kind: str  # image, audio, video, tokens or vector
    shape: tuple[int, ...]
    levels: int | None = None  # discrete values of an element; None: continuous
    classes: int | None = None
    caption_dim: int | None = None
    data_std: float = 1.0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Data":
        """The record of what the server tells."""
        return cls(**_known(cls, told) | {"shape": tuple(told["shape"])})


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One thing a model can be asked for."""

    name: str
    address: str  # path
    needs: tuple[str, ...]  # settings that it cannot do without
    accept: tuple[str, ...]  # media types it can be had in, the usual one first
    takes: Data | None = None  # what x is
    gives: Data | None = None  # what comes out; None: numbers
    unit: str = ""  # of the numbers

    @classmethod
    def of(cls, name: str, told: Mapping[str, Any]) -> "TaskRecord":
        """The record of what the server tells."""
        ends = {end: Data.of(told[end]) for end in ("takes", "gives") if told.get(end)}
        lists = {key: tuple(told[key]) for key in ("needs", "accept")}
        return cls(**_known(cls, told) | {"takes": None, "gives": None} | ends | lists | {"name": name})


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One served model; of one that does not answer just now, its name, address and state alone."""

    name: str  # as registered
    address: str  # path; its last part is what a client asks for the model by
    state: str  # ready, asleep or unloaded (a request wakes it), starting, busy, stopping or failed
    version: str | None = None
    stale: bool = False  # a newer version is wanted and cannot be served
    family: str | None = None
    data: Data | None = None
    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    requests: int = 0  # running or waiting
    evaluations_queued: int = 0  # of the network, still to be made

    @property
    def route(self) -> str:
        """What a client asks for the model by."""
        return self.address.rsplit("/", 1)[-1]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "ModelRecord":
        """The record of what the server tells."""
        tasks = {name: TaskRecord.of(name, task) for name, task in told.get("tasks", {}).items()}
        data = Data.of(told["data"]) if told.get("data") else None
        return cls(**_known(cls, told) | {"tasks": tasks, "data": data})


def _known(kind: type[Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What a record has room for; a newer server may tell more."""
    return {each.name: told[each.name] for each in fields(kind) if each.name in told}


def model_in(response: httpx.Response) -> ModelRecord:
    """The record of one model; raises FaultError where the answer is not Kinfolk's."""
    try:
        return ModelRecord.of(response.json())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _foreign(response) from None


def models_in(response: httpx.Response) -> list[ModelRecord]:
    """The records of a listing; raises FaultError where the answer is not Kinfolk's."""
    try:
        return [ModelRecord.of(told) for told in response.json()["models"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _foreign(response) from None


def _foreign(response: httpx.Response) -> FaultError:
    return FaultError(f"{response.request.url} does not answer as Kinfolk does.", response.status_code)
