"""A served model asked for ten times what it can answer: is it refused politely, in bounds, and over when it is over?

    python pipelines/benchmarks/serve_overload.py BUNDLE [--seconds 60] [--times 10] [--deadline 10]

Requests of one sample fall due at random: half of what the model can answer, then so many times what it can, then half
again. Prints a table in Markdown, and ends with 1 if a refusal is anything but 503 with Retry-After, the memory of the
replica grows by more than a tenth over that of the half load before, the 99th percentile of what is answered is past
the deadline, or five seconds after the end the half load is not answered as it was.
"""

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from kinfolk.serving.config import Limits, ServedModel
from kinfolk_pipelines.load import Exchange, Load, drive
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import Server, serving
from kinfolk_pipelines.wire import Wire

HALF = 0.5
CALM_S, SETTLE_S = 20.0, 5.0
CONNECTIONS = 512
GROWTH = 0.10


@dataclass
class Memory:
    """The resident memory of a process, looked at ten times a second, in MB."""

    process: psutil.Process
    seen: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Look until it is over."""
        while not self.over.wait(0.1):
            self.seen.append(self.process.memory_info().rss / 1e6)


def put(server: Server, rate: float, seconds: float, seed: int) -> list[Exchange]:
    """Every request of an open load."""
    load = Load(connections=CONNECTIONS, seconds=seconds, warm_up_s=0, rate=rate, seed=seed, timeout_s=120)
    bodies = (json.dumps({"seed": number}).encode() for number in range(10**9))
    return asyncio.run(drive(load, bodies, lambda: Wire(urlsplit(server.url("model")))))


def capacity(server: Server) -> float:
    """Requests a second that a closed load gets answered."""
    load = Load(connections=12, seconds=10, warm_up_s=3)
    bodies = (json.dumps({"seed": number}).encode() for number in range(10**9))
    done = asyncio.run(drive(load, bodies, lambda: Wire(urlsplit(server.url("model")))))
    ended = [each.ended_s for each in done if each.reply is not None and each.reply.status == 200]
    return sum(load.warm_up_s <= at < load.until_s for at in ended) / load.seconds


def latencies(exchanges: Sequence[Exchange]) -> list[float]:
    """Seconds from when it was sent, of each request that was answered, in order of length."""
    good = [each for each in exchanges if each.reply is not None and each.reply.status == 200]
    return sorted(each.ended_s - each.sent_s for each in good)


def refusals(exchanges: Sequence[Exchange]) -> Counter[str]:
    """What was answered to those that were not, and whether it said when to come back."""
    found: Counter[str] = Counter()
    for each in exchanges:
        if each.reply is None:
            found[each.trouble] += 1
        elif each.reply.status != 200:
            after = "with Retry-After" if each.reply.retry_after_s else "without Retry-After"
            found[f"{each.reply.status} {after}"] += 1
    return found


def line(what: str, rate: float, exchanges: Sequence[Exchange], memory: Sequence[float]) -> str:
    """A row of the table."""
    waits = latencies(exchanges) or [float("nan")]
    p99 = waits[int(0.99 * (len(waits) - 1))]
    others = ", ".join(f"{count} x {said}" for said, count in refusals(exchanges).items()) or "none"
    told = f"{statistics.median(waits):.2f} | {p99:.2f} | {others} | {min(memory):.0f} to {max(memory):.0f}"
    return f"| {what} | {rate:.0f} | {len(exchanges)} | {len(latencies(exchanges))} | {told} |"


def measure(arguments: argparse.Namespace) -> list[str]:
    """What did not hold."""
    limits = Limits(request_timeout_s=arguments.deadline)
    served = ServedModel(name="model", bundle=arguments.bundle, max_rows=arguments.rows, limits=limits)
    print("| load | due/s | requests | answered | p50 s | p99 s | others | memory MB |\n" + "|---" * 8 + "|")
    with serving([served]) as server:
        could = capacity(server)
        (replica,) = server.replicas("model")
        found, memories = [], []
        loads = (
            ("half of what it can", HALF, CALM_S),
            (f"{arguments.times:g} times", arguments.times, arguments.seconds),
            (f"half, {SETTLE_S:g} s later", HALF, CALM_S),
        )
        for number, (what, times, seconds) in enumerate(loads):
            memory = Memory(replica)
            thread = threading.Thread(target=memory.watch)
            thread.start()
            began = time.monotonic()
            exchanges = put(server, times * could, seconds, number)
            overtime = time.monotonic() - began - seconds
            memory.over.set()
            thread.join()
            print(line(what, times * could, exchanges, memory.seen), flush=True)
            found.append(exchanges)
            memories.append(memory.seen)
            time.sleep(max(SETTLE_S - max(overtime, 0), 0))
    calm, full, after = found
    trouble = []
    if set(refusals(full)) != {"503 with Retry-After"}:
        trouble.append(f"refusals were {dict(refusals(full))}")
    if max(memories[1]) > (1 + GROWTH) * max(memories[0]):
        trouble.append("the memory grew")
    waits = latencies(full)
    if waits[int(0.99 * (len(waits) - 1))] > arguments.deadline:
        trouble.append("what was answered was answered late")
    if refusals(after) or statistics.median(latencies(after)) > 2 * statistics.median(latencies(calm)):
        trouble.append("it did not get over it")
    return trouble


@plain_mistakes
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--times", type=float, default=10.0, help="how much more than it can answer")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds a request may take")
    parser.add_argument("--rows", type=int, default=8, help="most rows in one call")
    if trouble := measure(parser.parse_args()):
        sys.exit("; ".join(trouble))


if __name__ == "__main__":
    main()
