"""The search space of a sweep: settings by dotted recipe key, each a line from 0 to 1 with a value at every point."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator

from kinfolk.contract import Config
from kinfolk.errors import ConfigError, nearest

Number = TypeVar("Number", int, float)
_FACTORS = (0.8, 1.2)  # of a perturbed number (Jaderberg et al., 2017, Appendix A.2)
_FROM_ZERO = 0.1  # of its range, by which a perturbed 0 moves, as it has no factor to move by
_FEW = 16  # whole numbers that are each tried


class _Setting(Config):
    when: dict[str, Any] = Field(default_factory=dict)  # it exists only where other settings have these values


class Fixed(_Setting):
    """One value, for a setting that another one needs beside it."""

    kind: Literal["fixed"]
    value: Any

    def at(self, u: float) -> Any:  # noqa: ARG002
        """The value."""
        return self.value

    def place(self, value: Any) -> float:  # noqa: ARG002
        """The middle."""
        return 0.5

    def ends(self) -> list[Any]:
        """The value."""
        return [self.value]


class Choice(_Setting):
    """One of several values of any kind."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_different(self) -> "Choice":
        if twice := [value for index, value in enumerate(self.values) if value in self.values[:index]]:
            raise ValueError(f"{twice[0]!r} is among the values twice; give each once, as each is as likely")
        return self

    def at(self, u: float) -> Any:
        """The value at ``u`` in [0, 1]; each has an equal share."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def place(self, value: Any) -> float:
        """The middle of the share of ``value``."""
        return (list(self.values).index(value) + 0.5) / len(self.values)

    def ends(self) -> list[Any]:
        """Every value."""
        return list(self.values)


class _Range(_Setting):
    low: float
    high: float

    @model_validator(mode="after")
    def _is_a_range(self) -> "_Range":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}; for one value use kind: fixed")
        return self

    def at(self, u: float) -> Any:
        """The value at ``u`` in [0, 1]."""
        return self.low + u * (self.high - self.low)

    def place(self, value: Any) -> float:
        """Where ``value`` lies, in [0, 1]."""
        return (value - self.low) / (self.high - self.low)

    def ends(self) -> list[Any]:
        """The lowest and the highest value."""
        return [self.low, self.high]


class Uniform(_Range):
    """A number, every one as likely."""

    kind: Literal["uniform"]


class LogUniform(_Range):
    """A positive number, every order of magnitude as likely."""

    kind: Literal["log_uniform"]
    low: float = Field(gt=0)

    def at(self, u: float) -> float:
        """The value at ``u`` in [0, 1]; the ends exactly."""
        return min(max(self.low ** (1 - u) * self.high**u, self.low), self.high)

    def place(self, value: Any) -> float:
        """Where ``value`` lies, in [0, 1]."""
        return math.log(value / self.low) / math.log(self.high / self.low)


class IntRange(_Range):
    """A whole number, both ends included, every one as likely."""

    kind: Literal["int"]
    low: int
    high: int

    def at(self, u: float) -> int:
        """The value at ``u`` in [0, 1]; each has an equal share."""
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)


Setting = Annotated[Fixed | Choice | Uniform | LogUniform | IntRange, Field(discriminator="kind")]
Space = Mapping[str, Setting]
Choose = Callable[[str, Setting], Any]


def ordered(space: Space) -> list[str]:
    """Keys in an order in which each comes after those it depends on or lies below, whatever the order of the file.

    Raises:
        ConfigError: a ``when`` names no setting of the space or a value it cannot have, asks for values that are never
            there together, or settings depend in a circle.
    """
    for key, setting in space.items():
        for other, value in setting.when.items():
            _check_condition(space, key, other, value)
    order: list[str] = []
    while len(order) < len(space):
        ready = [key for key in space if key not in order and _before(space, key) <= set(order)]
        if not ready:
            circle = ", ".join(sorted(space.keys() - set(order)))
            raise ConfigError(f"space: {circle} depend on each other in a circle. Take a `when` away.")
        order += ready
    for key in order:
        _check_exists(space, key)
    return order


def _before(space: Space, key: str) -> set[str]:
    """Settings that ``key`` depends on, or that would take its place with all else below them."""
    return space[key].when.keys() | {other for other in space if key.startswith(f"{other}.")}


def _check_condition(space: Space, key: str, other: str, value: Any) -> None:
    if other not in space:
        raise ConfigError(
            f"space.{key}.when: {other} is no setting of this space.{nearest(other, space)} "
            f"Settings: {', '.join(space)}."
        )
    setting = space[other]
    if isinstance(setting, Uniform | LogUniform):
        raise ConfigError(
            f"space.{key}.when: {other} is any number of a range, and as good as never {json.dumps(value)}. Let {key} "
            "depend on a choice, a fixed value or a whole number."
        )
    allowed = list(range(setting.low, setting.high + 1)) if isinstance(setting, IntRange) else setting.ends()
    if value not in allowed:
        whole = f"{setting.low} to {setting.high}" if isinstance(setting, IntRange) else ""
        values = whole or ", ".join(json.dumps(each) for each in allowed)
        raise ConfigError(f"space.{key}.when: {other} is never {json.dumps(value)}. Its values: {values}.")


def _check_exists(space: Space, key: str) -> None:
    wanted = _conditions(space, key)
    if not all(exists(space[each], wanted) for each in (key, *wanted)):
        raise ConfigError(
            f"space.{key} never exists: what its `when` asks for, and those of the settings it names, is never there "
            "together. Take one of them away."
        )


def exists(setting: Setting, settings: Mapping[str, Any]) -> bool:
    """Whether the others have the values that ``setting`` is for; one that does not exist has none."""
    return all(key in settings and settings[key] == value for key, value in setting.when.items())


def chosen(space: Space, choose: Choose) -> dict[str, Any]:
    """Settings of one trial; ``choose`` is asked for each that exists beside those before it."""
    settings: dict[str, Any] = {}
    for key in ordered(space):
        if exists(space[key], settings):
            settings[key] = choose(key, space[key])
    return settings


def uniform(generator: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _pick(options: Sequence[Number], generator: torch.Generator) -> Number:
    """One of ``options``, each as likely."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def drawn(space: Space, generator: torch.Generator) -> dict[str, Any]:
    """Settings at random."""
    return chosen(space, lambda _, setting: setting.at(uniform(generator)))


