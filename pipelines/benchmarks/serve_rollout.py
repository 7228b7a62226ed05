"""What clients see while the alias of a served model moves, to good versions and bad, and while its replica is killed.

    python pipelines/benchmarks/serve_rollout.py BUNDLE OTHER [--requests 5000] [--connections 16]

Both bundles become versions of one model in a registry of its own, with two bad ones: one that draws other samples of
the seeds kept with it than it did when it was made, and one whose file was altered in the store. All that time,
clients that do not try again ask for single samples. Prints a table in Markdown, and ends with 1 if a request failed
that must not, if a bad version was served, or if the reason does not stand on it.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import torch
from mlflow import MlflowClient

from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.client import Client
from kinfolk.reference import reference_file
from kinfolk.serving.config import Rollout, ServedModel
from kinfolk.serving.versions import Registry
from kinfolk.tracking.aliases import set_alias
from kinfolk.tracking.connection import connect
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.registry import register
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import Server, serving, wait_until
from kinfolk_pipelines.wire import Wire

NAME, ALIAS = "model", "champion"
POLL_S, TRIAL_S = 0.5, 2.0
BACK_S = 60.0  # for a version to be taken up, or a replica to come back


@dataclass
class Asking:
    """Clients that ask one after the other request, each on a connection of its own, from a thread of their own."""

    url: str
    connections: int
    statuses: Counter[str] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)  # when answers came, monotonic seconds
    stop: threading.Event = field(default_factory=threading.Event)

    async def _one(self) -> None:
        wire = Wire(urlsplit(self.url))
        while not self.stop.is_set():
            try:
                reply = await wire.ask(json.dumps({"seed": sum(self.statuses.values())}).encode())
                self.statuses[str(reply.status)] += 1
                if reply.status == 200:
                    self.good.append(time.monotonic())
                else:
                    await asyncio.sleep(0.1)
            except (OSError, EOFError, ValueError) as error:
                self.statuses[type(error).__name__] += 1
                wire.close()
                await asyncio.sleep(0.1)

    async def _all(self) -> None:
        await asyncio.gather(*(self._one() for _ in range(self.connections)))

    @property
    def asked(self) -> int:
        """Requests so far."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> dict[str, int]:
        """Requests that were not answered with 200, by what came."""
        return {status: count for status, count in self.statuses.items() if status != "200"}

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Ask as long as the block lasts."""
        thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()


@dataclass(frozen=True)
class Store:
    """A registry in a folder."""

    folder: Path

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        """MLflow's own."""
        return connect(self.uri)

    def add(self, bundle: Path) -> int:
        """The number of the version that a bundle becomes."""
        experiments = self.client.search_experiments(filter_string="name = 'rollout'")
        place = (self.folder / "artifacts").as_uri()
        experiment = experiments[0].experiment_id if experiments else self.client.create_experiment("rollout", place)
        run = self.client.create_run(experiment).info.run_id
        family = load_bundle(bundle).family.name
        lineage = Lineage(family=family, recipe="rollout", recipe_digest="0", data="none", data_digest="0")
        return int(register(self.uri, bundle, NAME, run, lineage).number)

    def refused(self, version: int) -> str:
        """Why a version is not served, as it is noted on it."""
        return str(self.client.get_model_version(NAME, str(version)).tags.get("serving.refused", ""))

    def alter_newest(self) -> None:
        """Change a byte of the weights of the version that was added last."""
        files = (self.folder / "artifacts").rglob("model.safetensors")
        newest = max(files, key=lambda file: file.stat().st_ctime_ns)
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(bytes(content))


def forged(bundle: Path, folder: Path) -> Path:
    """The bundle with weights that draw something else than is kept with it."""
    model = load_bundle(bundle)
    kept = reference_file(model)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(-1.5)
    save_bundle(model, folder, reference=kept)
    return folder


def version(server: Server) -> str:
    """The version in service."""
    return str(server.get(f"/v1/models/{NAME}/")["version"])


def serves(server: Server, number: int) -> bool:
    """Whether a version is in service."""
    return version(server) == str(number)


def row(what: str, asking: Asking, told: str) -> str:
    """A line of the table."""
    return f"| {what} | {asking.asked} | {asking.failed or 0} | {told} |"


