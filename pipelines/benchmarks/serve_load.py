"""Requests a second of a served model beside others that serve the same module, one PNG a request.

    python pipelines/benchmarks/serve_load.py BUNDLE [--servers kinfolk fastapi litserve proxy] [--seconds 30]

All run on this machine at once, each in processes of its own, and are asked in turns of five seconds by one client
process with as many connections; the first turn of each is not counted. Who is not asked is stopped meanwhile, since
LitServe looks for work all the time, but for Ray, which would take its processes for dead. Prints a table in Markdown,
with the ratio to the first by pairs of neighbouring turns, and ends with 1 if any request failed.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from kinfolk import sampling
from kinfolk.bundle import load_bundle
from kinfolk.cluster import free_port
from kinfolk.contract import Model
from kinfolk.pictures import draw
from kinfolk.serving.config import Autoscaling, ServedModel, ServeFile
from kinfolk.serving.haproxy import haproxy_environment
from kinfolk_pipelines.load import Figures, Load, drive, figures
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import READY_S, alone, answering, end, serve
from kinfolk_pipelines.wire import Wire

try:
    from litserve import LitAPI
except ImportError:  # measured without it
    LitAPI = object

TURN_S, WARM_UP_S = 5.0, 0.5
MAX_ROWS = 32
REPLICAS = 2  # as many processes as LitServe has: one takes requests in, one samples


def _answers(model: Model, seeds: list[int]) -> list[bytes]:
    """A PNG file for each seed, all of them sampled in one batch."""
    request = sampling.make_request(model, len(seeds))
    request = replace(request, seeds=torch.tensor(seeds, dtype=torch.int64))
    return [draw(sample[None], model.spec) for sample in sampling.run(model.tasks, request)]


def fastapi(bundle: Path, port: int) -> None:
    """The model behind FastAPI on uvicorn, one process, each request sampled by itself."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    torch.set_num_threads(1)
    model, app = load_bundle(bundle), FastAPI()

    @app.post("/")
    async def answer(request: Request) -> Response:
        return Response(_answers(model, [(await request.json())["seed"]])[0], media_type="image/png")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


class Sampler(LitAPI):
    """The model as LitServe holds it."""

    bundle: Path

    def setup(self, device: str) -> None:  # noqa: ARG002
        torch.set_num_threads(1)
        self.model = load_bundle(self.bundle)

    def decode_request(self, request: dict[str, Any]) -> int:
        return int(request["seed"])

    def predict(self, seeds: list[int]) -> list[bytes]:
        return _answers(self.model, seeds)

    def encode_response(self, output: bytes) -> Any:
        from fastapi import Response

        return Response(output, media_type="image/png")


def litserve(bundle: Path, port: int) -> None:
    """The model behind LitServe, one worker, batches of what comes within a millisecond."""
    from litserve import LitServer

    api = Sampler(max_batch_size=MAX_ROWS, batch_timeout=0.001, api_path="/")
    api.bundle = bundle
    server = LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, host="127.0.0.1", generate_client_file=False, log_level="error")


def _kinfolk(bundle: Path, port: int, environment: Mapping[str, str]) -> None:
    replicas = Autoscaling(min_replicas=REPLICAS, max_replicas=REPLICAS)
    served = ServedModel(name="model", bundle=bundle, max_rows=MAX_ROWS, drain_timeout_s=5, autoscaling=replicas)
    serve(ServeFile(port=port, models=[served]), REPLICAS, environment)


def kinfolk(bundle: Path, port: int) -> None:
    """As `kinfolk serve` does it: HAProxy, and replicas that batch what is there."""
    _kinfolk(bundle, port, haproxy_environment())


def proxy(bundle: Path, port: int) -> None:
    """The same behind Ray Serve's own proxy in Python."""
    _kinfolk(bundle, port, {})


