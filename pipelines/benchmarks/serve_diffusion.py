"""A served diffusion model, asked for pictures of mixed steps, beside the bare sampler and beside LitServe's batches.

    python pipelines/benchmarks/serve_diffusion.py BUNDLE [--rounds 3] [--seconds 40]

Whatever samples has CPU 0, one thread, to itself, and whatever else there is has CPU 1. A round: Kinfolk at more
requests than it can answer, the bare sampler at each number of rows before and after; then Kinfolk and a server with
request-level batching (LitServe: what has come is sampled to its end, rows of other steps beside each other) at the
same share of what could be done. Requests fall due at random, of 5 to 50 steps, the same for both. Prints a table in
Markdown.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from kinfolk import sampling
from kinfolk.bundle import load_bundle
from kinfolk.cluster import free_port
from kinfolk.contract import Model
from kinfolk.pictures import draw
from kinfolk.serving.config import ServedModel
from kinfolk.serving.engine import Engine
from kinfolk.serving.rows import Job
from kinfolk_pipelines.load import Figures, Load, drive, figures
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import alone, answering, end, pin, serving
from kinfolk_pipelines.wire import Reply, Wire

LEAST, MOST = 5, 50  # steps of a request
SOLVER = "ddim"  # one network evaluation a step
ROWS = (4, 8, 16, 32)  # of the bare sampler's batches
MAX_ROWS = 32
MODEL_CPU, OTHER_CPU = 0, 1
BARE_S, WARM_UP_S = 5.0, 5.0
BEYOND, WITHIN = 1.3, 0.85  # requests due, over what the bare sampler or Kinfolk could answer
try:
    from litserve import LitAPI
except ImportError:  # says so when it is needed
    LitAPI = object

COLUMNS = (
    "round",
    "bare, evaluations/s",
    "Kinfolk, asked too much",
    "over bare",
    "its p99 s, refused",
    "then requests/s",
    "Kinfolk mean s",
    "request-level mean s (of those answered in 60 s)",
    "ratio",
)


def steps_of(seed: int) -> Iterator[int]:
    """Steps of request after request."""
    generator = np.random.default_rng(seed)
    while True:
        yield int(generator.integers(LEAST, MOST + 1))


def bare(model: Model, rows: int, seconds: float) -> float:
    """Network evaluations a second of rows that start at once, each batch to its end."""
    request = sampling.make_request(model, rows, options={"solver": SOLVER, "steps": MOST})
    made, began = 0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - began < seconds:
            made += sum(int(state.cost.sum()) for state in [*sampling.trajectory(model.tasks, request)][:-1])
    return made / (time.perf_counter() - began)


def run_bare(bundle: Path, asked: Any, told: Any) -> None:
    """Measure the bare sampler, on its CPU, as often as it is asked."""
    os.sched_setaffinity(0, {MODEL_CPU})
    torch.set_num_threads(1)
    model = load_bundle(bundle)
    bare(model, ROWS[0], 1.0)
    while asked.get():
        told.put({rows: bare(model, rows, BARE_S) for rows in ROWS})


class WholeRequests(LitAPI):
    """The model as LitServe holds it: what it is given in one go is sampled to its end."""

    bundle: Path

    def setup(self, device: str) -> None:  # noqa: ARG002
        os.sched_setaffinity(0, {MODEL_CPU})
        torch.set_num_threads(1)
        self.model = load_bundle(self.bundle)

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request

    @torch.no_grad()
    def predict(self, asked: Sequence[Any]) -> list[bytes]:
        tasks = self.model.tasks
        engine, loop = Engine(tasks, max_rows=len(asked)), asyncio.new_event_loop()
        jobs = []
        for each in asked:
            options = {"solver": each["solver"], "steps": each["steps"]}
            request = sampling.make_request(self.model, 1, each["seed"], options=options)
            jobs.append(Job(request, "sample", each["steps"], loop, loop.create_future()))
        waiting, samples = list(jobs), {}
        while waiting:
            for job, outcome in engine.turn(waiting):
                assert not isinstance(outcome, Exception)
                samples[job] = outcome.samples
                waiting.remove(job)
        return [draw(samples[job], self.model.spec) for job in jobs]

    def encode_response(self, output: bytes) -> Any:
        from fastapi import Response

        return Response(output, media_type="image/png")


def litserve(bundle: Path, port: int) -> None:
    """The model behind LitServe."""
    from litserve import LitServer

    os.sched_setaffinity(0, {OTHER_CPU})
    api = WholeRequests(max_batch_size=MAX_ROWS, batch_timeout=0.001, api_path="/")
    api.bundle = bundle
    server = LitServer(api, accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")


@dataclass
class Counted(Wire):
    """A connection that says when how many network evaluations were answered."""

    url: str
    answered: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        Wire.__init__(self, urlsplit(self.url))

    async def ask(self, body: bytes) -> Reply:
        """The answer."""
        reply = await super().ask(body)
        if reply.status == 200:
            self.answered.append((asyncio.get_running_loop().time(), json.loads(body)["steps"]))
        return reply


def put_load(url: str, rate: float, seconds: float, seed: int) -> tuple[Figures, float]:
    """An open load; what it shows, and the network evaluations a second that were answered."""
    load = Load(connections=256, seconds=seconds, warm_up_s=WARM_UP_S, rate=rate, seed=seed)
    told = {"solver": SOLVER}
    bodies = (
        json.dumps({**told, "steps": steps, "seed": number}).encode() for number, steps in enumerate(steps_of(seed))
    )
    answered: list[tuple[float, int]] = []

    async def run() -> Figures:
        began = asyncio.get_running_loop().time()
        found = figures(await drive(load, bodies, lambda: Counted(url, answered)), load, 1)
        answered[:] = [each for each in answered if WARM_UP_S <= each[0] - began < WARM_UP_S + seconds]
        return found

    found = asyncio.run(run())
    return found, sum(steps for _, steps in answered) / seconds


def _could(speeds: dict[int, float], *more: float) -> float:
    """Requests a second at the best of these network evaluations a second."""
    return max(*speeds.values(), *more) / ((LEAST + MOST) / 2)


def median_of(ratios: Sequence[float]) -> str:
    """The median with the least and the most."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


