"""The serve file: which registered models stand behind HTTP, on how many replicas, within what limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from kinfolk.config import parse, read_mapping
from kinfolk.contract import Config
from kinfolk.errors import no_effect
from kinfolk.serving.batcher import BatchLimits

_OF_A_REPLICA = ("autoscaling", "num_cpus", "num_gpus", "threads", "max_ongoing_requests", "drain_timeout_s")
MODELS = "/v1/models"  # the address of the list of models, and the start of theirs
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_ALIAS = r"^[A-Za-z][A-Za-z0-9_-]{0,49}$"
_ORIGIN = r"^(\*|https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?)$"  # in lower case, as browsers write it


class Limits(Config):
    """What one replica accepts; a request beyond a limit is refused before anything is computed or allocated."""

    max_n: int = Field(1024, ge=1)  # samples of one request
    max_evaluations: int = Field(50_000, ge=1)  # network evaluations of one request: n times calls times cost of a call
    max_evaluations_queued: int = Field(200_000, ge=1)  # of all requests a replica holds; beyond: 503 with Retry-After
    request_timeout_s: float = Field(60.0, gt=0)  # from the first byte of the body to the last sample; beyond: 504
    body_timeout_s: float = Field(15.0, gt=0)  # in which the body of a request must have come whole; beyond: 408
    max_body_bytes: int = Field(1_048_576, ge=1)  # of a request; beyond: 413

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_evaluations > self.max_evaluations_queued:
            raise ValueError(
                f"max_evaluations={self.max_evaluations} is above max_evaluations_queued="
                f"{self.max_evaluations_queued}, so the largest request could never be taken"
            )
        return self


class Autoscaling(Config):
    """How many replicas of a model run: as many as its work needs, in network evaluations."""

    min_replicas: int = Field(1, ge=0)  # 0: the model sleeps when unused, and the first request waits for a start
    max_replicas: int = Field(1, ge=1)
    target_queue_s: float = Field(1.0, gt=0)  # time in which a replica should get through what it has queued
    target_busy: float = Field(0.8, gt=0, le=1)  # share of the time that a replica should compute at most
    upscale_delay_s: float = Field(1.0, ge=0)  # how long more replicas must have been wanted
    downscale_delay_s: float = Field(60.0, ge=0)  # how long fewer must have been wanted
    sleep_delay_s: float = Field(300.0, ge=0)  # how long none must have been wanted

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}")
        return self


class Rollout(Config):
    """How a new version takes over: on trial first, beside the one before it, which answers what the new one fails."""

    share: float = Field(1.0, gt=0, le=1)  # of the requests that the new version answers on trial
    trial_s: float = Field(10.0, ge=0)  # how long
    max_failures: int = Field(0, ge=0)  # requests it may fail on trial; with one more the version before it stays


class ServedModel(Config):
    """One registered model behind its own endpoint, ``/v1/models/ROUTE/sample``."""

    name: str = Field(pattern=_NAME)  # as registered
    alias: str = Field("champion", pattern=_ALIAS)  # which version is served; moving the alias moves the endpoint
    alias_poll_s: float = Field(10.0, gt=0)  # how often a replica looks where the alias points now
    bundle: Path | None = None  # a bundle folder to serve as it is, in place of a registered version
    route: str = Field("", pattern=rf"^$|{_NAME}")  # its place in the address; empty: the name
    shared: bool = False  # it has no replica of its own, but takes turns in the one of the section ``shared``
    rollout: Rollout = Rollout()
    autoscaling: Autoscaling = Autoscaling()
    num_cpus: float = Field(1.0, ge=0)  # CPUs Ray reserves for each replica
    num_gpus: float = Field(0.0, ge=0)  # GPUs Ray reserves for each replica; above 0 the model runs there
    threads: int | None = Field(None, ge=1)  # of one network call on the CPU; None: as many as num_cpus, at least one
    max_rows: int = Field(32, ge=1)  # rows in one network call
    # Numbers of rows that a call is filled up to, the last one max_rows, where a network runs faster at a few numbers
    # than at any; none: as many rows as there are.
    row_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    max_ongoing_requests: int = Field(512, ge=1)  # HTTP requests a replica holds at once, waiting ones included
    drain_timeout_s: float = Field(40.0, gt=0)  # a replica that must go may finish its requests for so long
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _sizes_rise_to_max_rows(self) -> Self:
        sizes = self.row_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[-1] != self.max_rows):
            raise ValueError(f"row_sizes={list(sizes)} must rise, and end with max_rows={self.max_rows}")
        return self

    def idle(self) -> Mapping[str, str]:
        """What a shared model has from the replica that it is in."""
        return dict.fromkeys(_OF_A_REPLICA, "a model with a replica of its own") if self.shared else {}

    @field_validator("bundle")
    @classmethod
    def _absolute(cls, bundle: Path | None) -> Path | None:
        return bundle and bundle.absolute()  # replicas run in folders of their own

    @property
    def place(self) -> str:
        """Its last part of the address, by which it is asked for."""
        return self.route or self.name

    @property
    def path(self) -> str:
        """The part of the address before ``/sample``."""
        return f"{MODELS}/{self.place}"

    @property
    def batch_limits(self) -> BatchLimits:
        """The limits as the batcher takes them."""
        limits = self.limits
        return BatchLimits(self.max_rows, limits.max_evaluations, limits.max_evaluations_queued, self.row_sizes)

    @property
    def cpu_threads(self) -> int:
        """Threads of one network call on the CPU."""
        return self.threads or max(1, int(self.num_cpus))

    @property
    def device(self) -> str:
        """Where the model runs."""
        return "cuda" if self.num_gpus > 0 else "cpu"


class Shared(Config):
    """The one replica in which small models take turns: those used least recently make room for one asked for."""

    memory_mb: float = Field(gt=0)  # 10^6 bytes; of weights that are held at once, where the replica computes
    num_cpus: float = Field(1.0, ge=0)  # CPUs Ray reserves for the replica
    num_gpus: float = Field(0.0, ge=0)  # GPUs Ray reserves for the replica; above 0 the models run there
    threads: int = Field(1, ge=1)  # threads of one network call on the CPU
    max_ongoing_requests: int = Field(512, ge=1)  # HTTP requests the replica holds at once, of all models together
    drain_timeout_s: float = Field(40.0, gt=0)  # it may finish its requests for so long when it must go

    def settled(self, model: ServedModel) -> ServedModel:
        """A shared model's entry with what it has from the replica."""
        return model.model_copy(update={name: getattr(self, name) for name in _OF_A_REPLICA if name != "autoscaling"})


