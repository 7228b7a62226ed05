"""What ``kinfolk doctor`` looks at: is this machine fit, and does everything in the settings answer?"""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from kinfolk.config import load_recipe
from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.families import family_names, find_family
from kinfolk_pipelines import datasets
from kinfolk_pipelines.settings import Settings

_LEAST_FREE_GIB = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    what: str
    good: bool
    found: str


def _packages() -> str:
    names = ("torch", "ray", "mlflow", "dvc")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _processors() -> str:
    import torch

    gpus = torch.cuda.device_count()
    return f"{os.cpu_count()} CPUs, {gpus} GPUs, {torch.get_num_threads()} threads"


def _disk(settings: Settings) -> str:
    settings.state.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.state).free / 2**30
    if free < _LEAST_FREE_GIB:
        raise KinfolkError(f"{free:.1f} GiB free below {settings.state}: checkpoints want {_LEAST_FREE_GIB:g} GiB.")
    return f"{free:.0f} GiB free below {settings.state}"


def _families() -> str:
    return ", ".join(find_family(name).name for name in family_names())


def _recipes(settings: Settings) -> str:
    found = [load_recipe(path) for path in sorted(settings.recipe_folder.glob("*/*.yaml"))]
    if not found:
        raise ConfigError(f"No recipe DATA/NAME.yaml in {settings.recipe_folder}: look at recipes in the settings.")
    return f"{len(found)} in {settings.recipe_folder}"


def _tracking(settings: Settings) -> str:
    from kinfolk.tracking.connection import reach, shown

    reach(settings.tracking)
    return shown(settings.tracking)


def _ray(settings: Settings) -> str:
    if settings.ray_address is None:
        return "a local cluster is started when needed"
    from kinfolk.cluster import connect

    connect(settings.ray_address, settings.state)
    return f"answers at {settings.ray_address}"


def _data(settings: Settings) -> str:
    prepared = [row["name"] for row in datasets.rows(settings) if row["prepared"]]
    for name in prepared:
        datasets.open_dataset(settings, name)
    return ", ".join(prepared) or "none prepared yet"


def diagnose(settings: Settings) -> list[Check]:
    """Every check, each run whatever became of the others."""
    looks: list[tuple[str, Callable[[], str]]] = [
        ("python", platform.python_version),
        ("packages", _packages),
        ("processors", _processors),
        ("disk", lambda: _disk(settings)),
        ("families", _families),
        ("recipes", lambda: _recipes(settings)),
        ("data sets", lambda: _data(settings)),
        ("mlflow", lambda: _tracking(settings)),
        ("ray", lambda: _ray(settings)),
    ]
    return [_look(what, look) for what, look in looks]


def _look(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except (KinfolkError, OSError) as error:
        return Check(what, False, str(error))
