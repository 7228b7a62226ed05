"""Measure a registered model and write its figures to the version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinfolk.config import Evaluation, parse
from kinfolk.contract import Model
from kinfolk.errors import DataError, RegistryError
from kinfolk.tracking import registry
from kinfolk.tracking.lineage import Version
from kinfolk_pipelines.datasets import Dataset, open_dataset
from kinfolk_pipelines.figures import Figures, measure
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


def _check_data(version: Version, data: Dataset) -> None:
    """Refuse data that changed since the model learned it: its test split may hold what was trained on."""
    if data.digest != version.lineage.data_digest:
        raise DataError(
            f"{version.reference} learned {data.name} {version.lineage.data_digest}; what is prepared now is "
            f"{data.digest}. Prepare the earlier data again, or train on the new."
        )


def evaluate(
    settings: Settings,
    reference: str,
    samples: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Every figure the model can have; logged to its version and run."""
    loaded = load_model(settings, reference)
    given = {key: value for key, value in {"samples": samples, "options": options}.items() if value}
    evaluation = parse(Evaluation, {**loaded.evaluation, **given}, "evaluation")
    data = open_dataset(settings, loaded.version.lineage.data)
    _check_data(loaded.version, data)
    features, about = _features(settings, loaded)
    basis = {"data": f"{data.name} {data.digest}", "samples": str(evaluation.samples), "features": about}
    measured = measure(loaded.model, data.prepared, evaluation, features.model if features else None)
    registry.log_model_metrics(settings.tracking, loaded.version, measured.metrics)
    return Evaluated(loaded.version, loaded.model, Figures(measured.metrics, measured.samples, basis))
