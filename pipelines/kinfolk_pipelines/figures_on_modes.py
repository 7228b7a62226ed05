"""Figures of mode collapse, on data whose modes are known: how many are kept, and how evenly."""

from collections.abc import Callable

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Model
from kinfolk.data.modes import KnownModes, Mixture, Stack
from kinfolk.judge import as_shown, judged
from kinfolk.metrics.accuracy import class_counts
from kinfolk.metrics.modes import HIGH_QUALITY_STD, class_modes, mode_scores


def on_modes(
    known: KnownModes, draw: Callable[[int], Tensor], spec: DataSpec, features: Model | None
) -> dict[str, float]:
    """Modes kept and their KL to uniform, with its floor, by the data set's own rule and number of samples to draw.

    Classes of stacks are read by ``features``; without it there are no such figures, and nothing is drawn.
    """
    if isinstance(known, Mixture):
        return _of_mixture(known, draw(known.samples))
    classify = None if features is None else features.tasks.classify
    if classify is None:
        return {}
    samples = draw(known.samples)
    found = class_modes(class_counts(judged(lambda batch, seeds: classify(_shown(batch, spec), seeds), samples)))
    return _named(found.captured, len(samples)) | {"kl_to_uniform": found.kl, "kl_floor": found.kl_floor}


def _shown(batch: Batch, spec: DataSpec) -> Batch:
    return Batch(as_shown(batch.x, spec))


def _of_mixture(known: Mixture, samples: Tensor) -> dict[str, float]:
    scores = mode_scores(samples, torch.tensor(known.centres, dtype=torch.float64), known.std)
    figures = _named(scores.captured, len(samples)) | {"high_quality": scores.high_quality}
    further = {
        "mode_spread": scores.spread,
        "kl_to_uniform": scores.reverse_kl,
        "kl_floor": scores.reverse_kl_floor,
    }
    return figures | {name: value for name, value in further.items() if value is not None}


def _named(captured: int, samples: int) -> dict[str, float]:
    return {"modes": float(captured), "mode_samples": float(samples)}


def rule(known: KnownModes, judge: str) -> str:
    """By what rule modes are counted, in words; ``judge`` is what read the classes of a stack."""
    match known:
        case Mixture(centres=centres, std=std, samples=samples):
            near = (
                f"within {HIGH_QUALITY_STD:g} standard deviations of {std:g} of the nearest of {len(centres)} centres"
            )
            return f"{samples:,} samples; of high quality, and of a mode, {near}"
        case Stack(samples=samples):
            return f"{samples:,} samples; the class of every channel by {judge}"
