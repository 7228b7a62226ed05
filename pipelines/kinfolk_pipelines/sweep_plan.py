"""What a sweep will be, checked as a whole before anything is touched: its file, its space, its figures."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kinfolk.config import Recipe, find_recipe, lay, override, parse, read_mapping
from kinfolk.contract import Config, Model
from kinfolk.errors import ConfigError, nearest
from kinfolk.families import find_family
from kinfolk.rng import generator
from kinfolk.training.loop import check_batch
from kinfolk.training.state import TrainState, build, prepare
from kinfolk.tuning.population import check_perturbed
from kinfolk.tuning.recipes import recipe_of
from kinfolk.tuning.space import drawn, ends
from kinfolk.tuning.sweep import ALARM, Pace, Pbt, Sweep, pace
from kinfolk_pipelines.figures import check
from kinfolk_pipelines.meaning import MEANING
from kinfolk_pipelines.monitor_plan import check_batches, groups_of
from kinfolk_pipelines.plan import Plan, plan
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.sweep_figures import ON_MODES

_DRAWS = 100  # of the space, whose settings are checked before any is trained
_SEARCHED = ("model.", "training.")  # keys of a recipe that may differ between trials; the rest is what they are for


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep that was checked as a whole."""

    sweep: Sweep
    base: Plan  # of the recipe with what is fixed
    values: Mapping[str, Any]  # the same, as a recipe file would have them
    pace: Pace
    name: str  # DATA-NAME

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the sweep, its recipe, its parents or its data."""
        text = json.dumps([self.sweep.model_dump(mode="json"), self.base.run_name], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_sweep(settings: Settings, name: str, sets: Sequence[str] = (), model_name: str | None = None) -> SweepPlan:
    """Check everything that can be wrong with a sweep; ``sets`` are keys of its file.

    Raises:
        ConfigError: the file, its recipe or its space is not allowed, or the budget is too small for one report.
        DataError: the data set is not there.
    """
    path = find_recipe(name, settings.sweep_folder, "sweep")
    sweep = parse(Sweep, {"name": path.stem.lower(), **override(read_mapping(path), sets)}, str(path))
    _check_figures(sweep)
    _check_fixed(sweep)
    base = plan(settings, sweep.recipe, as_sets(sweep.fixed), model_name, watched=False)
    recipe_path = find_recipe(sweep.recipe, settings.recipe_folder)
    values = {"name": base.recipe.name, **lay(read_mapping(recipe_path), sweep.fixed, "fixed")}
    planned = SweepPlan(sweep, base, values, pace(sweep, base.recipe), f"{base.recipe.data}-{sweep.name}")
    check_modes(planned)
    _check_alarm(planned)
    _check_space(planned)
    return planned


def as_sets(settings: Mapping[str, Any]) -> list[str]:
    """Settings as ``--set`` takes them."""
    return [f"{key}={_as_yaml(value)}" for key, value in settings.items()]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()


def _check_fixed(sweep: Sweep) -> None:
    """Refuse what would take the place of a whole section of the recipe, where single keys are meant."""
    for section in ("model", "training", "evaluation"):
        if section in sweep.fixed:
            raise ConfigError(
                f"fixed.{section} would take the place of all the recipe has there. Give single keys with their dots, "
                f"such as fixed: {{{_dotted(section, sweep.fixed[section])}: ...}}."
            )


def _dotted(path: str, value: Any) -> str:
    """The path to the first plain value below ``path``."""
    if not isinstance(value, Mapping) or not value:
        return path
    key, below = next(iter(value.items()))
    return _dotted(f"{path}.{key}", below)


def _check_figures(sweep: Sweep) -> None:
    """Refuse an objective or a constraint on what is no figure; means of training's logs are named ``phase/what``."""
    for metric in sweep.judged:
        if metric not in MEANING and metric != ALARM and "/" not in metric:
            raise ConfigError(
                f"{sweep.name}: {metric} is no figure.{nearest(metric, [*MEANING, ALARM])} Give one of `kinfolk "
                "evaluate`, alarm, or a log of training such as critic/loss."
            )


def check_modes(planned: SweepPlan) -> None:
    """Refuse figures that count modes on data of which no modes are known.

    Raises:
        ConfigError: with the figure and the data set.
    """
    data, counted = planned.base.data, [metric for metric in planned.sweep.judged if metric in ON_MODES]
    if counted and data.prepared.record.modes is None:
        raise ConfigError(
            f"{planned.name} is judged by {counted[0]}, and nothing is known of the modes of {data.name}. Give another "
            "objective or constraint."
        )


def _check_alarm(planned: SweepPlan) -> None:
    """Refuse to judge by alarms that nobody gives."""
    if ALARM in planned.sweep.judged and planned.base.recipe.monitor is None:
        raise ConfigError(
            f"{planned.name} is judged by {ALARM}, and {planned.sweep.recipe} has no monitor that could give one. Add "
            "fixed: {monitor: {}} for the default one, or leave it out."
        )


