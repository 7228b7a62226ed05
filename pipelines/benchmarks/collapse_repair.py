"""Ten GANs with settings that collapse, under a monitor that may act: does `kinfolk train` end with healthy ones?

Each recipe plays the minimax game with nothing against collapse. Its monitor goes back to before an alarm began, and on
with the recipe's one change: another game with penalties, and the optimisers of that game's recipe. A run is healthy
that no alarm is left of at its end, and that has every mode, evenly, or covers the data, by figures that the monitor
does not use.
Run after `kinfolk data prepare ring grid digits` and `kinfolk train digits/features`:
python pipelines/benchmarks/collapse_repair.py [--cases ring]
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from rich.console import Console

from kinfolk.config import find_recipe, load_recipe
from kinfolk.errors import CollapseError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings
from kinfolk_pipelines.train import train

FIRST_SEED = 200
REVERSE_KL, COVERAGE = 0.05, 0.6  # most, and least, of a healthy run


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe that collapses, and the one whose game it is changed to."""

    recipe: str
    changed_to: str
    seeds: int
    sets: tuple[str, ...] = ()

    def monitor(self, settings: Settings) -> dict[str, Any]:
        """Acts once, by taking over the other recipe's loss, penalties and optimisers; networks stay."""
        model = load_recipe(find_recipe(self.changed_to, settings.recipe_folder)).model
        taken = ("loss", "penalties", "generator_optimizer", "critic_optimizer")
        return {"act": "change", "changes": [{"put": {f"model.{key}": model[key] for key in taken}}]}


CASES = (
    Case("ring/minimax-gan", "ring/r3gan", 4),
    Case("grid/minimax-gan", "grid/r3gan", 3),
    Case("digits/minimax-gan", "digits/dcgan", 3, ("model.generator_optimizer.lr=0.002",)),
)


def healthy(metrics: Mapping[str, float], modes: int | None) -> bool:
    """Every one of ``modes``, evenly; of data without known modes, most of it."""
    if modes is None:
        return metrics["coverage"] >= COVERAGE
    return metrics["modes"] == modes and metrics["kl_to_uniform"] <= REVERSE_KL


def alarms(settings: Settings, run_id: str) -> int:
    """How many were raised in a run, repaired or not."""
    files = MlflowClient(settings.tracking).list_artifacts(run_id, "alarms")
    return sum(file.path.endswith(".json") for file in files)


def run(settings: Settings, case: Case, seed: int, console: Console) -> bool:
    """Train, evaluate, print a line; whether the run ended healthy."""
    sets = [*case.sets, f"monitor={json.dumps(case.monitor(settings))}", f"seed={seed}"]
    planned = plan(settings, case.recipe, sets, f"{case.recipe.replace('/', '-')}-repaired-{seed}")
    try:
        trained = train(settings, planned, console)
    except CollapseError as error:
        print(f"| {case.recipe} | {seed} | - | - | {error} | no |", flush=True)
        return False
    metrics = evaluate(settings, trained.version.reference).figures.metrics
    known = planned.data.prepared.record.modes is not None
    shown = ("modes", "high_quality", "kl_to_uniform") if known else ("coverage", "fd_local")
    figures = ", ".join(f"{name} {metrics[name]:.3g}" for name in shown)
    well = not trained.version.alarms and healthy(metrics, planned.data.prepared.spec.classes if known else None)
    raised, seconds = alarms(settings, trained.version.run_id), trained.version.metrics["train_seconds"]
    told = f"{raised} | {seconds:.0f} | {figures} | {'yes' if well else 'no'}"
    print(f"| {case.recipe} | {seed} | {told} |", flush=True)
    return well


@plain_mistakes
def main() -> None:
    """Train every run and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="those alone whose recipe holds this")
    given = parser.parse_args()
    apply_environment(mlflow_environment())
    settings, console = load_settings(), Console(stderr=True)
    print("| recipe | seed | alarms | training, s | at its end | healthy |\n|---|---|---|---|---|---|", flush=True)
    runs = [(case, FIRST_SEED + seed) for case in CASES if given.cases in case.recipe for seed in range(case.seeds)]
    well = sum(run(settings, case, seed, console) for case, seed in runs)
    print(f"\n{well} of {len(runs)} ended healthy")


if __name__ == "__main__":
    main()
