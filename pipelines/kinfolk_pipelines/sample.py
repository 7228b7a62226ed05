"""Draw samples of a registered model to a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinfolk import sampling
from kinfolk.config import override
from kinfolk.contract import SampleRequest
from kinfolk.errors import ConfigError, nearest, no_effect
from kinfolk.pictures import draw
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.models import Loaded, load_model
from kinfolk_pipelines.output import check_out
from kinfolk_pipelines.settings import Settings

_PIXELS = 640  # least height of a picture for a person


def picture_scale(height: int, rows: int) -> int:
    """How often a pixel is repeated so that ``rows`` rows of pictures fill a screen."""
    return max(_PIXELS // max(height * rows, 1), 1)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What ``kinfolk sample`` was asked for."""

    n: int
    seed: int = 0
    label: int | None = None
    task: str = "sample"
    seed_to: int | None = None  # the other end, for interpolation
    given: str | None = None  # the part of test pictures that is given, for inpainting


def given_part(name: str, shape: tuple[int, ...]) -> Tensor:
    """1 where a picture is given: its ``upper``, ``lower``, ``left`` or ``right`` half, or its ``border``. -> (C, H, W)

    Raises:
        ConfigError: there is no such part.
    """
    C, H, W = shape
    mask = torch.zeros(C, H, W)
    parts = {
        "upper": (slice(0, H // 2), slice(0, W)),
        "lower": (slice(H // 2, H), slice(0, W)),
        "left": (slice(0, H), slice(0, W // 2)),
        "right": (slice(0, H), slice(W // 2, W)),
        "border": (slice(H // 4, H - H // 4), slice(W // 4, W - W // 4)),
    }
    if name not in parts:
        raise ConfigError(f"There is no part {name!r} of a picture.{nearest(name, parts)} Use {', '.join(parts)}.")
    mask[:, parts[name][0], parts[name][1]] = 1
    return 1 - mask if name == "border" else mask


def _request(settings: Settings, loaded: Loaded, wanted: Wanted, options: Mapping[str, Any]) -> SampleRequest:
    """The request with what its task needs: the other end of the way, or test pictures of the model's data."""
    model = loaded.model
    if wanted.task == "inpaint":
        return _completing(settings, loaded, wanted, options)
    request = sampling.make_request(model, wanted.n, wanted.seed, wanted.label, options, wanted.task)
    if wanted.task != "interpolate":
        return request
    if wanted.seed_to is None:
        raise ConfigError("--task interpolate needs --seed-to, the seed at the other end.")
    return sampling.interpolating(request, wanted.seed_to)


def _completing(settings: Settings, loaded: Loaded, wanted: Wanted, options: Mapping[str, Any]) -> SampleRequest:
    """Completing test pictures, as the class asked for or else as their own."""
    model = loaded.model
    if wanted.given is None or model.spec.kind != "image":
        raise ConfigError("--task inpaint needs pictures and --given, the part of them that is given, e.g. upper.")
    pictures = open_dataset(settings, loaded.version.lineage.data).prepared.source("test").take(0, wanted.n)
    label: int | list[int] | None = wanted.label
    if label is None and pictures.label is not None and "label" in model.tasks.conditions:
        label = pictures.label.tolist()
    request = sampling.make_request(model, wanted.n, wanted.seed, label, options, wanted.task)
    return sampling.completing(request, model.spec, pictures.x, given_part(wanted.given, model.spec.shape))


def check_samples_out(out: Path) -> None:
    """Refuse a file for samples that could not be written in the end. Raises ConfigError."""
    if out.suffix not in (".png", ".npy"):
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'!r}: use .png for a picture or .npy for numbers.")
    check_out(out)


def check_in_vain(task: str, **given: tuple[str, object]) -> None:
    """Refuse settings that another task is for: each with that task and its value, None where it was left out.

    Raises:
        ConfigError: with the setting and its task.
    """
    for name, (purpose, value) in given.items():
        if value is not None and task != purpose:
            option = f"--{name.replace('_', '-')} {value}"
            raise ConfigError(f"{no_effect(option, f'--task {purpose}')}.")


def write_samples(settings: Settings, reference: str, out: Path, wanted: Wanted, sets: Sequence[str]) -> str:
    """Write samples as PNG, or as a NumPy array for a name that ends in ``.npy``; returns the model's reference.

    Raises:
        ConfigError: the ending is another one, or such samples cannot be drawn.
        RequestError: the model cannot do what was asked.
    """
    check_samples_out(out)
    if wanted.task == "denoise":
        raise ConfigError(f"Denoising starts from test pictures: use `kinfolk transform {reference} --task denoise`.")
    loaded = load_model(settings, reference)
    sampling.check_task(loaded.model.tasks, wanted.task)
    check_in_vain(wanted.task, seed_to=("interpolate", wanted.seed_to), given=("inpaint", wanted.given))
    request = _request(settings, loaded, wanted, override({}, sets))
    samples = sampling.draw(loaded.model.tasks, request, wanted.task)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, samples.numpy(), allow_pickle=False)
    else:
        spec = loaded.model.spec
        scale = picture_scale(spec.shape[-2], round(wanted.n**0.5)) if spec.kind == "image" else 1
        out.write_bytes(draw(samples, spec, scale))
    return loaded.version.reference
