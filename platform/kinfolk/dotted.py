"""Nested mappings and lists, as YAML has them, by dotted path: ``model.penalties.0.gamma``."""

import copy
from collections.abc import Mapping
from typing import Any

from kinfolk.errors import ConfigError, nearest


def with_value(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of ``values`` with ``value`` at a dotted path such as ``model.penalties.0.gamma``.

    Raises:
        ConfigError: a part of the path leads below a plain value, or to no position of a list.
    """
    changed = copy.deepcopy(dict(values))
    *parents, last = path.split(".")
    place: Any = changed
    for part in parents:
        if isinstance(place, dict):
            place.setdefault(part, {})
        place = place[_key(place, part, path)]
    place[_key(place, last, path)] = value
    return changed


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path.

    Raises:
        ConfigError: nothing does; the nearest key is named.
    """
    place: Any = values
    for part in path.split("."):
        key = _key(place, part, path)
        if isinstance(place, dict) and key not in place:
            raise ConfigError(f"{path}: there is no key {part!r}.{nearest(part, place)} Keys: {', '.join(place)}.")
        place = place[key]
    return place


def _key(place: Any, part: str, path: str) -> str | int:
    """``part`` as what a mapping or a list is asked by."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise ConfigError(f"{path}: there is a plain value, {place!r}, where {part!r} was looked for below it.")
    if not part.isdecimal() or int(part) >= len(place):
        raise ConfigError(f"{path}: {part!r} is no position in a list of {len(place)}. The first is 0.")
    return int(part)
