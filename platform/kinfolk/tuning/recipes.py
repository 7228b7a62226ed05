"""The recipe of one trial: the base recipe with the trial's settings laid over it, at the sweep's pace."""

from collections.abc import Mapping
from typing import Any

from kinfolk.config import Recipe, lay, parse
from kinfolk.tuning.sweep import Pace


def recipe_of(base: Mapping[str, Any], settings: Mapping[str, Any], pace: Pace, seed: int | None = None) -> Recipe:
    """The recipe of one trial.

    Raises:
        ConfigError: a key is none of a recipe, or a value is not allowed.
    """
    values = lay(base, settings, "space")
    recipe = parse(Recipe, values if seed is None else {**values, "seed": seed}, "sweep")
    changes = {"samples": pace.samples, "checkpoint_every_samples": pace.report_every}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
