"""Measure a registered model and write its figures to the version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinfolk.config import Evaluation, parse
from kinfolk.contract import Model
from kinfolk.errors import RegistryError
from kinfolk.tracking import registry
from kinfolk.tracking.lineage import Version
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.figures import Figures, Step, measure
from kinfolk_pipelines.models import Loaded, feature_model, feature_name, load_model
from kinfolk_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A version with what was measured of it."""

    version: Version
    model: Model
    figures: Figures


def _features(settings: Settings, loaded: Loaded) -> tuple[Loaded | None, str]:
    """The data set's classifier if the model draws samples of classes and it is registered; and what to say of it."""
    if "sample" not in loaded.model.tasks.starts or loaded.model.spec.classes is None:
        return None, "not needed"
    data = loaded.version.lineage.data
    try:
        features = feature_model(settings, data)
    except RegistryError:
        return None, f"none: train {feature_name(data)} for figures on features (`kinfolk compare` does it by itself)"
    return features, features.version.reference


def _silent(what: str, share: float) -> None:
    """Report nothing."""


def evaluate(
    settings: Settings,
    reference: str,
    samples: int | None = None,
    options: Mapping[str, Any] | None = None,
    step: Step = _silent,
) -> Evaluated:
    """Every figure the model can have; logged to its version and run."""
    loaded = load_model(settings, reference)
    given = {key: value for key, value in {"samples": samples, "options": options}.items() if value}
    evaluation = parse(Evaluation, given, "evaluation")
    data = open_dataset(settings, loaded.version.lineage.data)
    features, about = _features(settings, loaded)
    basis = {"data": f"{data.name} {data.digest}", "samples": str(evaluation.samples), "features": about}
    measured = measure(loaded.model, data.prepared, evaluation, features.model if features else None, step=step)
    registry.log_model_metrics(settings.tracking, loaded.version, measured.metrics)
    return Evaluated(loaded.version, loaded.model, Figures(measured.metrics, measured.samples, basis))