@dataclass(frozen=True)
class Sides:
    """Everything that is measured, up and waiting."""

    kinfolk: str  # addresses
    whole: str
    asked: Any  # queues of the bare sampler
    told: Any

    def bare(self) -> dict[int, float]:
        """Network evaluations a second of the bare sampler, by rows."""
        self.asked.put(True)
        speeds: dict[int, float] = self.told.get(timeout=120)
        return speeds

    def round(self, number: int, seconds: float) -> tuple[float, float]:
        """Served speed over bare, and mean latency over that of the request-level server; prints a row."""
        before = self.bare()
        full, speed = put_load(self.kinfolk, BEYOND * _could(before), seconds, number)
        speeds = {rows: (alone_ + before[rows]) / 2 for rows, alone_ in self.bare().items()}
        best, rate = max(speeds.values()), WITHIN * _could(speeds, speed)
        ours, _ = put_load(self.kinfolk, rate, seconds, 100 + number)
        theirs, _ = put_load(self.whole, rate, seconds, 100 + number)
        assert not ours.failed, ours.failed
        means = [each.latency_ms["mean"] / 1e3 for each in (ours, theirs)]
        cells = (
            f"{number}",
            f"{best:.0f} at {max(speeds, key=speeds.__getitem__)} rows",
            f"{speed:.0f}",
            f"{speed / best:.2f}",
            f"{full.latency_ms['p99'] / 1e3:.1f}, {sum(full.failed.values())}",
            f"{rate:.1f}",
            f"{means[0]:.2f}",
            f"{means[1]:.2f} ({theirs.answered} of {theirs.requests})",
            f"{means[0] / means[1]:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        return speed / best, means[0] / means[1]


def measure(arguments: argparse.Namespace) -> None:
    """Rounds over all of them, and a table."""
    os.sched_setaffinity(0, {OTHER_CPU})
    spawn = multiprocessing.get_context("spawn")
    asked, told, port = spawn.Queue(), spawn.Queue(), free_port()
    sampler = spawn.Process(target=alone, args=(run_bare, arguments.bundle, asked, told))
    whole = spawn.Process(target=alone, args=(litserve, arguments.bundle, port))
    sampler.start()
    whole.start()
    served = ServedModel(name="model", bundle=arguments.bundle, max_rows=arguments.rows, drain_timeout_s=5)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    try:
        with serving([served]) as server:
            sides = Sides(server.url("model"), f"http://127.0.0.1:{port}/", asked, told)
            asyncio.run(answering(sides.whole, b'{"seed": 0, "steps": 5, "solver": "ddim"}'))
            for replica in server.replicas("model"):
                pin(replica, MODEL_CPU)
            found = [sides.round(number + 1, arguments.seconds) for number in range(arguments.rounds)]
        speeds, waits = zip(*found, strict=True)
        print(f"\nServed over bare {median_of(speeds)}; mean latency over request-level {median_of(waits)}.")
    finally:
        for process in (sampler, whole):
            end(process)


@plain_mistakes
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a diffusion model's bundle folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=MAX_ROWS, help="most rows in one call, of Kinfolk")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each load")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
