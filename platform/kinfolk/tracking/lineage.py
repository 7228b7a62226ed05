"""Where a registered version comes from and what was measured of it, kept as tags of the version.

Tags are read with the version itself in one request, show in MLflow's own pages, and stay when the run is deleted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kinfolk.errors import RegistryError

_METRIC = "metric."  # tag prefixes
_BASIS = "basis."
_ALARMS = "alarms"
MANIFEST_TAG = "manifest_sha256"
MODEL_ID_TAG = "model_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What it takes to make a version again."""

    family: str
    recipe: str
    recipe_digest: str
    data: str
    data_digest: str  # of DVC
    git_commit: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)  # role to NAME/VERSION
    samples_per_second: float | None = None  # expected sampling speed
    sweep: str | None = None  # that found its settings

    def tags(self) -> dict[str, str]:
        """The same as tags; what is unknown has none."""
        known = {
            "family": self.family,
            "recipe": self.recipe,
            "recipe_digest": self.recipe_digest,
            "data": self.data,
            "data_digest": self.data_digest,
            "git_commit": self.git_commit,
            "sweep": self.sweep,
            "parents": json.dumps(dict(self.parents), sort_keys=True),
            "samples_per_second": None if self.samples_per_second is None else repr(float(self.samples_per_second)),
        }
        return {key: value for key, value in known.items() if value is not None}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Lineage":
        """Read back what ``tags`` wrote. Raises KeyError or ValueError on tags of another origin."""
        speed = tags.get("samples_per_second")
        return cls(
            family=tags["family"],
            recipe=tags["recipe"],
            recipe_digest=tags["recipe_digest"],
            data=tags["data"],
            data_digest=tags["data_digest"],
            git_commit=tags.get("git_commit"),
            parents=json.loads(tags.get("parents", "{}")),
            samples_per_second=None if speed is None else float(speed),
            sweep=tags.get("sweep"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One registered version of a model."""

    name: str
    number: int
    run_id: str
    model_id: str  # of MLflow's logged model
    manifest_sha256: str  # of the bundle's manifest, so the bundle cannot change behind the registry's back
    lineage: Lineage
    metrics: Mapping[str, float] = field(default_factory=dict)
    basis: Mapping[str, str] = field(default_factory=dict)  # what they rest on, in words
    alarms: tuple[str, ...] = ()  # names of what evaluation found wrong
    aliases: tuple[str, ...] = ()
    created_ms: int = 0  # Unix time

    @property
    def reference(self) -> str:
        """``NAME/VERSION``."""
        return f"{self.name}/{self.number}"


def metric_tags(metrics: Mapping[str, float], alarms: tuple[str, ...] | None = None) -> dict[str, str]:
    """Tags for figures, exact to the last bit, and for alarms; None leaves the alarms as they are."""
    tags = {f"{_METRIC}{name}": repr(float(value)) for name, value in metrics.items()}
    return tags if alarms is None else {**tags, _ALARMS: json.dumps(alarms)}


def basis_tags(basis: Mapping[str, str]) -> dict[str, str]:
    """Tags for what figures rest on."""
    return {f"{_BASIS}{name}": said for name, said in basis.items()}


def version_from(stored: Any, aliases: tuple[str, ...]) -> Version:
    """A Version from MLflow's ModelVersion.

    Raises:
        RegistryError: the version was not registered by Kinfolk.
    """
    tags: Mapping[str, str] = stored.tags
    try:
        return Version(
            name=stored.name,
            number=int(stored.version),
            run_id=stored.run_id or "",
            model_id=tags[MODEL_ID_TAG],
            manifest_sha256=tags[MANIFEST_TAG],
            lineage=Lineage.from_tags(tags),
            metrics={key.removeprefix(_METRIC): float(tags[key]) for key in sorted(tags) if key.startswith(_METRIC)},
            basis={key.removeprefix(_BASIS): tags[key] for key in sorted(tags) if key.startswith(_BASIS)},
            alarms=tuple(json.loads(tags.get(_ALARMS, "[]"))),
            aliases=tuple(sorted(aliases)),
            created_ms=stored.creation_timestamp,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise RegistryError(
            f"{stored.name}/{stored.version} was not registered by Kinfolk (tag {error} is missing or unreadable): "
            "train or register it with kinfolk."
        ) from error
