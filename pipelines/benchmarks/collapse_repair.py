"""Ten GANs with settings that collapse, under a monitor that may act: does `kinfolk train` end with healthy ones?

Each recipe plays the minimax game with nothing against collapse. Its monitor goes back to before an alarm began, and on
with the recipe's one change: another game with penalties, at other rates. A run is healthy that no alarm is left of at
its end and that, by figures that the monitor does not use, has every mode, evenly; or, of data without known modes,
covers nearly as much of it as the same network does that has played the other game from the start.
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
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings
from kinfolk_pipelines.train import train

FIRST_SEED = 400  # none that limits or recipes were set on
REVERSE_KL = 0.05  # most of a healthy run
COVERAGE = 0.8  # least of a healthy run, in shares of that of the game it was changed to, played from the start


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe that collapses, and the one whose game it is changed to."""

    recipe: str
    changed_to: str
    seeds: int
    sets: tuple[str, ...] = ()

    def game(self, settings: Settings) -> dict[str, Any]:
        """Loss, penalties and optimisers of the other recipe, by dotted path; networks stay."""
        model = load_recipe(find_recipe(self.changed_to, settings.recipe_folder)).model
        taken = ("loss", "penalties", "generator_optimizer", "critic_optimizer")
        return {f"model.{key}": model[key] for key in taken}

    def monitor(self, settings: Settings) -> dict[str, Any]:
        """Acts once, by taking over the other game."""
        return {"act": "change", "changes": [{"put": self.game(settings)}]}


CASES = (
    Case("ring/minimax-gan", "ring/r3gan", 4),
    Case("grid/minimax-gan", "grid/r3gan", 3),
    Case("digits/minimax-gan", "digits/dcgan", 3, ("model.generator_optimizer.lr=0.002",)),
)


def sound_coverage(settings: Settings, case: Case, console: Console) -> float:
    """Coverage of the data by the case's network, had it played the other game from the start."""
    sets = [f"{path}={json.dumps(value)}" for path, value in case.game(settings).items()]
    planned = plan(settings, case.recipe, [*sets, f"seed={FIRST_SEED - 1}"], f"{model_name(case)}-sound")
    return evaluate(settings, train(settings, planned, console).version.reference).figures.metrics["coverage"]


def model_name(case: Case) -> str:
    """What the case's models are registered as, less its end."""
    return case.recipe.replace("/", "-")


def healthy(metrics: Mapping[str, float], modes: int, coverage: float) -> bool:
    """Every one of the ``modes``, evenly; of data whose modes are not known, 0, nearly the ``coverage``."""
    if not modes:
        return metrics["coverage"] >= COVERAGE * coverage
    return metrics["modes"] == modes and metrics.get("kl_to_uniform", REVERSE_KL + 1) <= REVERSE_KL


def alarms(settings: Settings, run_id: str) -> int:
    """How many were raised in a run, repaired or not."""
    files = MlflowClient(settings.tracking).list_artifacts(run_id, "alarms")
    return sum(file.path.endswith(".json") for file in files)


def run(settings: Settings, case: Case, seed: int, coverage: float, console: Console) -> bool:
    """Train, evaluate, print a line; whether the run ended healthy."""
    sets = [*case.sets, f"monitor={json.dumps(case.monitor(settings))}", f"seed={seed}"]
    planned = plan(settings, case.recipe, sets, f"{model_name(case)}-repaired-{seed}")
    try:
        trained = train(settings, planned, console)
    except CollapseError as error:
        print(f"| {case.recipe} | {seed} | - | - | {error} | no |", flush=True)
        return False
    metrics = evaluate(settings, trained.version.reference).figures.metrics
    shown = ("coverage", "fd_local") if coverage else ("modes", "high_quality", "kl_to_uniform")
    figures = ", ".join(f"{name} {metrics[name]:.3g}" for name in shown if name in metrics)
    modes = 0 if coverage else planned.data.prepared.spec.classes or 0
    well = not trained.version.alarms and healthy(metrics, modes, coverage)
    raised, seconds = alarms(settings, trained.version.run_id), trained.version.metrics["train_seconds"]
    told = f"{raised} | {seconds:.0f} | {figures} | {'yes' if well else 'no'}"
    print(f"| {case.recipe} | {seed} | {told} |", flush=True)
    return well


def of_case(settings: Settings, case: Case, console: Console) -> list[bool]:
    """Whether each seed ended healthy."""
    known = open_dataset(settings, case.recipe.partition("/")[0]).prepared.record.modes is not None
    coverage = 0.0 if known else sound_coverage(settings, case, console)
    if coverage:
        print(f"| {case.recipe}, as {case.changed_to} from the start | | | | coverage {coverage:.3g} | |", flush=True)
    return [run(settings, case, FIRST_SEED + seed, coverage, console) for seed in range(case.seeds)]


@plain_mistakes
def main() -> None:
    """Train every run and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="those alone whose recipe holds this")
    given = parser.parse_args()
    apply_environment(mlflow_environment())
    settings, console = load_settings(), Console(stderr=True)
    print("| recipe | seed | alarms | training, s | at its end | healthy |\n|---|---|---|---|---|---|", flush=True)
    chosen = [case for case in CASES if given.cases in case.recipe]
    well = [each for case in chosen for each in of_case(settings, case, console)]
    print(f"\n{sum(well)} of {len(well)} ended healthy")


if __name__ == "__main__":
    main()