class ServeFile(Config):
    """Everything that is served from one address."""

    host: str = "127.0.0.1"  # the interface that is listened on; another one opens the endpoints to the network
    port: int = Field(8000, ge=1, le=65535)  # TCP
    access_log: bool = False  # a line of JSON for each request, with its X-Request-ID, in Ray's log folder
    # Sites, such as https://example.org, whose pages may read answers in a browser; "*": all; none by default.
    cors_origins: tuple[Annotated[str, Field(pattern=_ORIGIN)], ...] = ()
    models: list[ServedModel] = Field(min_length=1)
    shared: Shared | None = None  # what the models with ``shared: true`` have together

    @property
    def own(self) -> list[ServedModel]:
        """Models with replicas of their own."""
        return [model for model in self.models if not model.shared]

    @property
    def sharing(self) -> list[ServedModel]:
        """Models that share a replica."""
        return [model for model in self.models if model.shared]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        paths = [model.path for model in self.models]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"two models have the address {twice[0]}; give one of them another route")
        return self

    @model_validator(mode="after")
    def _shared_by_some(self) -> Self:
        if self.shared is None and self.sharing:
            raise ValueError(
                f"{self.sharing[0].name} is shared, and there is no section 'shared': add one with memory_mb, "
                "or leave 'shared' out of the model"
            )
        if self.shared is not None and not self.sharing:
            raise ValueError(no_effect("the section 'shared'", "models with shared: true"))
        return self


def load_serve_file(path: Path) -> ServeFile:
    """Read a serve file.

    Raises:
        ConfigError: the file is no YAML mapping, or a key or value is not allowed.
    """
    return parse(ServeFile, read_mapping(path), str(path))
