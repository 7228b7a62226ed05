"""What a training will be, checked as a whole before anything is touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from kinfolk.config import Recipe, find_recipe, load_recipe, parse
from kinfolk.contract import FIRST_STAGE, Family, Model
from kinfolk.data.latents import latent_spec
from kinfolk.data.modes import Mixture
from kinfolk.data.source import keep
from kinfolk.errors import ConfigError, RegistryError
from kinfolk.families import find_family
from kinfolk.tracking.reference import parse_name
from kinfolk.training.state import build
from kinfolk_pipelines.datasets import Dataset, open_dataset
from kinfolk_pipelines.figures import check
from kinfolk_pipelines.models import Loaded, judge_of, load_model
from kinfolk_pipelines.monitor_plan import check_limits, groups_of
from kinfolk_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that was checked as a whole, before anything is touched."""

    recipe: Recipe
    family: Family
    data: Dataset
    model_name: str
    run_name: str
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    parents: Mapping[str, Loaded] = field(default_factory=dict)  # by role
    ancestry: Mapping[str, str] = field(default_factory=dict)  # versions it rests on, by role or ``init_from``
    draws: bool = True  # whether there will be samples
    groups: Sequence[int] = (1,)  # samples that a microbatch is a multiple of, in each attempt
    latents: Path | None = None  # where training finds the data as the first stage encodes it, or puts it
    features: Model | None = None  # by which the recipe's monitor tells samples apart; None: their elements
    sweep: str | None = None  # that found its settings


def plan(
    settings: Settings, recipe_name: str, sets: Sequence[str] = (), name: str | None = None, *, watched: bool = True
) -> Plan:
    """Check everything that can be wrong with a training; the features its monitor looks at are there if ``watched``.

    Raises:
        ConfigError: the recipe, a setting or the name is not allowed, or the recipe is for another kind of data.
        DataError: the data set is not there.
    """
    recipe = load_recipe(find_recipe(recipe_name, settings.recipe_folder), sets)
    family = find_family(recipe.family)
    config = parse(family.config, recipe.model, f"recipe {recipe.name}, model")
    recipe = recipe.model_copy(update={"model": config.model_dump(mode="json")})
    data = open_dataset(settings, recipe.data)
    model_name = parse_name(name or f"{recipe.data}-{recipe.name}")
    if recipe.keep_labels:
        keep(data.prepared.source("train"), recipe.keep_labels)
    parents = {role: _parent(settings, recipe, role) for role in recipe.parents}
    models = {role: loaded.model for role, loaded in parents.items()}
    untrained = build(family, config, data.prepared.spec, recipe.seed, parents=models)  # what does not fit fails here
    check(untrained, recipe.evaluation)
    groups = groups_of(recipe, data, untrained)
    if recipe.monitor is not None:
        recipe.monitor.check(recipe.training.samples, recipe.training.batch_size)
        check_limits(recipe, data)
    initial, ancestry = _initial(settings, recipe, untrained)
    ancestry |= {role: loaded.version.reference for role, loaded in parents.items()}
    latents = _latents(settings, data, parents.get(FIRST_STAGE))
    digest = recipe.digest(data.digest, *ancestry.values())
    run, draws = f"{model_name}-{digest}", "sample" in untrained.tasks.starts
    features = _features(settings, recipe, data) if watched else None
    return Plan(recipe, family, data, model_name, run, initial, parents, ancestry, draws, groups, latents, features)


def looks_at_features(recipe: Recipe, data: Dataset) -> bool:
    """Whether a monitor tells samples apart by a classifier's features: of classes that are no modes in the plane."""
    prepared = data.prepared
    return recipe.monitor is not None and bool(prepared.spec.classes) and not isinstance(prepared.record.modes, Mixture)


def _features(settings: Settings, recipe: Recipe, data: Dataset) -> Model | None:
    if not looks_at_features(recipe, data):
        return None
    try:
        return judge_of(settings, data)[0]
    except RegistryError as error:
        raise RegistryError(f"Recipe {recipe.name} has a monitor, which looks at features: {error}") from None


def _latents(settings: Settings, data: Dataset, stage: Loaded | None) -> Path | None:
    """Where the data belongs as ``stage`` encodes it: a place of exactly these weights and this data."""
    if stage is None:
        return None
    latent_spec(stage.model, data.prepared.spec)  # what is no first stage for the data fails here
    version = stage.version
    weights, contents = version.manifest_sha256[:12], data.digest[:12]
    return settings.dataset(".latents") / f"{data.name}-{version.name}-{version.number}-{weights}-{contents}".lower()


def _parent(settings: Settings, recipe: Recipe, role: str) -> Loaded:
    reference = recipe.parents[role]
    try:
        return load_model(settings, reference)
    except RegistryError as error:
        raise RegistryError(
            f"Recipe {recipe.name} is built on the {role} {reference!r}: {error} Train that first, or name another "
            f"with --set parents.{role}=NAME."
        ) from None


def _initial(settings: Settings, recipe: Recipe, untrained: Model) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights to start from and where they come from, for a recipe with ``init_from``."""
    if recipe.init_from is None:
        return {}, {}
    loaded = load_model(settings, recipe.init_from)
    given, wanted = (shapes(model) for model in (loaded.model, untrained))
    if different := sorted(name for name in given | wanted if given.get(name) != wanted.get(name)):
        name = different[0]
        raise ConfigError(
            f"init_from={recipe.init_from} does not fit the recipe's network: {name} is {given.get(name, 'missing')} "
            f"there and {wanted.get(name, 'missing')} here. Fine-tuning needs the same network on samples of one shape."
        )
    return dict(loaded.model.module.state_dict()), {"init_from": loaded.version.reference}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything a model stores."""
    return {name: tuple(value.shape) for name, value in model.module.state_dict().items()}
