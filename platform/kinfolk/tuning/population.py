"""What population based training may change: settings that a training in progress can take over."""

from collections.abc import Callable, Mapping
from typing import Any

from kinfolk.checkpoint import Snapshot
from kinfolk.errors import ConfigError
from kinfolk.rng import generator
from kinfolk.training.state import TrainState, buffers, carried_over
from kinfolk.tuning.space import Space, perturbed, shown
from kinfolk.tuning.sweep import Pbt

_MAY_CHANGE = ("model.", "training.ema_", "training.divergence_")  # the rest says what is learned, and in which order
Build = Callable[[Mapping[str, Any]], TrainState]  # the state of a trial with these settings, before its first step


def check_perturbed(pbt: Pbt, space: Space, build: Build) -> None:
    """Refuse keys that cannot change during training: what changes data, order or the state that is carried over.

    A key of the model may change if the states at all its values have tensors of the same names and shapes, in phases
    with the same kind of optimiser, and equal buffers, where the key exists.

    Raises:
        ConfigError: with the key and what stands against it.
    """
    for key in pbt.perturb:
        if reason := _against(key, space, build):
            may = [each for each in pbt.perturb if each != key and not _against(each, space, build)]
            allowed = f" Of scheduler.perturb, {', '.join(may)} may." if may else ""
            raise ConfigError(
                f"scheduler.perturb: {key} cannot change during training: {reason}. Learning rates, penalties and the "
                f"average of the weights can.{allowed} Take it off, or use another scheduler."
            )


def _against(key: str, space: Space, build: Build) -> str:
    if not key.startswith(_MAY_CHANGE):
        return "it says what is learned or in which order, which the copied state does not follow"
    first, *others = [build(settings) for settings in shown(space, key)]
    return next((found for other in others if (found := _difference(first, other))), "")


def _difference(one: TrainState, other: TrainState) -> str:
    """What keeps the second state from taking over the first's, or an empty string."""
    a, b = _shapes(one.snapshot()), _shapes(other.snapshot())
    if different := sorted(name for name in a | b if a.get(name) != b.get(name)):
        name = different[0].removeprefix("model.").removeprefix("ema.")
        return f"{name} is {a.get(different[0], 'missing')} at one end and {b.get(different[0], 'missing')} at another"
    if _optimizers(one) != _optimizers(other):
        return "it changes the optimiser, whose state would not fit"
    return carried_over(buffers(one.model), buffers(other.model))


def _shapes(snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in snapshot.tensors.items()}


def _optimizers(state: TrainState) -> list[tuple[str, str]]:
    return [(phase.name, phase.optimizer.kind) for phase in state.phases]


def explorer(pbt: Pbt, space: Space) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Tune's explore step: the donor's settings, changed. What else is in the donor's config stays the donor's."""
    draws = generator("population", pbt.seed)

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        order = config["trial"]
        settings = perturbed(space, pbt.perturb, order["settings"], draws, pbt.resample)
        return {"trial": {**order, "settings": settings}}

    return explore
