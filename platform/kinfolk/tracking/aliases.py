"""Aliases say which version is meant: endpoints serve ``champion``, and its predecessor is kept for ``rollback``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kinfolk.errors import RegistryError
from kinfolk.tracking.connection import connect, registry_errors
from kinfolk.tracking.lineage import Version
from kinfolk.tracking.reference import CHAMPION, parse_alias, parse_name
from kinfolk.tracking.registry import create_registered_model, read_version, registered_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREVIOUS_CHAMPION_TAG = "previous_champion"  # on the registered model
_LOCK_SUFFIX = "~promoting"  # no model of a user's can be called so
_LOCK_WAIT_S, _LOCK_LIFE_S = 15.0, 300  # a promotion takes less than a second


def find_champion(tracking_uri: str, name: str) -> Version | None:
    """The champion of a model; None if it has none yet.

    Raises:
        RegistryError: MLflow is out of reach, or has no such model.
    """
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"look up {name}@{CHAMPION}"):
        model = registered_model(client, parse_name(name))
        return read_version(client, model, int(model.aliases[CHAMPION])) if CHAMPION in model.aliases else None


@contextmanager
def one_writer(tracking_uri: str, name: str) -> Iterator[None]:
    """Keep other writers of ``name``'s aliases out of the block, on whatever machine they are.

    MLflow cannot compare and swap, but it creates a registered model of one name only once: an empty one is the lock.

    Raises:
        RegistryError: MLflow is out of reach, or another writer did not finish in time.
    """
    client = connect(tracking_uri)
    lock = f"{parse_name(name)}{_LOCK_SUFFIX}"
    with registry_errors(tracking_uri, f"lock the aliases of {name}"):
        _acquire(client, lock)
    try:
        yield
    finally:
        with registry_errors(tracking_uri, f"unlock the aliases of {name}"):
            client.delete_registered_model(lock)


def _acquire(client: "MlflowClient", lock: str) -> None:
    give_up = time.monotonic() + _LOCK_WAIT_S
    while not create_registered_model(client, lock):
        if time.monotonic() >= give_up:
            raise RegistryError(
                f"Another promotion is going on, or died within the last {_LOCK_LIFE_S} s: try again later, "
                f"or delete the empty model {lock!r} in MLflow."
            )
        _drop_if_left_behind(client, lock)
        time.sleep(0.1)


def _drop_if_left_behind(client: "MlflowClient", lock: str) -> None:
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # gone meanwhile
        if client.get_registered_model(lock).creation_timestamp < (time.time() - _LOCK_LIFE_S) * 1000:
            client.delete_registered_model(lock)


def set_alias(tracking_uri: str, name: str, alias: str, number: int) -> int | None:
    """Point ``alias`` at a version and return where it pointed before.

    Raises:
        ConfigError: the name or the alias is malformed.
        RegistryError: MLflow is out of reach, or has no such version.
    """
    parse_alias(alias)
    with one_writer(tracking_uri, name):
        return move_alias(tracking_uri, name, alias, number)


def move_alias(tracking_uri: str, name: str, alias: str, number: int) -> int | None:
    """As ``set_alias``, for a caller that is the ``one_writer`` already."""
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"set {name}@{alias}"):
        model = registered_model(client, name)
        version = read_version(client, model, number)
        before = int(model.aliases[alias]) if alias in model.aliases else None
        if alias == CHAMPION and before not in (None, version.number):
            client.set_registered_model_tag(name, PREVIOUS_CHAMPION_TAG, str(before))
        client.set_registered_model_alias(name, alias, str(version.number))
    return before


def rollback(tracking_uri: str, name: str) -> Version:
    """Make the champion's predecessor champion again; a second roll-back undoes the first.

    Raises:
        RegistryError: MLflow is out of reach, or the model never had another champion.
    """
    with one_writer(tracking_uri, name):
        client = connect(tracking_uri)
        with registry_errors(tracking_uri, f"roll {name} back"):
            model = registered_model(client, name)
            if PREVIOUS_CHAMPION_TAG not in model.tags:
                raise RegistryError(f"{name} has had no other champion: there is nothing to roll back to.")
            previous = read_version(client, model, int(model.tags[PREVIOUS_CHAMPION_TAG]))
        move_alias(tracking_uri, name, CHAMPION, previous.number)
    return previous
