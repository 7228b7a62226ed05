"""A family made to be watched: rows take as many calls and cost as they are told, and every call is written down."""

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

import pytest
import torch
import uvicorn
from pydantic import Field
from torch import nn

from kinfolk.contract import Config, DataSpec, Family, Likelihood, Model, SamplerOptions, SamplerState, Tasks
from kinfolk.rng import row_normal
from kinfolk.serving.access import holders
from kinfolk.serving.config import Limits, ServedModel
from kinfolk.serving.directory import build_app
from kinfolk.serving.host import ModelHost


class Pace(StrEnum):
    EVEN = "even"
    UNEVEN = "uneven"


class StepOptions(SamplerOptions):
    task_of: ClassVar = {"resample": "inpaint"}
    resample: int = 1
    steps: int = Field(3, ge=1, le=1000)
    cost: int = Field(1, ge=1, le=4)
    scale: float = Field(1.0, gt=0)
    pace: Pace = Pace.EVEN  # uneven: rows with an even seed take one call more
    poison: bool = False  # the network fails when it sees such a row
    poison_start: bool = False


@dataclass
class Watch:
    """What the network was asked to do; ``gate`` closed makes the next call wait."""

    calls: list = field(default_factory=list)  # the seeds of each call
    started: list = field(default_factory=list)  # the seeds of each start
    batches: list = field(default_factory=list)  # the seeds of each batch that was reconstructed
    done_rows_seen: int = 0
    grad_seen: bool = False
    on_call: Callable[[], None] = lambda: None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)


class Walk(nn.Module):
    """x <- x + scale * noise(seed, call), as often as ``steps`` says."""

    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.shape, self.watch = shape, Watch()
        self.watch.gate.set()


def _tasks(module):
    watch = module.watch

    def start(request):
        rows, options = len(request.seeds), request.options
        watch.started.append(request.seeds.tolist())
        if options.poison_start and 13 in request.seeds:
            raise ValueError("a poisoned start")
        label = request.label if request.label is not None else torch.zeros_like(request.seeds)
        state = SamplerState.start(
            torch.zeros(rows, *module.shape),
            request,
            options.steps,
            options.cost,
            scale=torch.full((rows,), options.scale),
            label=label.float(),
            poison=torch.full((rows,), options.poison),
        )
        return replace(state, calls=state.calls + (1 - request.seeds % 2) * (options.pace == Pace.UNEVEN))

    def advance(state):
        watch.calls.append(state.seed.tolist())
        watch.done_rows_seen += int(state.done.sum())
        watch.grad_seen |= torch.is_grad_enabled()
        watch.entered.set()
        watch.on_call()
        watch.gate.wait(10)
        if state.carry["poison"].any():
            raise ValueError("a poisoned row")
        noise = row_normal(state.seed, state.call, module.shape) * module.weight
        rows = [-1] + [1] * len(module.shape)
        return state.step(state.x + state.carry["scale"].view(rows) * noise + state.carry["label"].view(rows))

    def start_way(request):
        state = start(request)
        share = (request.weight * (request.seed_to - request.seeds)).float()
        return replace(state, x=state.x + share.view(-1, *[1] * len(module.shape)))

    def start_inpaint(request):
        state = start(request)
        return replace(state, x=10 * request.x * request.mask, calls=state.calls + request.options.resample - 1)

    def seen(batch, seeds):
        watch.batches.append(seeds.tolist())
        watch.gate.wait(10)
        return batch.x

    return Tasks(
        options=StepOptions(),
        starts={"sample": start, "interpolate": start_way, "inpaint": start_inpaint},
        advance=advance,
        render=lambda state: state.x / 10,
        conditions=frozenset({"label"}),
        log_prob=Likelihood(lambda batch, seeds: -batch.x.flatten(1).square().sum(1), "exact", "density"),
        encode=lambda batch, seeds: batch.x.flatten(1)[:, :2],
        decode=lambda batch, seeds: batch.x.mean(1).view(-1, *[1] * len(module.shape)).expand(-1, *module.shape),
        reconstruct=seen,
        anomaly_score=lambda batch, seeds: (0 if batch.label is None else batch.label) + batch.x.flatten(1).mean(1),
        denoise=lambda x_t, sigma, label: x_t / (1 + sigma.view(-1, *[1] * len(module.shape)) ** 2),
        latent_spec=DataSpec(kind="vector", shape=(2,)),
    )


WALK = Family(
    name="walk",
    kinds=frozenset({"image", "vector"}),
    config=Config,
    options=StepOptions,
    build=lambda config, spec, parents: Walk(spec.shape),
    phases=lambda module: [],
    tasks=_tasks,
)


PICTURES = DataSpec(kind="image", shape=(1, 4, 4), levels=256, classes=10)


@pytest.fixture
def make_walk():
    """A fresh model of the watched family."""

    def make(spec=PICTURES):
        return Model(WALK, Config(), spec, Walk(spec.shape))

    return make


@pytest.fixture
def walk(make_walk):
    return make_walk()


@pytest.fixture
def make_host():
    """A host of a model as version 3; ``limits`` are those of the serve file."""

    def make(model, **limits):
        return ModelHost(ServedModel(name="walk", max_rows=8, limits=Limits(**limits)), model, "3")

    return make


@pytest.fixture
def serve(make_host):
    """Put a model behind HTTP; returns the address."""
    ends = []

    def start(model, token=None, **limits):
        host, listener = make_host(model, **limits), socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_app([host], holders(token)), log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        ends.append((server, thread, host))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, host in ends:
        server.should_exit = True
        thread.join()
        asyncio.run(host.close())