SERVERS: dict[str, tuple[Callable[[Path, int], None], str, str]] = {  # and path, and name
    "kinfolk": (kinfolk, "/v1/models/model/sample", "Kinfolk on Ray Serve, HAProxy"),
    "fastapi": (fastapi, "/", "FastAPI on uvicorn, no batching"),
    "litserve": (litserve, "/", "LitServe, batching"),
    "proxy": (proxy, "/v1/models/model/sample", "Kinfolk on Ray Serve, its own proxy"),
}


def turn(url: str, connections: int, first_seed: int) -> Figures:
    """Load one server for some seconds."""
    load = Load(connections=connections, seconds=TURN_S, warm_up_s=WARM_UP_S)
    bodies = (json.dumps({"seed": first_seed + index}).encode() for index in range(10**9))
    return figures(asyncio.run(drive(load, bodies, lambda: Wire(urlsplit(url)))), load, 1)


@contextmanager
def others_stopped(groups: Mapping[str, int], asked: str) -> Iterator[None]:
    """Process groups of the servers that are not asked do nothing; those of Ray do."""
    stopped = [group for name, group in groups.items() if name != asked and name in ("fastapi", "litserve")]
    for group in stopped:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in stopped:
            os.killpg(group, signal.SIGCONT)


def run_client(urls: Mapping[str, str], groups: Mapping[str, int], arguments: argparse.Namespace, results: Any) -> None:
    """Turns over all servers; sends the figures of each turn by server."""
    found: dict[str, list[Figures]] = {name: [] for name in urls}
    for url in urls.values():
        asyncio.run(answering(url))
    for number in range(1 + max(round(arguments.seconds / TURN_S), 1)):
        for name, url in urls.items():
            with others_stopped(groups, name):
                measured = turn(url, arguments.connections, number * 10**6)
            if number:
                found[name].append(measured)
    results.put(found)


def table(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    """A line for each server."""
    yield "| server | requests/s | least and most of a turn | p50 ms | p99 ms | failed | first over this one |"
    yield "|---|---|---|---|---|---|---|"
    first = [each.requests_per_s for each in next(iter(found.values()))]
    for name, turns in found.items():
        rates = [each.requests_per_s for each in turns]
        p50, p99 = (
            statistics.median(each.latency_ms.get(cut, float("nan")) for each in turns) for cut in ("p50", "p99")
        )
        failed = sum(sum(each.failed.values()) for each in turns)
        ratios = sorted(a / b if b else float("inf") for a, b in zip(first, rates, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        told = f"{statistics.mean(rates):.0f} | {min(rates):.0f} to {max(rates):.0f} | {p50:.1f} | {p99:.1f}"
        yield f"| {SERVERS[name][2]} | {told} | {failed} | {ratio} |"


def measure(arguments: argparse.Namespace) -> dict[str, list[Figures]]:
    """Start the servers and the client, each in processes of their own, and return what the client saw."""
    spawn = multiprocessing.get_context("spawn")
    results, servers, urls = spawn.Queue(), {}, {}
    for name in arguments.servers:
        run, path, _ = SERVERS[name]
        port = free_port()
        servers[name] = spawn.Process(target=alone, args=(run, arguments.bundle, port))
        servers[name].start()
        urls[name] = f"http://127.0.0.1:{port}{path}"
    groups = {name: server.pid for name, server in servers.items() if server.pid}
    client = spawn.Process(target=alone, args=(run_client, urls, groups, arguments, results))
    client.start()
    try:
        found: dict[str, list[Figures]] = results.get(timeout=READY_S + 2 * len(urls) * (arguments.seconds + 10))
    finally:
        for process in (client, *servers.values()):
            end(process)
    return found


@plain_mistakes
def main() -> None:
    """Measure, print a table, and fail if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a model's bundle folder")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--seconds", type=float, default=30.0, help="for each server")
    parser.add_argument("--connections", type=int, default=32)
    found = measure(parser.parse_args())
    print("\n".join(table(found)))
    if any(each.failed for turns in found.values() for each in turns):
        sys.exit(1)


if __name__ == "__main__":
    main()
