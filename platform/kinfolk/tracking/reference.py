"""How a user names a registered model: ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``."""

import re
from dataclasses import dataclass

from kinfolk.errors import ConfigError

CHAMPION = "champion"  # the alias that endpoints serve
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,49}")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+", re.IGNORECASE)  # MLflow keeps these for itself
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model by name, with at most one of alias and version number."""

    name: str
    alias: str | None = None
    number: int | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        return self.name if self.number is None else f"{self.name}/{self.number}"


def _refuse(what: str, text: str, allowed: str) -> ConfigError:
    return ConfigError(f"{text[:120]!a} is no {what}: {allowed}.")


def parse_name(text: str) -> str:
    """``text`` if it can name a model.

    Raises:
        ConfigError: it holds a character that could mean something to a path, a URL or a query, or is too long.
    """
    if not _NAME.fullmatch(text):
        raise _refuse("model name", text, "use 1 to 100 of A-Z a-z 0-9 . _ -, the first a letter or digit")
    return text


def parse_alias(text: str) -> str:
    """``text`` if it can be an alias.

    Raises:
        ConfigError: it is empty, too long, reserved by MLflow, or holds other than letters, digits, ``_`` and ``-``.
    """
    if not _ALIAS.fullmatch(text) or _RESERVED_ALIAS.fullmatch(text):
        raise _refuse("alias", text, "use 1 to 50 of A-Z a-z 0-9 _ -, a letter first; not latest, not v1")
    return text


def parse_reference(text: str) -> Reference:
    """Read ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION``.

    Raises:
        ConfigError: it is none of them.
    """
    if "@" in text:
        name, _, alias = text.partition("@")
        return Reference(parse_name(name), alias=parse_alias(alias))
    name, slash, number = text.partition("/")
    if not slash:
        return Reference(parse_name(name))
    if not _NUMBER.fullmatch(number):
        raise _refuse("model", text, "use NAME, NAME@ALIAS or NAME/VERSION, the version a number from 1")
    return Reference(parse_name(name), number=int(number))