def ends(space: Space) -> Iterator[dict[str, Any]]:
    """Settings that show each end (or choice) of every setting once, the others at their first where possible.

    Of a range of few whole numbers each is shown.
    """
    for key in space:
        yield from shown(space, key)


def shown(space: Space, key: str) -> Iterator[dict[str, Any]]:
    """Settings with each end (or choice) of ``key``, the others at their first where it exists beside that."""
    wanted = _conditions(space, key)
    for value in _values(space[key]):

        def choose(name: str, setting: Setting, held: Mapping[str, Any] = {**wanted, key: value}) -> Any:
            return held[name] if name in held else setting.at(0.0)

        yield chosen(space, choose)


def _values(setting: Setting) -> list[Any]:
    if isinstance(setting, IntRange) and setting.high - setting.low < _FEW:
        return list(range(setting.low, setting.high + 1))
    return setting.ends()


def _conditions(space: Space, key: str) -> dict[str, Any]:
    """Values that the settings ``key`` depends on must have, directly or through others."""
    wanted = dict(space[key].when)
    for other in space[key].when:
        wanted |= _conditions(space, other)
    return wanted


def perturbed(
    space: Space, keys: tuple[str, ...], settings: Mapping[str, Any], generator: torch.Generator, resample: float
) -> dict[str, Any]:
    """``settings`` with those of ``keys`` drawn anew with probability ``resample``, else moved a little.

    Numbers are multiplied by 0.8 or 1.2, whole ones move by 1 at least and a 0 moves by a tenth of its range, none of
    them out of it; choices go to a neighbour. Source, but for what would not move: Jaderberg et al., 2017 (PBT),
    Sec. 3 and A.2, https://arxiv.org/abs/1711.09846.
    """
    changed = dict(settings)
    for key in sorted(changed.keys() & set(keys)):
        setting = space[key]
        if uniform(generator) < resample:
            changed[key] = setting.at(uniform(generator))
        else:
            changed[key] = _moved(setting, changed[key], generator)
    return changed


def _moved(setting: Setting, value: Any, generator: torch.Generator) -> Any:
    if isinstance(setting, Fixed):
        return value
    if isinstance(setting, Choice):
        index = setting.values.index(value) + _pick((-1, 1), generator)
        return setting.values[min(max(index, 0), len(setting.values) - 1)]
    factor = _pick(_FACTORS, generator)
    moved = value * factor if value else math.copysign(_FROM_ZERO * (setting.high - setting.low), factor - 1)
    if isinstance(setting, IntRange):
        moved = _whole(value, moved)
    return min(max(moved, setting.low), setting.high)


def _whole(value: int, moved: float) -> int:
    """The whole number nearest to ``moved``, on its side of ``value``."""
    return max(round(moved), value + 1) if moved > value else min(round(moved), value - 1)
