"""Registered models: load, list, promote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinfolk.bundle import CARD, load_bundle
from kinfolk.channels import on_each_channel
from kinfolk.contract import Model
from kinfolk.errors import ConfigError
from kinfolk.tracking import registry
from kinfolk.tracking.fetch import fetch
from kinfolk.tracking.lineage import Version
from kinfolk_pipelines.datasets import Dataset
from kinfolk_pipelines.settings import Settings

LATEST = "latest"  # in place of a version: the newest


@dataclass(frozen=True, slots=True)
class Loaded:
    """A registered model in memory, with where it comes from."""

    model: Model
    version: Version
    recipe: Mapping[str, Any]  # that it was trained by


def load_model(settings: Settings, reference: str) -> Loaded:
    """The model behind ``NAME``, ``NAME@alias``, ``NAME/version`` or ``NAME/latest``, every byte checked.

    Raises:
        RegistryError: there is no such model, version or alias.
        IntegrityError: the stored bytes are not the registered ones.
    """
    name, slash, version = reference.partition("/")
    if slash and version == LATEST:
        reference = f"{name}/{version_number(settings, name, version)}"
    fetched = fetch(settings.tracking, reference, settings.cache)
    model = load_bundle(fetched.folder)
    card = json.loads((fetched.folder / CARD).read_bytes())
    return Loaded(model, fetched.version, card["recipe"])


def feature_model(settings: Settings, data: str) -> Loaded:
    """The registered classifier whose features figures on ``data`` rest on.

    Raises:
        RegistryError: it is not trained yet.
    """
    return load_model(settings, feature_name(data))


def judge_of(settings: Settings, data: Dataset) -> tuple[Model, str]:
    """The classifier that samples of ``data`` are judged by, and what to say of it.

    Raises:
        RegistryError: it is not trained yet.
    """
    loaded = feature_model(settings, data.judge)
    if data.judge == data.name:
        return loaded.model, loaded.version.reference
    return on_each_channel(loaded.model, data.prepared.spec), f"{loaded.version.reference} on each channel"


def feature_name(data: str) -> str:
    """The name the feature classifier of a data set is registered under."""
    return f"{data}-features"


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every registered version, newest first within a name."""
    return [
        {
            "model": version.reference,
            "aliases": list(version.aliases),
            "family": version.lineage.family,
            "recipe": version.lineage.recipe,
            "data": version.lineage.data,
            "metrics": dict(version.metrics),
        }
        for version in registry.models(settings.tracking)
    ]


def version_number(settings: Settings, name: str, version: str) -> int:
    """The number meant by ``7`` or ``latest``.

    Raises:
        ConfigError: it is neither.
    """
    if version == LATEST:
        numbers = [each.number for each in registry.models(settings.tracking) if each.name == name]
        if numbers:
            return max(numbers)
        return registry.find(settings.tracking, name).number  # raises with the names there are
    if not version.isdecimal():
        raise ConfigError(f"VERSION is a number or 'latest', got {version!r}.")
    return int(version)


def shown_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics a one-line listing has room for."""
    wanted = ("fd_local", "modes", "class_accuracy", "test_accuracy", "samples_per_second")
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in wanted if name in metrics)
