"""Requests a second of a served model beside a bare FastAPI app with the same model and no batching.

    python pipelines/benchmarks/serve_load.py BUNDLE [--seconds 30] [--connections 32] [--options '{"steps": 18}']

Both servers run on this machine at once and are asked in turns of five seconds by one client process that keeps its
connections open. Each answer is one PNG. Prints a table in Markdown, and ends with 1 if any request failed.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from kinfolk.bundle import load_bundle
from kinfolk.cluster import connect, free_port
from kinfolk.pictures import draw
from kinfolk.sampling import sample
from kinfolk.serving.config import ServedModel, ServeFile
from kinfolk.serving.haproxy import haproxy_environment
from kinfolk.serving.launch import serve_models, stop_serving

Seen = tuple[list[float], list[str], float]  # latencies in ms, failures, seconds
TURN_S = 5.0
WARM_UP_S = 2.0


def serve_bare(bundle: Path, port: int) -> None:
    """The model behind FastAPI on uvicorn, one process, each request sampled by itself."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    torch.set_num_threads(1)
    model, app = load_bundle(bundle), FastAPI()

    @app.post("/sample")
    async def answer(request: Request) -> Response:
        asked = await request.json()
        samples = sample(model, asked.pop("n"), asked.pop("seed"), options=asked)
        return Response(draw(samples, model.spec), media_type="image/png")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


async def one_connection(
    url: str, bodies: Iterator[bytes], until: float, latencies_ms: list[float], failures: list[str]
) -> None:
    """Ask one request after the other on a connection that stays open until something goes wrong on it."""
    place, reader, writer = urlsplit(url), None, None
    while time.perf_counter() < until:
        body = next(bodies)
        head = f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        try:
            if reader is None or writer is None:
                reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(f"{head}Accept: image/png\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length:")[2].split(b"\r\n")[0])
            picture = await reader.readexactly(length)
            if answer.split(b" ", 2)[1] != b"200" or not picture.startswith(b"\x89PNG"):
                failures.append(answer.split(b"\r\n")[0].decode())
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            failures.append(repr(error))
            writer = None
        latencies_ms.append((time.perf_counter() - began) * 1e3)
    if writer is not None:
        writer.close()


async def one_turn(url: str, connections: int, seconds: float, settings: dict[str, Any], first_seed: int) -> Seen:
    """Load one server from many connections for some seconds."""
    latencies_ms: list[float] = []
    failures: list[str] = []
    seeds = itertools.count(first_seed)
    bodies = (json.dumps({**settings, "seed": seed}).encode() for seed in seeds)
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one_connection(url, bodies, until, latencies_ms, failures))
    return latencies_ms, failures, time.perf_counter() - began


def run_client(urls: dict[str, str], arguments: argparse.Namespace, results: Any) -> None:
    """Turns over all servers; sends, for each, (latencies in ms, failures, seconds)."""
    settings = {"n": arguments.n, **json.loads(arguments.options)}
    totals: dict[str, Seen] = {name: ([], [], 0.0) for name in urls}
    for url in urls.values():
        asyncio.run(one_turn(url, arguments.connections, WARM_UP_S, settings, 0))
    for turn in range(max(round(arguments.seconds / TURN_S), 1)):
        for name, url in urls.items():
            latencies, failures, seconds = asyncio.run(
                one_turn(url, arguments.connections, min(TURN_S, arguments.seconds), settings, turn * 10**6)
            )
            before = totals[name]
            totals[name] = (before[0] + latencies, before[1] + failures, before[2] + seconds)
    results.put(totals)


def table(totals: dict[str, Seen]) -> Iterator[str]:
    """The lines of a table of both servers."""
    yield "| server | requests | requests/s | p50 ms | p99 ms | failed |"
    yield "|---|---|---|---|---|---|"
    for name, (latencies, failures, seconds) in totals.items():
        cuts = statistics.quantiles(latencies, n=100)
        rate = len(latencies) / seconds
        yield f"| {name} | {len(latencies)} | {rate:.0f} | {cuts[49]:.1f} | {cuts[98]:.1f} | {len(failures)} |"


async def listening(port: int) -> None:
    """Return once something listens on the port of this machine."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                return writer.close()
            except OSError:
                await asyncio.sleep(0.1)


def measure(arguments: argparse.Namespace) -> dict[str, Seen]:
    """Start both servers and the client, each in processes of their own, and return what the client saw."""
    spawn = multiprocessing.get_context("spawn")
    bare_port, port, results = free_port(), free_port(), spawn.Queue()
    bare = spawn.Process(target=serve_bare, args=(arguments.bundle, bare_port), daemon=True)
    bare.start()
    served = ServedModel(name="model", bundle=arguments.bundle, max_rows=arguments.max_rows, drain_timeout_s=5)
    with tempfile.TemporaryDirectory() as state:
        connect(None, Path(state), cpus=2, environment=haproxy_environment() if arguments.haproxy else {})
        serve_models(ServeFile(port=port, models=[served]))
        asyncio.run(listening(bare_port))
        urls = {
            "Kinfolk on Ray Serve": f"http://127.0.0.1:{port}{served.path}/sample",
            "FastAPI alone, no batching": f"http://127.0.0.1:{bare_port}/sample",
        }
        client = spawn.Process(target=run_client, args=(urls, arguments, results), daemon=True)
        client.start()
        totals = results.get(timeout=4 * arguments.seconds + 60)
        stop_serving()
    bare.terminate()
    return totals


def main() -> int:
    """Measure, print a table, and fail if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a model's bundle folder")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each server")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--n", type=int, default=1, help="samples of each request")
    parser.add_argument("--options", default="{}", help="sampling options as JSON")
    parser.add_argument("--max-rows", type=int, default=32, help="rows in one network call of the served model")
    parser.add_argument("--haproxy", action=argparse.BooleanOptionalAction, default=True)
    totals = measure(parser.parse_args())
    print("\n".join(table(totals)))
    failures = [failure for _, failed, _ in totals.values() for failure in failed]
    if failures:
        print(f"{len(failures)} failed, first: {failures[0]}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
