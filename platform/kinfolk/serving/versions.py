"""Which version of a served model is meant: a registered one, fetched by an injected function, or a bundle folder."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from kinfolk.abilities import abilities
from kinfolk.bundle import load_bundle
from kinfolk.contract import Model
from kinfolk.errors import ConfigError, KinfolkError, RegistryDownError
from kinfolk.manifest import MANIFEST, sha256_of
from kinfolk.reference import strangeness
from kinfolk.serving.config import ServedModel

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registry:
    """Where registered versions come from, as every replica is told."""

    tracking_uri: str
    cache: str  # a folder for bundles on the machine of the replica
    find: str = "kinfolk.tracking.registry:find"  # (tracking_uri, NAME@ALIAS) -> record with a number
    fetch: str = "kinfolk.tracking.fetch:fetch"  # (tracking_uri, NAME/NUMBER, folder) -> record with a folder
    secret: SecretStr | None = None  # that its messages are signed with, if it says when an alias moves
    tell: str = "kinfolk.tracking.registry:note_refusal"  # (tracking_uri, name, version, reason)


@dataclass(frozen=True, slots=True)
class Release:
    """One version on this machine."""

    version: str  # the number in the registry; of a bundle folder, the first digits of its manifest's sha256
    folder: Path


def load_function(dotted: str) -> Callable[..., Any]:
    """The function that ``module:function`` names.

    Raises:
        ConfigError: there is none of that name.
    """
    module, _, name = dotted.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{dotted!r} names no function: {error}. Write it as module:function.") from None
    return function


def told_afar(error: Exception, served: ServedModel, registry: Registry | None) -> str:
    """What went wrong, for those far away, who are told neither folders of this machine nor where its registry is."""
    if isinstance(error, RegistryDownError):
        return "the registry does not answer as it should; the log has the cause."
    reason = str(error)
    folders = [registry and registry.cache, served.bundle and served.bundle.parent]
    for folder in filter(None, folders):
        reason = reason.replace(f"{folder}/", "")
    return reason


def wanted(served: ServedModel, registry: Registry | None) -> str:
    """The version a serve file's entry means now.

    Raises:
        ConfigError: the model is a registered one and no registry is given, or the bundle folder is missing.
        KinfolkError: what the injected find function raises.
    """
    if served.bundle is not None:
        if not (served.bundle / MANIFEST).is_file():
            raise ConfigError(f"{served.bundle} is no bundle folder: it has no {MANIFEST}.")
        return sha256_of(served.bundle / MANIFEST)[:12]
    if registry is None:
        raise ConfigError(f"{served.name} is a registered model: give the address of the registry to serve it.")
    return str(load_function(registry.find)(registry.tracking_uri, f"{served.name}@{served.alias}").number)


def obtain(served: ServedModel, registry: Registry | None, version: str) -> Release:
    """A version, brought to this machine.

    Raises:
        KinfolkError: what the injected fetch function raises.
    """
    if served.bundle is not None:
        return Release(version, served.bundle)
    assert registry is not None
    fetched = load_function(registry.fetch)(registry.tracking_uri, f"{served.name}/{version}", Path(registry.cache))
    return Release(version, fetched.folder)


def locate(served: ServedModel, registry: Registry | None) -> Release:
    """The version a serve file's entry means now, on this machine; raises as ``wanted`` and ``obtain`` do."""
    return obtain(served, registry, wanted(served, registry))


def load(served: ServedModel, release: Release, tried: bool = False) -> Model:
    """The model of a release, on the GPU if the serve file reserves one, after it has drawn what was kept with it.

    One that was ``tried`` before, by this process, need not draw it again.

    Raises:
        IntegrityError: the bundle is not what was written.
        ConfigError: its family is not installed here, it has no task, or it draws something else.
    """
    model = load_bundle(release.folder)
    model.module.to(served.device)
    what = f"{served.name}, version {release.version},"
    if not abilities(model):
        raise ConfigError(f"{what} is a {model.family.name} without any task: it cannot be served.")
    if not tried and (strange := strangeness(model, release.folder)):
        raise ConfigError(f"{what} is not served: {strange}.")
    return model


def tell(served: ServedModel, registry: Registry | None, version: str, reason: str) -> None:
    """Note on a registered version why it is not served; where that cannot be done, the log alone has it."""
    if registry is None or served.bundle is not None:
        return
    try:
        load_function(registry.tell)(registry.tracking_uri, served.name, version, reason)
    except KinfolkError as error:
        _LOG.warning("That %s is not served could not be noted with it: %s", version, error)
