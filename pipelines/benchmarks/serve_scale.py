"""Replicas of a served model that come and go with the load: 1, 2, 1, none, and 1 again when it is asked.

    python pipelines/benchmarks/serve_scale.py BUNDLE

Requests of one sample fall due at random: more than one replica can answer, then a trickle, then none, then one
request. Prints a table in Markdown of what happened when, and ends with 1 if a request was lost, a second replica was
decided on later than five seconds after the load, or the replicas did not come and go as they should.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kinfolk.serving.config import Autoscaling, ServedModel
from kinfolk_pipelines.load import Exchange, Load, drive
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import Server, answering, serving, wait_until
from kinfolk_pipelines.wire import Wire

LOAD_S, TRICKLE_S = 30.0, 40.0
MUCH, LITTLE = 1.5, 0.1  # of what one replica can answer
DECISION_S = 5.0
SCALING = Autoscaling(min_replicas=0, max_replicas=2, downscale_delay_s=5, sleep_delay_s=10)


@dataclass
class Requests:
    """Loads that go on in threads of their own, and what became of each request."""

    url: str
    done: list[Exchange] = field(default_factory=list)

    @contextmanager
    def due(self, rate: float, seconds: float) -> Iterator[None]:
        """As long as the block lasts, and until all are answered."""
        load = Load(connections=256, seconds=seconds, warm_up_s=0, rate=rate, timeout_s=120)
        bodies = (json.dumps({"seed": number}).encode() for number in range(10**9))

        def run() -> None:
            self.done += asyncio.run(drive(load, bodies, lambda: Wire(urlsplit(self.url))))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    @property
    def lost(self) -> list[str]:
        """What came in place of an answer."""
        return [
            each.trouble if each.reply is None else str(each.reply.status)
            for each in self.done
            if each.reply is None or each.reply.status != 200
        ]


def capacity(url: str) -> float:
    """Requests a second that one replica answers."""
    load = Load(connections=16, seconds=8, warm_up_s=2)
    bodies = (json.dumps({"seed": number}).encode() for number in range(10**9))
    done = asyncio.run(drive(load, bodies, lambda: Wire(urlsplit(url))))
    return sum(load.warm_up_s <= each.ended_s < load.until_s for each in done) / load.seconds


def measure(server: Server) -> list[str]:
    """What did not hold."""
    url, trouble = server.url("model"), []
    requests = Requests(url)

    def replicas() -> int:
        return len(server.replicas("model"))

    def seconds_to(count: int, within_s: float) -> float:
        return wait_until(f"replicas are {count}", lambda: replicas() == count, within_s)

    could = capacity(url)
    print(f"One replica answers {could:.1f} requests/s.\n\n| what | seconds |\n|---|---|")
    seconds_to(1, 60)
    with requests.due(MUCH * could, LOAD_S):
        decided = seconds_to(2, LOAD_S)
        print(f"| {MUCH:g} x what one can: a second replica is started | {decided:.1f} |", flush=True)
    if decided > DECISION_S:
        trouble.append("the second replica came late")
    with requests.due(LITTLE * could, TRICKLE_S):
        print(f"| {LITTLE:g} x: one replica goes | {seconds_to(1, TRICKLE_S):.1f} |", flush=True)
    print(f"| nothing: the last one goes | {seconds_to(0, 60):.1f} |", flush=True)
    time.sleep(2)
    began = time.monotonic()
    asyncio.run(answering(url))
    print(f"| one request: answered by a replica that was started for it | {time.monotonic() - began:.1f} |")
    if replicas() != 1:
        trouble.append(f"{replicas()} replicas in the end")
    print(f"\nOf {len(requests.done)} requests, {len(requests.lost)} were lost.")
    if requests.lost:
        trouble.append(f"lost: {requests.lost[:5]}")
    return trouble


@plain_mistakes
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    with serving([ServedModel(name="model", bundle=bundle, max_rows=8, autoscaling=SCALING)], cpus=2) as server:
        if trouble := measure(server):
            sys.exit("; ".join(trouble))


if __name__ == "__main__":
    main()
