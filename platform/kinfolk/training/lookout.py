"""The monitor of a run on its workers: worker 0 looks and tells the driver, all of them hear what came of it."""

import base64
import copy
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from kinfolk import sampling
from kinfolk.config import Recipe
from kinfolk.contract import Model
from kinfolk.data.prepared import Prepared
from kinfolk.pictures import draw, picturable
from kinfolk.training.state import TrainState
from kinfolk.training.watch import SEED, Watch, alarms, unjudged

_SHOWN = 64  # samples in the snapshot of an alarm


def watch_of(recipe: Recipe, data: Prepared, features: Model | None) -> Watch | None:
    """The watch of a recipe that has a monitor."""
    if recipe.monitor is None:
        return None
    return Watch.over(recipe.monitor, data, recipe.training.samples, features, recipe.keep_labels)


def look_every(recipe: Recipe) -> int | None:
    """Training samples between two looks of a recipe that has a monitor."""
    training = recipe.training
    return None if recipe.monitor is None else recipe.monitor.every(training.samples, training.batch_size)


def acts(recipe: Recipe) -> bool:
    """Whether an alarm ends an attempt."""
    return recipe.monitor is not None and recipe.monitor.act != "warn"


def kept_checkpoints(recipe: Recipe) -> int:
    """How many checkpoints a run keeps: enough to go back to before an alarm's cause began, if that was sudden."""
    training, every = recipe.training, look_every(recipe)
    if every is None or recipe.monitor is None or recipe.monitor.act != "change":
        return training.keep_checkpoints
    back = recipe.monitor.alarm.looks * every
    lasting = -(-back // training.checkpoint_interval)  # of the checkpoints while it lasts
    return max(training.keep_checkpoints, lasting + 2)  # and the one of the alarm itself


def figures(state: TrainState) -> dict[str, float]:
    """What the newest look measured, named ``monitor/what``."""
    measures = state.looks[-1]["measures"] or {}
    return {f"monitor/{name}": value for name, value in measures.items() if value is not None}


def snapshot_of(state: TrainState, recipe: Recipe) -> dict[str, Any]:
    """What is written down of the newest alarm: why, every look with its losses, the settings, and samples."""
    alarm = alarms(state.looks)[-1]
    noted = {"alarm": asdict(alarm), "looks": copy.deepcopy(state.looks), "recipe": recipe.model_dump(mode="json")}
    return {"reason": alarm.reason, "noted": noted, **_samples(state.served())}


def _samples(model: Model) -> dict[str, str]:
    if "sample" not in model.tasks.starts:
        return {}
    x = sampling.sample(model, _SHOWN, SEED)
    stored = {"samples": _text(_npy(x))}
    return {**stored, "picture": _text(draw(x, model.spec, scale=4))} if picturable(model.spec) else stored


def _npy(x: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x.numpy(), allow_pickle=False)
    return buffer.getvalue()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ended_by_alarm(state: TrainState, recipe: Recipe) -> Mapping[str, Any] | None:
    """What an attempt that an alarm has ended leaves to its driver; None while it goes on."""
    monitor = recipe.monitor
    if monitor is None or not acts(recipe) or not state.looks or not state.looks[-1]["alarm"]:
        return None
    alarm = alarms(state.looks)[-1]
    return {"reason": alarm.reason, "began": alarm.began}


def warnings(state: TrainState, recipe: Recipe) -> list[str]:
    """What is to be said of a model at the end of its training: its alarms, and a change that nobody could judge."""
    monitor = recipe.monitor
    late = None if monitor is None else unjudged(state, monitor, recipe.training.samples)
    return [*(alarm.reason for alarm in alarms(state.looks)), *([] if late is None else [late])]
