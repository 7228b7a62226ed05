"""Recipes: one YAML per named system, with ``--set key=value`` on top. The only way to configure training."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from kinfolk.contract import Config
from kinfolk.dotted import with_value
from kinfolk.errors import ConfigError, nearest
from kinfolk.monitor import Monitor

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Training(Config):
    """How long and how a recipe trains. Everything counts samples, so the worker count changes nothing."""

    samples: int = Field(gt=0)  # training samples to see, repeats counted
    batch_size: int = Field(128, gt=0)  # over all workers
    accumulate: int = Field(1, gt=0)  # microbatches a worker splits its share of the batch into
    ema_halflife_samples: int = Field(0, ge=0)  # 0: the live weights are what is evaluated and served
    ema_ramp: float = Field(0.05, gt=0)  # half-life is at most this share of the samples seen (EDM, training loop)
    precision: Literal["float32", "bfloat16"] = "float32"  # autocast
    checkpoint_every_samples: int | None = Field(None, gt=0)  # None: 10 checkpoints in a run
    log_every_samples: int | None = Field(None, gt=0)  # None: 100 points in a run
    preview_every_samples: int | None = Field(None, gt=0)  # None: 5 sample grids in a run
    preview_rows: int = Field(16, gt=0, le=256)
    keep_checkpoints: int = Field(2, ge=2)  # the one before a damaged one must exist
    divergence_retries: int = Field(2, ge=0)  # roll-backs to the last good checkpoint
    divergence_lr_factor: float = Field(0.5, gt=0, le=1)  # learning rate after each roll-back, compounded

    def every(self, given: int | None, parts: int) -> int:
        """An interval in samples: the one given, or a ``parts``-th of the run, at least one batch."""
        return given or max(self.samples // parts, self.batch_size)

    @property
    def checkpoint_interval(self) -> int:
        """Samples between two checkpoints."""
        return self.every(self.checkpoint_every_samples, 10)


class Evaluation(Config):
    """How many samples the figures of a recipe rest on."""

    samples: int = Field(default=2000, gt=5)  # coverage looks at 5 neighbours
    options: dict[str, Any] = Field(default_factory=dict)  # sampling options that differ from the model's own
    likelihood_samples: int | None = Field(None, gt=0)  # the first so many of the test split; None: all
    importance_draws: int | None = Field(None, gt=0)  # also a bound of so many draws, for models that have one
    against: str | None = None  # a data set whose samples ought to look strange to the model


class Recipe(Config):
    """A named system: a family with its network, loss and sampler, on a data set, for so many samples."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    family: str
    data: str
    seed: int = Field(0, ge=0)
    model: dict[str, Any] = Field(default_factory=dict)  # the family's own config
    training: Training
    evaluation: Evaluation = Evaluation()
    init_from: str | None = None  # a registered model whose weights training starts from
    parents: dict[str, str] = Field(default_factory=dict)  # registered models it is built on, by role
    keep_labels: tuple[int, ...] = ()  # train on these classes alone; empty: on all
    monitor: Monitor | None = None  # watches training for collapse

    def digest(self, *context: str) -> str:
        """Twelve hexadecimal digits that change with any setting, or with ``context`` (data version, ...)."""
        text = json.dumps([self.model_dump(mode="json"), *context], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def after(self, alarms: int) -> "Recipe":
        """The recipe as it is trained after so many alarms of its monitor.

        Raises:
            ConfigError: a change does not fit the recipe.
        """
        if self.monitor is None or not alarms:
            return self
        return parse(
            Recipe, self.monitor.changed(self.model_dump(mode="json"), alarms), f"{self.name}, monitor.changes"
        )

    def attempts(self) -> "list[Recipe]":
        """The recipe as it is trained at first, then after each alarm that its monitor has a change for.

        Raises:
            ConfigError: a change does not fit the recipe.
        """
        return [self.after(alarms) for alarms in range(len(self.monitor.changes) + 1 if self.monitor else 1)]


def parse(kind: type[AnyModel], values: Mapping[str, Any], where: str) -> AnyModel:
    """``values`` as a ``kind``; each mistake named with its key, the value got and the nearest known key.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, item) for item in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + " ".join(lines)) from None


def _explain(kind: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "the whole"
    if item["type"] == "extra_forbidden":
        known = sorted(set(_keys_at(kind, item["loc"][:-1])))
        allowed = f"Allowed: {', '.join(known)}." if known else "There are none to set."
        return f"{path} is not a key.{nearest(str(item['loc'][-1]), known)} {allowed}"
    if item["type"] == "missing":
        return f"{path} is required."
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {item['input']!r})."


def _keys_at(kind: Any, path: tuple[Any, ...]) -> Iterable[str]:
    """Field names of every record that may stand at ``path`` below ``kind``; union tags in the path are passed over."""
    records = list(_records(kind))
    for part in path:
        inner = [record.model_fields[part].annotation for record in records if part in record.model_fields]
        records = [r for annotation in inner for r in _records(annotation)] or records
    return [name for record in records for name in record.model_fields]


def _records(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _records(part)


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``a.b=value`` settings laid over it; values are YAML.

    Raises:
        ConfigError: a setting has no ``=``, or its path leads nowhere.
    """
    merged = dict(values)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set takes key=value, got {setting!r}. Example: --set training.batch_size=64.")
        try:
            merged = with_value(merged, path.strip(), yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: {text!r} is no YAML value. Quote it, or close its brackets.") from None
    return merged


def lay(values: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` with those of ``settings`` laid over it, by dotted key; entries of a list go by number.

    Raises:
        ConfigError: a key leads nowhere; ``where`` says whose it is.
    """
    merged = dict(values)
    for path, value in settings.items():
        try:
            merged = with_value(merged, path, value)
        except ConfigError as error:
            raise ConfigError(f"{where} {error}") from None
    return merged


def find_recipe(name: str, folder: Path, kind: str = "recipe") -> Path:
    """The file of a recipe given by path or by its name below ``folder``, for example ``digits/vae``.

    ``kind`` is the word for such a file, where it is another than a recipe.

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    for candidate in (Path(name), folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml"))
    raise ConfigError(
        f"No {kind} file or {kind} is called {name!r}.{nearest(name, known)} "
        f"{kind.capitalize()}s: {', '.join(known) or 'none'}."
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {path}. Give the path of a YAML file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, got {type(values).__name__}.")
    return values


def load_recipe(path: Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and lay ``settings`` over it; its name is the file's.

    Raises:
        ConfigError: the file is no YAML mapping, or a key or value is not allowed.
    """
    return parse(Recipe, {"name": path.stem.lower(), **override(read_mapping(path), settings)}, str(path))
