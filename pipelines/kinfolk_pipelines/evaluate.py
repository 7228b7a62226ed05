"""Measure a registered model and write its figures to the version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.config import Evaluation, parse
from kinfolk.contract import Model
from kinfolk.errors import ConfigError, DataError, RegistryError
from kinfolk.tracking import registry
from kinfolk.tracking.lineage import Version
from kinfolk_pipelines.datasets import Dataset, open_dataset
from kinfolk_pipelines.figures import Figures, learned_classes, measure
from kinfolk_pipelines.figures_on_modes import rule
from kinfolk_pipelines.models import Loaded, feature_name, judge_of, load_model
from kinfolk_pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A version with what was measured of it."""

    version: Version
    model: Model
    figures: Figures


def _features(settings: Settings, model: Model, data: Dataset) -> tuple[Model | None, str]:
    """The data set's classifier if the model draws samples of classes and it is registered; and what to say of it."""
    if "sample" not in model.tasks.starts or model.spec.classes is None:
        return None, "not needed"
    try:
        return judge_of(settings, data)
    except RegistryError:
        judge = feature_name(data.judge)
        return None, f"none: train {judge} for figures on features (`kinfolk compare` does it by itself)"


def _check_data(version: Version, data: Dataset) -> None:
    """Refuse data that changed since the model learned it: its test split may hold what was trained on."""
    if data.digest != version.lineage.data_digest:
        raise DataError(
            f"{version.reference} learned {data.name} {version.lineage.data_digest}; what is prepared now is "
            f"{data.digest}. Prepare the earlier data again, or train on the new."
        )


def _basis(
    loaded: Loaded, data: Dataset, evaluation: Evaluation, metrics: Mapping[str, float], learned: Sequence[int]
) -> dict[str, str]:
    """What the figures rest on, in words: only of those that were measured, for others keep theirs."""
    basis = {"data": f"{data.name} {data.digest}", "classes": learned_classes(learned, loaded.model.spec.classes)}
    if "nfe" in metrics:
        basis["samples"] = str(evaluation.samples)
        basis["options"] = ", ".join(f"{key}={value}" for key, value in evaluation.options.items()) or "the model's own"
    if "likelihood_rows" in metrics:
        rows = f"the first {metrics['likelihood_rows']:.0f} test samples"
        basis["likelihood"] = f"{rows}, given their classes" if "label" in loaded.model.tasks.conditions else rows
    if "importance_draws" in metrics:
        basis["importance_bound"] = f"{evaluation.importance_draws} draws a sample, {basis['likelihood']}"
    return basis


def evaluate(settings: Settings, reference: str, **given: Any) -> Evaluated:
    """Every figure the model can have; logged to its version and run.

    ``given`` are entries of ``Evaluation`` that take the place of the recipe's, options one by one; None leaves the
    recipe's.

    Raises:
        ConfigError, RequestError: something is asked that the model cannot do.
        RegistryError: there is no such model.
        DataError: its data changed, or ``against`` is not prepared or of another shape.
    """
    loaded = load_model(settings, reference)
    own = loaded.recipe["evaluation"]
    wanted = {key: value for key, value in given.items() if value is not None}
    wanted["options"] = {**own.get("options", {}), **wanted.get("options", {})}
    evaluation = parse(Evaluation, {**own, **wanted}, "evaluation")
    if "samples" in wanted and "sample" not in loaded.model.tasks.starts:
        raise ConfigError(f"{loaded.version.reference} draws no samples: leave --samples out.")
    data = open_dataset(settings, loaded.version.lineage.data)
    _check_data(loaded.version, data)
    against = open_dataset(settings, evaluation.against) if evaluation.against else None
    features, about = _features(settings, loaded.model, data)
    modes, learned = data.prepared.record.modes, loaded.recipe.get("keep_labels", ())
    measured = measure(
        loaded.model,
        data.prepared,
        evaluation,
        features,
        learned=learned,
        against=against.prepared.source("test") if against else None,
        modes=modes,
    )
    basis = _basis(loaded, data, evaluation, measured.metrics, learned)
    if against is not None:
        basis["against"] = f"{against.name} {against.digest}"
    if features is not None:
        basis["features"] = about
    if modes is not None and "modes" in measured.metrics:
        basis["mode_rule"] = rule(modes, about)
    registry.log_model_metrics(settings.tracking, loaded.version, measured.metrics, basis=basis)
    return Evaluated(
        loaded.version, loaded.model, Figures(measured.metrics, measured.samples, {**basis, "features": about})
    )
