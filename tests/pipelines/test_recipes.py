"""Every recipe that is offered builds on the data it is for, with the options it sets."""

from pathlib import Path

import pytest

from kinfolk import sampling
from kinfolk.config import load_recipe
from kinfolk.data import catalogue
from kinfolk_pipelines.families import untrained

RECIPES = sorted((Path(__file__).parents[2] / "pipelines" / "recipes").glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[f"{path.parent.name}-{path.stem}" for path in RECIPES])
def test_a_recipe_makes_a_model_that_can_be_measured_as_it_says(path):
    recipe = load_recipe(path)
    model = untrained(path, catalogue.entry(recipe.data).spec)
    assert recipe.data == path.parent.name
    sampling.resolve_options(model.family, model.tasks, recipe.evaluation.options)
    assert recipe.evaluation.importance_draws is None or model.tasks.importance_bound is not None