def moves(server: Server, store: Store, numbers: tuple[int, int], arguments: argparse.Namespace) -> bool:
    """Move the alias to and fro while requests come in."""
    asking, took = Asking(server.url(NAME), arguments.connections), list[float]()
    with asking.going_on():
        number = 0
        while asking.asked < arguments.requests or len(took) < 2:
            number += 1
            wanted = numbers[number % 2]
            set_alias(store.uri, NAME, ALIAS, wanted)
            took.append(wait_until("the version is in service", partial(serves, server, wanted), BACK_S))
    print(row("alias moved under load", asking, f"{len(took)} moves, each in service after {max(took):.1f} s at most"))
    return not asking.failed


def bad(server: Server, store: Store, what: str, number: int, arguments: argparse.Namespace) -> bool:
    """Move the alias to a version that must not be served while requests come in, and back."""
    before = version(server)
    asking = Asking(server.url(NAME), arguments.connections)
    with asking.going_on():
        set_alias(store.uri, NAME, ALIAS, number)
        seconds = wait_until("the version is refused", lambda: store.refused(number) != "", BACK_S)
        time.sleep(2 * POLL_S)
        stays = version(server) == before
        set_alias(store.uri, NAME, ALIAS, int(before))
    told = f"refused after {seconds:.1f} s: {store.refused(number)}"
    print(row(what, asking, told if stays else f"SERVED: {told}"))
    return stays and not asking.failed


def killed(server: Server, connections: int, retries: bool) -> bool:
    """Kill the replica while requests come in."""
    asking = Asking(server.url(NAME), connections)
    if retries:
        asking = Retrying(server.url(NAME), connections)
    with asking.going_on():
        time.sleep(3.0)
        (replica,) = server.replicas(NAME)
        at = time.monotonic()
        replica.send_signal(signal.SIGKILL)
        wait_until("a request is answered again", lambda: bool(asking.good) and asking.good[-1] > at + 0.5, BACK_S)
        back_s = next(each for each in asking.good if each > at + 0.5) - at
        time.sleep(3.0)
    told = f"{connections} in flight; answers again after {back_s:.1f} s"
    print(row(f"replica killed, clients {'try again' if retries else 'do not try again'}", asking, told))
    lost = sum(asking.failed.values())
    return back_s <= 10 and lost <= (0 if retries else connections)


class Retrying(Asking):
    """Clients of ``kinfolk.client``, which try again."""

    async def _one(self) -> None:
        await asyncio.to_thread(self._ask)

    def _ask(self) -> None:
        place = urlsplit(self.url)
        with Client(f"{place.scheme}://{place.netloc}") as client:
            while not self.stop.is_set():
                try:
                    client.run(NAME, "sample", seed=self.asked)
                    self.statuses["200"] += 1
                    self.good.append(time.monotonic())
                except Exception as error:
                    self.statuses[repr(error)[:60]] += 1


def measure(arguments: argparse.Namespace, folder: Path) -> bool:
    """All of it; whether everything held."""
    store = Store(folder)
    numbers = store.add(arguments.bundle), store.add(arguments.other)
    foreign = store.add(forged(arguments.other, folder / "forged"))
    set_alias(store.uri, NAME, ALIAS, numbers[0])
    served = ServedModel(
        name=NAME, alias_poll_s=POLL_S, rollout=Rollout(trial_s=TRIAL_S), max_rows=32, drain_timeout_s=5
    )
    print("| what | requests | failed | seen |\n|---|---|---|---|")
    with serving([served], registry=Registry(store.uri, str(folder / "cache"))) as server:
        held = [
            moves(server, store, numbers, arguments),
            bad(server, store, "alias to a version that draws other samples", foreign, arguments),
        ]
        altered = store.add(arguments.other)
        store.alter_newest()
        held += [
            bad(server, store, "alias to a version with an altered file", altered, arguments),
            killed(server, arguments.connections, retries=False),
            killed(server, arguments.connections, retries=True),
        ]
    return all(held)


@plain_mistakes
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path, help="a bundle with samples of the same form")
    parser.add_argument("--requests", type=int, default=5000, help="while the alias moves")
    parser.add_argument("--connections", type=int, default=16)
    with tempfile.TemporaryDirectory() as folder:
        if not measure(parser.parse_args(), Path(folder)):
            sys.exit(1)


if __name__ == "__main__":
    main()
