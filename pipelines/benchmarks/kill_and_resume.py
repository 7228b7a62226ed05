"""SIGKILL of a train worker at random moments: is the end the same bits as without?

For each recipe one undisturbed run and five in which a random worker is killed at a random step. All tensors of the
last checkpoint (weights, buffers, average, optimiser) and its counters are compared. Parents are untrained.
Run: python pipelines/benchmarks/kill_and_resume.py [kills] [recipe ...]
"""

import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from kinfolk.checkpoint import Snapshot, load_checkpoint
from kinfolk.cluster import connect
from kinfolk.config import Recipe, load_recipe
from kinfolk.contract import FIRST_STAGE
from kinfolk.data.catalogue import prepare, silent
from kinfolk.data.latents import write_latents
from kinfolk.data.prepared import Prepared
from kinfolk_pipelines.families import untrained

if TYPE_CHECKING:
    from kinfolk.training.worker import Job  # loads Ray

RECIPES = Path(__file__).parents[1] / "recipes" / "digits"
STEPS, WORKERS = 60, 2
CHECKPOINT = 10  # steps between two; from the second on, one to go on from has been noted


def short(name: str) -> Recipe:
    """The recipe for a few steps, with a report after each and a checkpoint after every tenth."""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    batch = recipe.training.batch_size
    changes = {"samples": STEPS * batch, "log_every_samples": batch, "checkpoint_every_samples": CHECKPOINT * batch}
    plan = recipe.training.model_copy(update={**changes, "preview_every_samples": STEPS * batch})
    return recipe.model_copy(update={"training": plan})


def workers() -> list[psutil.Process]:
    """The train workers that run now."""
    return [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in command(child)]


def command(process: psutil.Process) -> str:
    """Its command line, or nothing where it has ended."""
    try:
        return "".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended since, or not yet waited for
        return ""


class Killer:
    """Kills one worker once, at ``moment`` samples or the next report with a worker alive, and sees what comes next."""

    def __init__(self, moment: int) -> None:
        self.moment, self.killed_at, self.resumed_at = moment, -1, -1

    def __call__(self, report: Mapping[str, Any]) -> None:
        if report["kind"] == "start" and self.killed_at >= 0:
            self.resumed_at = report["samples_seen"]
        if self.killed_at < 0 and report["samples_seen"] >= self.moment and (alive := workers()):
            self.killed_at = report["samples_seen"]
            random.choice(alive).kill()


def job_of(name: str, data: Prepared) -> "Job":
    """The recipe for a few steps, on untrained parents and, with a first stage, on its latents."""
    from kinfolk.training.worker import Job

    parents = untrained(RECIPES / f"{name}.yaml", data.spec).parents
    stage, latents = parents.get(FIRST_STAGE), None
    if stage is not None:
        latents = write_latents(data.path.with_name(f"latents-{name}"), data, stage, f"latents-{name}", silent).path
    return Job(short(name), data.path, parents=parents, latents=latents)


def run(
    job: "Job", storage: str, name: str, listener: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> Snapshot:
    """Train to the end and read the last checkpoint."""
    from kinfolk.training.launch import launch

    outcome = launch(job, name=name, storage=storage, workers=WORKERS, listener=listener)
    return load_checkpoint(Path(outcome.checkpoint))


def differing(a: Snapshot, b: Snapshot) -> list[str]:
    """Names of what only one of them holds, or what is not equal to the last bit."""
    common = a.tensors.keys() & b.tensors.keys()
    names = sorted(a.tensors.keys() ^ b.tensors.keys())
    names += [name for name in sorted(common) if not torch.equal(a.tensors[name], b.tensors[name])]
    return names + (["counters"] if a.values != b.values else [])


def main(kills: int, names: list[str]) -> None:
    """Print a row for each kill."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare("digits", Path(folder) / "digits")
        connect(None, Path(folder) / "state", cpus=2)
        print("| recipe | kill | killed at step | went on from step | differing tensors |\n|---|---|---|---|---|")
        for name in names:
            job, storage = job_of(name, data), f"{folder}/{name}"
            batch = job.recipe.training.batch_size
            undisturbed = run(job, storage, "undisturbed")
            for kill in range(kills):
                killer = Killer(random.randrange(2 * CHECKPOINT, STEPS - 3) * batch)
                found = differing(run(job, storage, f"kill{kill}", killer), undisturbed)
                if killer.resumed_at < 0:
                    sys.exit(f"{name}, kill {kill + 1}: no worker was seen to kill, or none started again.")
                steps = f"{killer.killed_at // batch} | {killer.resumed_at // batch}"
                print(f"| {name} | {kill + 1} | {steps} | {len(found)} of {len(undisturbed.tensors)} |", flush=True)


if __name__ == "__main__":
    chosen = sys.argv[2:] or ["conditional-vae", "dcgan", "edm", "features"]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, chosen)
