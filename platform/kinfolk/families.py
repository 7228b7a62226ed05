"""Families are found, not listed: any installed package may offer one through the entry-point group."""

from importlib.metadata import EntryPoint, entry_points

from kinfolk.contract import Family
from kinfolk.errors import ConfigError, nearest

GROUP = "kinfolk.families"


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def family_names() -> list[str]:
    """Names of all installed families, sorted; loads none of them."""
    return sorted(_points())


def find_family(name: str) -> Family:
    """The installed family called ``name``.

    Raises:
        ConfigError: no installed package offers it, or what it offers cannot be loaded or is no family of that name.
    """
    points = _points()
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise ConfigError(f"No family is called {name!r}.{nearest(name, points)} Installed families: {known}.")
    try:
        family = points[name].load()
    except Exception as error:
        raise ConfigError(f"Family {name!r} ({points[name].value}) cannot be loaded: {error!r}. Mend it.") from error
    if not isinstance(family, Family) or family.name != name:
        raise ConfigError(f"Entry point {points[name].value!r} is not a kinfolk Family called {name!r}.")
    return family
