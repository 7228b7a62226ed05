"""A line for every system of a data set: what it can do, what it costs, and what it reached.

Each recipe is trained whole, parents before what is built on them, unless it has been; then it is measured as
`kinfolk evaluate` does, with the recipe's own evaluation. Figures are named as that command explains them.

Run: python pipelines/benchmarks/zoo.py [data] [recipe ...]
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from kinfolk.config import find_recipe, load_recipe
from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.evaluate import Evaluated, evaluate
from kinfolk_pipelines.families import capabilities, parent_recipes
from kinfolk_pipelines.meaning import MEANING
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings
from kinfolk_pipelines.train import InterruptedTrainingError, train

TITLE = ("recipe", "can", "parameters", "training samples", "training, s", "samples/s", "calls", "measured", "basis")
OWN_COLUMN = ("parameters", "samples_per_second", "nfe")
SHOWN = [
    name for name, is_ in MEANING.items() if name not in OWN_COLUMN and (is_.better or name.endswith("_nats"))
]  # densities, and what compares some models only, beside what has a better and a worse


def chosen(folder: Path, names: Sequence[str]) -> list[str]:
    """The recipes asked for, or all but those that are for a GPU.

    Raises:
        ConfigError: there is no such recipe, or none at all.
    """
    found = list(names) or sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.endswith("-gpu"))
    for name in found or ["features"]:
        find_recipe(f"{folder.name}/{name}", folder.parent)
    return found


def parents(path: Path) -> list[str]:
    """Names of the recipes that a recipe is built on; of one that cannot be read, none."""
    try:
        return list(parent_recipes(load_recipe(path)).values())
    except ConfigError:  # its own row will say so
        return []


def ordered(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Recipes of a data set, each after those it is built on and after the features that figures rest on."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        if name not in done and (folder / f"{name}.yaml").is_file():
            done.add(name)
            for parent in parents(folder / f"{name}.yaml"):
                yield from visit(parent)
            yield name

    for name in ("features", *names):
        yield from visit(name)


def ability(evaluated: Evaluated) -> str:
    """What the system can do, read off its tasks."""
    able = capabilities(evaluated.model)
    words = list(dict.fromkeys([*able["starts"], *able["tasks"]]))  # denoise is both: of rows, and of a level
    if able["log_prob"]:
        words.append(f"log_prob ({able['log_prob']})")
    return ", ".join(words) + "".join(f"; told its {condition}" for condition in able["conditions"])


def line(recipe: str, samples: int, evaluated: Evaluated) -> str:
    """A system's row, in the order of ``TITLE``."""
    metrics: Mapping[str, float] = evaluated.figures.metrics
    speed, calls = (f"{metrics[name]:,.3g}" if name in metrics else "" for name in ("samples_per_second", "nfe"))
    seconds = evaluated.version.metrics.get("train_seconds", 0.0)
    reached = ", ".join(f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
    basis = "; ".join(f"{key}: {said}" for key, said in evaluated.figures.basis.items())
    cells = (recipe, ability(evaluated), f"{metrics['parameters']:,.0f}", f"{samples:,}", f"{seconds:,.0f}")
    return f"| {' | '.join((*cells, speed, calls, reached, basis))} |"


def system(settings: Settings, recipe: str, console: Console) -> str:
    """The row of a recipe, trained if it has to be; or what keeps it from having one.

    Raises:
        InterruptedTrainingError: the user stopped it, and with it the table.
    """
    try:
        planned = plan(settings, recipe)
        trained = train(settings, planned, console)
        evaluated = evaluate(settings, trained.version.reference)
    except InterruptedTrainingError:
        raise
    except KinfolkError as error:
        return f"| {recipe} | {error} |"
    return line(recipe, planned.recipe.training.samples, evaluated)


@plain_mistakes
def main(data: str = "digits", *recipes: str) -> None:
    """Print the table, a row as each system is measured."""
    apply_environment(mlflow_environment())
    settings, console = load_settings(), Console(stderr=True)
    folder = settings.recipe_folder / data
    names = chosen(folder, recipes)
    print(f"| {' | '.join(TITLE)} |\n|{'---|' * len(TITLE)}", flush=True)
    for name in ordered(folder, names):
        print(system(settings, f"{data}/{name}", console), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
