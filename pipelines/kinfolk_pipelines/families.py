"""What ``kinfolk families`` shows: the families, and what each system on the embedded data can do."""

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinfolk import sampling
from kinfolk.abilities import row_task_names
from kinfolk.config import Recipe, load_recipe, parse
from kinfolk.contract import DataSpec, Family, Model
from kinfolk.data import catalogue
from kinfolk.errors import ConfigError
from kinfolk.families import family_names, find_family
from kinfolk.metrics.speed import parameter_count
from kinfolk.tracking.reference import parse_reference
from kinfolk.training.state import build
from kinfolk_pipelines.settings import Settings

Row = dict[str, Any]
_DATA = "digits"  # the embedded data set, on which every system has a recipe


def _shown_tasks() -> list[str]:
    """Tasks on what is given, but for the log-probability, which has a column of its own."""
    return [*(name for name in row_task_names() if name != "log_prob"), "denoise", "importance_bound"]


def _summary(family: Family) -> str:
    """The first sentence of the package that offers the family."""
    package = importlib.import_module(family.config.__module__.rpartition(".")[0] or family.config.__module__)
    return (inspect.getdoc(package) or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0]


def _family_of(path: Path) -> str:
    """The family a recipe is of, or nothing where it cannot be read."""
    try:
        return load_recipe(path).family
    except ConfigError:
        return ""


def rows(settings: Settings) -> list[Row]:
    """Each installed family with what it learns and the recipes that use it."""
    recipes: dict[str, list[str]] = {}
    for path in sorted(settings.recipe_folder.glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        recipes.setdefault(_family_of(path), []).append(name)
    return [
        {
            "name": name,
            "kinds": sorted(find_family(name).kinds),
            "recipes": recipes.get(name, []),
            "summary": _summary(find_family(name)),
        }
        for name in family_names()
    ]


def parent_recipes(recipe: Recipe) -> dict[str, str]:
    """The recipe of each parent, by role: a model of ``kinfolk train`` is called ``DATA-RECIPE``."""
    names = {role: parse_reference(reference).name for role, reference in recipe.parents.items()}
    return {role: name.removeprefix(f"{recipe.data}-") for role, name in names.items()}


def untrained(path: Path, spec: DataSpec, children: tuple[Path, ...] = ()) -> Model:
    """The model of a recipe before training, on parents that are untrained too; ``children`` are what it is built for.

    A parent is taken for what the recipe of its name makes.

    Raises:
        ConfigError: a parent has another name or is its own ancestor, or the recipe is wrong.
    """
    line = (*children, path)
    if path in children:
        circle = " on ".join(each.stem for each in line)
        raise ConfigError(f"Recipes are built on each other in a circle: {circle}. Name another parent.")
    recipe = load_recipe(path)
    family = find_family(recipe.family)
    parents = {role: untrained(path.with_name(f"{n}.yaml"), spec, line) for role, n in parent_recipes(recipe).items()}
    return build(family, parse(family.config, recipe.model, "model"), spec, recipe.seed, parents=parents)


def capabilities(model: Model) -> dict[str, Any]:
    """What a built model can do, read off its tasks."""
    tasks = model.tasks
    calls = 0
    if "sample" in tasks.starts:
        calls = sampling.evaluations(tasks, sampling.make_request(model, 1))
    likelihood = f"{tasks.log_prob.kind} of {tasks.log_prob.of}" if tasks.log_prob else ""
    return {
        "network_calls": calls,
        "conditions": sorted(tasks.conditions),
        "log_prob": likelihood.replace("_", " "),
        "starts": sorted(tasks.starts),
        "tasks": [name for name in _shown_tasks() if getattr(tasks, name) is not None],
        "parents": sorted(model.parents),
        "parameters": parameter_count(model.module).total,
    }


def systems(settings: Settings) -> list[Row]:
    """Every system that has a recipe for the embedded data, with what it can do, by family."""
    spec = catalogue.entry(_DATA).spec
    found = [_system(path, spec) for path in sorted((settings.recipe_folder / _DATA).glob("*.yaml"))]
    return sorted(found, key=lambda row: (row["family"], row["recipe"]))


def _system(path: Path, spec: DataSpec) -> Row:
    """What the recipe's system can do, or why that cannot be told."""
    named = {"recipe": f"{_DATA}/{path.stem}", "family": _family_of(path)}
    try:
        return {**named, **capabilities(untrained(path, spec))}
    except ConfigError as error:
        return {**named, "unknown": str(error)}


def nested(families: Sequence[Row], systems: Sequence[Row]) -> list[Row]:
    """Each family with its systems; at the end those of families that are not installed, or that cannot be told."""
    found = [{**row, "systems": [each for each in systems if each["family"] == row["name"]]} for row in families]
    if others := [each for each in systems if each["family"] not in {row["name"] for row in families}]:
        found.append({"name": "", "kinds": [], "recipes": [], "summary": "No installed family.", "systems": others})
    return found


TITLE = ["system", "family", "network calls", "told", "log-probability", "draws", "tasks", "parameters"]


def line(system: Row) -> list[str]:
    """A system's row of the table, in the order of ``TITLE``."""
    if "unknown" in system:
        return [system["recipe"], system["family"], *[""] * (len(TITLE) - 3), system["unknown"]]
    lists = (", ".join(system[key]) for key in ("starts", "tasks"))
    told, calls = ", ".join(system["conditions"]), str(system["network_calls"] or "")
    return [system["recipe"], system["family"], calls, told, system["log_prob"], *lists, f"{system['parameters']:,}"]
