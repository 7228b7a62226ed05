"""What a registered model makes of test pictures: the same again, what noise hid, what lies between two of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kinfolk import latents, sampling
from kinfolk.contract import Model
from kinfolk.data.source import Source
from kinfolk.errors import ConfigError, nearest
from kinfolk.pictures import draw
from kinfolk.rng import row_normal
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.sample import check_in_vain, check_samples_out, picture_scale
from kinfolk_pipelines.settings import Settings

_STEPS = 8  # of a way
_NOISE = 0.5  # where none is given


@dataclass(frozen=True, slots=True)
class Asked:
    """What ``kinfolk transform`` was asked for."""

    task: str = "reconstruct"
    n: int = 8
    seed: int = 0
    noise: float | None = None  # denoise: standard deviation, of data in [-1, 1]
    path: str | None = None  # interpolate

    @property
    def seeds(self) -> Tensor:
        """(n,) int64, one for each row."""
        return sampling.row_seeds(self.seed, self.n)


def _again(model: Model, source: Source, asked: Asked) -> list[Tensor]:
    """Each picture and what the task of that name gives."""
    task = getattr(model.tasks, asked.task, None)
    if task is None:
        raise ConfigError(f"This {model.family.name} model cannot {asked.task}.")
    given = source.take(0, asked.n)
    return [given.x, task(given, asked.seeds)]


def _denoised(model: Model, source: Source, asked: Asked) -> list[Tensor]:
    """Each picture, the same with noise, and what the model takes it for; then a draw of what it may have been."""
    tasks, given = model.tasks, source.take(0, asked.n)
    if tasks.denoise is None:
        raise ConfigError(f"This {model.family.name} model cannot denoise.")
    noise = _NOISE if asked.noise is None else asked.noise
    if not 0 < noise < math.inf:
        raise ConfigError(f"--noise {noise:g}: use a finite standard deviation above 0, of data in [-1, 1].")
    noisy = given.x + noise * row_normal(asked.seeds, torch.zeros_like(asked.seeds), given.x.shape[1:])
    label = given.label if "label" in tasks.conditions else None
    shown = [given.x, noisy, tasks.denoise(noisy, torch.full((asked.n,), noise), label)]
    if "denoise" not in tasks.starts:
        return shown
    labels = None if label is None else label.tolist()
    request = sampling.make_request(model, asked.n, asked.seed, labels, {"noise_level": noise}, "denoise")
    return [*shown, sampling.draw(tasks, sampling.given(request, model.spec, noisy), "denoise")]


def _between(model: Model, source: Source, asked: Asked) -> list[Tensor]:
    """The way from each of the first pictures to one of the next."""
    a, b = source.take(0, asked.n), source.take(asked.n, 2 * asked.n)
    weights = torch.linspace(0, 1, _STEPS, dtype=torch.float64)
    path = "spherical" if asked.path is None else asked.path
    return list(latents.interpolate(model, a, b, asked.seeds, weights, cast(latents.Path, path)))


def _sum(model: Model, source: Source, asked: Asked) -> list[Tensor]:
    """Pictures a, b and c, and a - b + c."""
    a, b, c = (source.take(part * asked.n, (part + 1) * asked.n) for part in range(3))
    return [a.x, b.x, c.x, latents.arithmetic(model, a, b, c, asked.seeds)]


TASKS: dict[str, tuple[Callable[[Model, Source, Asked], list[Tensor]], int]] = {  # and test pictures for each row
    "reconstruct": (_again, 1),
    "complete": (_again, 1),
    "denoise": (_denoised, 1),
    "interpolate": (_between, 2),
    "arithmetic": (_sum, 3),
}


def made(model: Model, source: Source, asked: Asked) -> Tensor:
    """Rows of pictures: what was given, then what became of it. -> (n, columns, *shape)

    Raises:
        ConfigError: there is no such task, the model cannot do it, a setting is for another, or samples are too few.
        RequestError: the path or the noise is not one that the model takes.
    """
    if asked.task not in TASKS:
        raise ConfigError(f"There is no task {asked.task!r}.{nearest(asked.task, TASKS)} Use {', '.join(TASKS)}.")
    check_in_vain(asked.task, noise=("denoise", asked.noise), path=("interpolate", asked.path))
    make, each = TASKS[asked.task]
    if each * asked.n > len(source):
        raise ConfigError(f"-n {asked.n} needs {each * asked.n} test samples, the data has {len(source)}.")
    with torch.no_grad():
        return torch.stack([column.cpu() for column in make(model, source, asked)], dim=1)


def write_transformed(settings: Settings, reference: str, out: Path, asked: Asked) -> str:
    """Write what the model makes of its data's test split, a row of a PNG for each, or ``.npy``; returns its reference.

    Raises:
        ConfigError: the ending is another one, or the model cannot do what was asked.
        RequestError: an option is beyond the model's limits.
    """
    check_samples_out(out)
    loaded = load_model(settings, reference)
    spec = loaded.model.spec
    if spec.kind != "image" and out.suffix == ".png":
        raise ConfigError(f"The model learned data of kind {spec.kind}, which is shown as numbers: use .npy.")
    rows = made(loaded.model, open_dataset(settings, loaded.version.lineage.data).prepared.source("test"), asked)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, rows.numpy(), allow_pickle=False)
    else:
        out.write_bytes(draw(rows.flatten(0, 1), spec, picture_scale(spec.shape[-2], asked.n), rows.shape[1]))
    return loaded.version.reference