def _check_monitor(planned: SweepPlan, recipe: Recipe) -> None:
    """Refuse a monitor that could not alarm in the training to be registered, or in trials that are judged by it."""
    if recipe.monitor is None:
        return
    whole = planned.sweep.finish == "retrain"
    lengths = {planned.pace.samples} if not whole or ALARM in planned.sweep.judged else set()
    for samples in lengths | ({planned.base.recipe.training.samples} if whole else set()):
        recipe.monitor.check(samples, recipe.training.batch_size)


def _check_logs(sweep: Sweep, phases: Sequence[str]) -> None:
    for metric in sweep.judged:
        phase = metric.partition("/")[0]
        if "/" in metric and phase not in phases:
            raise ConfigError(
                f"{sweep.name}: {metric} is no figure, as training has no phase {phase}.{nearest(phase, phases)} "
                f"Its phases: {', '.join(phases)}."
            )


def _check_space(planned: SweepPlan) -> None:
    phases: dict[str, None] = {}
    for settings in ends(planned.sweep.space):
        _, model = _untrained(planned, settings)
        phases |= {phase.name: None for phase in model.family.phases(model.module)}
    _check_logs(planned.sweep, list(phases))
    _check_keys(planned)
    draws = generator("space")
    for _ in range(_DRAWS):
        _trial(planned, drawn(planned.sweep.space, draws))
    if isinstance(planned.sweep.scheduler, Pbt):
        check_perturbed(planned.sweep.scheduler, planned.sweep.space, lambda given: _state(planned, given))


def _check_keys(planned: SweepPlan) -> None:
    for key in planned.sweep.space:
        if not key.startswith(_SEARCHED):
            raise ConfigError(
                f"space.{key}: a sweep searches keys of {' and '.join(each + '*' for each in _SEARCHED)}. Put others "
                "under fixed; for the spread over seeds there is `seeds`."
            )
    if "training.samples" in planned.sweep.space:
        raise ConfigError("space.training.samples: how long trials train is budget.samples, equal for all.")
    if "training.checkpoint_every_samples" in planned.sweep.space:
        raise ConfigError("space.training.checkpoint_every_samples: a sweep has report_every_samples, equal for all.")


@contextmanager
def _named(planned: SweepPlan, settings: Mapping[str, Any]) -> Iterator[None]:
    """Say of what does not fit at which settings that is."""
    try:
        yield
    except ConfigError as error:
        shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        raise ConfigError(f"The space of {planned.sweep.name}: {error} (at {shown})") from None


def _trial(planned: SweepPlan, settings: Mapping[str, Any]) -> tuple[Recipe, Config]:
    """A trial's recipe and its model's settings, from which no network was built.

    Raises:
        ConfigError: with the settings that do not fit.
    """
    with _named(planned, settings):
        recipe = recipe_of(planned.values, settings, planned.pace)
        config = parse(find_family(recipe.family).config, recipe.model, "model")
        check_batch(recipe.training, planned.sweep.workers)
    return recipe, config


def _untrained(planned: SweepPlan, settings: Mapping[str, Any]) -> tuple[Recipe, Model]:
    """A trial's recipe and model before training; what does not fit fails here.

    Raises:
        ConfigError: with the settings that do not fit.
    """
    base = planned.base
    recipe, config = _trial(planned, settings)
    with _named(planned, settings):
        family = find_family(recipe.family)
        filled = recipe.model_copy(update={"model": config.model_dump(mode="json")})  # changes may be of defaults
        parents = {role: loaded.model for role, loaded in base.parents.items()}
        model = build(family, config, base.data.prepared.spec, recipe.seed, parents=parents)
        check(model, recipe.evaluation)
        check_batches(filled, planned.sweep.workers, groups_of(filled, base.data, model))
        _check_monitor(planned, recipe)
    return recipe, model


def _state(planned: SweepPlan, settings: Mapping[str, Any]) -> TrainState:
    recipe, model = _untrained(planned, settings)
    return prepare(model, recipe.training)


def trial_plan(
    settings: Settings, planned: SweepPlan, chosen_settings: Mapping[str, Any], seed: int | None, *, whole: bool
) -> Plan:
    """The training that a trial was, or with ``whole`` the same settings for as long as the recipe says."""
    given = {**planned.sweep.fixed, **chosen_settings}
    given |= {} if seed is None else {"seed": seed}
    given |= {} if whole else {"training.samples": planned.pace.samples}
    made = plan(settings, planned.sweep.recipe, as_sets(given), planned.base.model_name)
    return replace(made, sweep=planned.name)


def folder_of(settings: Settings, planned: SweepPlan) -> Path:
    """Where the sweep is remembered."""
    return settings.state.absolute() / "sweeps" / planned.name
