"""Errors that are a user's to mend. Each says what, the value got, what is allowed, and what to do."""

import difflib
from collections.abc import Iterable

SHOWN = 60  # characters of a value from outside that a message repeats


class KinfolkError(Exception):
    """A mistake or a fault that a user can act on; the message is one readable paragraph."""


class ConfigError(KinfolkError):
    """A recipe, setting or command-line value that cannot be used."""


class RequestError(KinfolkError):
    """A sampling request that the model cannot serve; ``field`` names the offending part."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class DataError(KinfolkError):
    """Data that is missing, unreadable or not what its record says."""


class IntegrityError(KinfolkError):
    """Stored bytes that are not the bytes that were written: torn, truncated or altered."""


class DivergenceError(KinfolkError):
    """Training stopped because the loss or a gradient was not finite after every allowed retry."""


class CollapseError(KinfolkError):
    """Training was stopped by its monitor."""


class RegistryError(KinfolkError):
    """The tracking server or registry is out of reach, or lacks what was asked for."""


class RegistryDownError(RegistryError):
    """The tracking server or registry does not answer as it should; the message says where it is."""


def no_effect(setting: str, purpose: str) -> str:
    """What is wrong about a setting that another one leaves without effect; ``purpose`` is what it is for."""
    return f"{setting} would have no effect: it is for {purpose}. Leave it out"


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
