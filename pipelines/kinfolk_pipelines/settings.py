"""Addresses and folders, from ``kinfolk.yaml`` and ``KINFOLK_*`` variables: the only reader of the environment."""

import os
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from kinfolk.config import read_mapping
from kinfolk.errors import ConfigError, nearest
from kinfolk.serving.access import Access, holders

FILE = "kinfolk.yaml"
PREFIX = "KINFOLK_"  # of environment variables


class Settings(BaseSettings):
    """Where things are. Growing from one machine to a cluster changes these values and no code."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, yaml_file=FILE, extra="forbid", frozen=True)

    state: Path = Path(".kinfolk")  # local MLflow store, checkpoints, caches, the Ray token
    data: Path = Path("data")  # prepared data sets, one folder each
    recipes: Path | None = None  # folder of recipes; None: those that come with Kinfolk
    sweeps: Path | None = None  # folder of sweeps; None: those that come with Kinfolk
    tracking_uri: str | None = None  # MLflow; None: a SQLite file in ``state``
    experiment: str = "kinfolk"
    storage: str | None = None  # checkpoints, a path or s3://...; None: a folder in ``state``
    ray_address: str | None = None  # None: a cluster on this machine that ends with the command
    api_token: SecretStr | None = None  # bearer token that endpoints ask for
    api_tokens: list[Access] = []  # more of them, each with its holder's name, role and rate
    webhook_secret: SecretStr | None = None  # that MLflow signs with when it says that an alias has moved
    cpus: int | None = Field(default=None, ge=1)  # of the local cluster; None: all

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code wins, then the environment, then the file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @property
    def tracking(self) -> str:
        """MLflow's address."""
        return self.tracking_uri or f"sqlite:///{(self.state / 'mlflow.db').absolute()}"

    @property
    def access(self) -> tuple[Access, ...]:
        """Who may ask the endpoints; nobody in particular: everyone."""
        return (*holders(self.api_token), *self.api_tokens)

    @property
    def checkpoints(self) -> str:
        """Where Ray Train keeps checkpoints."""
        return self.storage or str((self.state / "runs").absolute())

    @property
    def recipe_folder(self) -> Path:
        """The folder that recipe names are looked up in."""
        return self.recipes or _shipped("recipes")

    @property
    def sweep_folder(self) -> Path:
        """The folder that sweep names are looked up in."""
        return self.sweeps or _shipped("sweeps")

    @property
    def cache(self) -> Path:
        """Registered models fetched to this machine."""
        return self.state.absolute() / "cache"

    def dataset(self, name: str) -> Path:
        """The folder of a prepared data set."""
        return self.data.absolute() / name


def _shipped(name: str) -> Path:
    """A folder that comes with Kinfolk: inside the package, or beside it in the repository."""
    packaged = Path(__file__).parent / name
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / name


def load_settings(**given: Any) -> Settings:
    """Settings of this process, ``given`` values on top.

    Raises:
        ConfigError: a key or a value in the file or the environment is not allowed.
    """
    _check_variables()
    if Path(FILE).exists():
        read_mapping(Path(FILE))
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"Settings ({FILE} or {PREFIX}{key.upper()}): {key}: {first['msg']}, got {first['input']!r}. "
            f"Known settings: {', '.join(Settings.model_fields)}."
        ) from None


def _check_variables() -> None:
    """Refuse a misspelt setting; names that resemble none are let be, as a cluster may make some of its own."""
    for name in sorted(os.environ):
        field = name.lower().removeprefix(PREFIX.lower())
        if len(field) == len(name) or field in Settings.model_fields:
            continue
        if meant := nearest(field, Settings.model_fields):
            raise ConfigError(f"The variable {name} is no setting.{meant} Known: {', '.join(Settings.model_fields)}.")


def apply_environment(variables: dict[str, str]) -> None:
    """Set variables that libraries read at import; a value the user has set stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def git_commit() -> str | None:
    """The commit of the working directory, or None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
