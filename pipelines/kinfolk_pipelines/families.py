"""What ``kinfolk families`` shows."""

import importlib
import inspect
from typing import Any

from kinfolk.config import load_recipe
from kinfolk.contract import Family
from kinfolk.families import family_names, find_family
from kinfolk_pipelines.settings import Settings


def _summary(family: Family) -> str:
    """The first sentence of the package that offers the family."""
    package = importlib.import_module(family.config.__module__.rpartition(".")[0] or family.config.__module__)
    return (inspect.getdoc(package) or "").split("\n\n")[0].replace("\n", " ").partition(". ")[0]


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Each installed family with what it learns and the recipes that use it."""
    recipes: dict[str, list[str]] = {}
    for path in sorted(settings.recipe_folder.glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        recipes.setdefault(load_recipe(path).family, []).append(name)
    return [
        {
            "name": name,
            "kinds": sorted(find_family(name).kinds),
            "recipes": recipes.get(name, []),
            "summary": _summary(find_family(name)),
        }
        for name in family_names()
    ]
