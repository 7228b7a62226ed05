"""What a recipe's monitor leads to, checked before anything is trained."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kinfolk.config import Recipe, parse
from kinfolk.contract import Model
from kinfolk.data.modes import Mixture
from kinfolk.errors import ConfigError
from kinfolk.families import find_family
from kinfolk.metrics.alarm import OF_MODES
from kinfolk.training.loop import check_batch, judged_together
from kinfolk.training.state import buffers, build, carried_over
from kinfolk_pipelines.datasets import Dataset

_KEPT = ("data", "family", "init_from", "keep_labels", "monitor", "name", "parents")  # the same in every attempt


def groups_of(recipe: Recipe, data: Dataset, untrained: Model) -> list[int]:
    """Samples that a microbatch is a multiple of, in each attempt; those after ``untrained`` are built to find out.

    Raises:
        ConfigError: a change of the monitor does not fit, or changes what a training cannot.
    """
    models = [untrained]
    for alarms, (before, changed) in enumerate(pairwise(recipe.attempts()), start=1):
        if other := [key for key in _KEPT if getattr(changed, key) != getattr(recipe, key)]:
            raise ConfigError(
                f"{recipe.name}, monitor.changes: {other[0]} cannot change during a training. Leave it out."
            )
        if changed.training.samples < before.training.samples:
            raise ConfigError(
                f"{recipe.name}, monitor.changes: training.samples={changed.training.samples} may have been seen when "
                f"it changes. Give at least the {before.training.samples} of before, or leave it out."
            )
        family = find_family(changed.family)
        config = parse(family.config, changed.model, f"{recipe.name} after {alarms} alarms, model")
        models.append(build(family, config, data.prepared.spec, changed.seed, parents=untrained.parents))
    _check_carried_over(recipe, models)
    return [judged_together(model.family.phases(model.module)) for model in models]


def _check_carried_over(recipe: Recipe, models: Sequence[Model]) -> None:
    """Refuse changes of what training has in its state; ``models`` are those before each alarm and after the last."""
    settled = [_settled(model) for model in models] if len(models) > 1 else []
    for alarms, (before, after) in enumerate(pairwise(settled), start=1):
        if reason := carried_over(before, after):
            raise ConfigError(f"{recipe.name} after {alarms} alarms: {reason}. Leave it out of monitor.changes.")


def _settled(model: Model) -> dict[str, Tensor]:
    """Buffers of an untrained model that are its settings' alone, the same from every seed."""
    one, other = (
        buffers(build(model.family, model.config, model.spec, seed, parents=model.parents)) for seed in (0, 1)
    )
    return {name: value for name, value in one.items() if torch.equal(value, other[name])}


def check_batches(recipe: Recipe, workers: int, groups: Sequence[int]) -> None:
    """Refuse a batch, of any attempt, that the workers and microbatches cannot share equally in whole groups.

    Raises:
        ConfigError: with the nearest batch sizes that can be.
    """
    for attempt, group in zip(recipe.attempts(), groups, strict=True):
        check_batch(attempt.training, workers, group)


def check_limits(recipe: Recipe, data: Dataset) -> None:
    """Refuse limits on what no look at this data measures.

    Raises:
        ConfigError: with the limit, and those that any data has.
    """
    limits = recipe.monitor.alarm.limits if recipe.monitor else {}
    of_modes = sorted(name for name, limit in limits.items() if limit is not None and name in OF_MODES)
    if of_modes and not isinstance(data.prepared.record.modes, Mixture):
        raise ConfigError(
            f"{recipe.name}, monitor.alarm.limits.{of_modes[0]}: nothing is known of the modes of {data.name}. "
            "Leave it out, or give limits.missing or limits.bins_different, which go by regions of any data."
        )
