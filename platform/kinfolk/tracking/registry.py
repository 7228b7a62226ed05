"""Registered models: a sealed bundle goes in with its lineage; versions are found, listed and measured."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfolk.errors import RegistryError, nearest
from kinfolk.manifest import verify_sealed
from kinfolk.tracking.connection import connect, registry_errors
from kinfolk.tracking.lineage import MANIFEST_TAG, MODEL_ID_TAG, Lineage, Version, basis_tags, metric_tags, version_from
from kinfolk.tracking.package import manifest_digest, pack
from kinfolk.tracking.reference import CHAMPION, Reference, parse_name, parse_reference

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG_CHARACTERS = 5000  # of a reason; every kind of MLflow server keeps as many
_CREATE_ATTEMPTS = 10  # MLflow numbers versions without a lock, so writers of one name collide


def register(
    tracking_uri: str,
    bundle: Path,
    name: str,
    run_id: str,
    lineage: Lineage,
    metrics: Mapping[str, float] | None = None,
    alarms: tuple[str, ...] = (),
) -> Version:
    """Upload a sealed bundle and make it the next version of ``name``; no version appears unless all of it is there.

    A version with ``alarms``, reasons in words, is never promoted.

    Raises:
        ConfigError: ``name`` cannot name a model.
        IntegrityError: the bundle is torn or altered.
        RegistryError: MLflow is out of reach, has no such run, or refuses.
    """
    parse_name(name)
    verify_sealed(bundle)
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"register {name}"):
        run = client.get_run(run_id)
        tags = {**lineage.tags(), MANIFEST_TAG: manifest_digest(bundle)}
        logged = client.create_logged_model(
            run.info.experiment_id, name, run_id, tags, params=dict(run.data.params), model_type=lineage.family
        )
        with _finalized(client, logged.model_id):
            _upload(client, bundle, logged.model_id, run_id)
        tags |= {MODEL_ID_TAG: logged.model_id, **metric_tags(metrics or {}, alarms or None)}
        stored = _create_version(client, name, logged, run_id, tags)
        version = version_from(stored, ())
        _log_figures(client, version, metrics or {})
    return version


@contextmanager
def _finalized(client: "MlflowClient", model_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        client.finalize_logged_model(model_id, "FAILED")
        raise
    client.finalize_logged_model(model_id, "READY")


def _upload(client: "MlflowClient", bundle: Path, model_id: str, run_id: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pack(bundle, Path(scratch), model_id, run_id)
        client.log_model_artifacts(model_id, str(Path(scratch) / "model"))


def _create_version(client: "MlflowClient", name: str, logged: Any, run_id: str, tags: Mapping[str, str]) -> Any:
    from mlflow.exceptions import MlflowException

    for attempt in range(1, _CREATE_ATTEMPTS + 1):
        try:
            create_registered_model(client, name)
            return client.create_model_version(
                name, logged.artifact_location, run_id, dict(tags), await_creation_for=0, model_id=logged.model_id
            )
        except MlflowException as error:
            if error.get_http_status_code() < 500 or attempt == _CREATE_ATTEMPTS:
                raise
    raise AssertionError("the last attempt returns or raises")


def create_registered_model(client: "MlflowClient", name: str) -> bool:
    """Create a model without versions; whether it was this call that did, and not an earlier one."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):  # there, or just deleted
            raise
        return False
    return True


def _log_figures(client: "MlflowClient", version: Version, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    figures = [Metric(key, float(value), now_ms, 0, model_id=version.model_id) for key, value in metrics.items()]
    if figures:
        client.log_batch(version.run_id, metrics=figures)


def log_model_metrics(
    tracking_uri: str,
    version: Version,
    metrics: Mapping[str, float],
    alarms: tuple[str, ...] | None = None,
    basis: Mapping[str, str] | None = None,
) -> None:
    """Add figures, and what alarms they raised, to a version, its logged model and its run.

    ``basis`` says in words what the figures rest on; it is kept as tags of the version, ``basis.NAME``.

    Raises:
        RegistryError: MLflow is out of reach or the version is gone.
    """
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"add metrics to {version.reference}"):
        for key, value in {**metric_tags(metrics, alarms), **basis_tags(basis or {})}.items():
            client.set_model_version_tag(version.name, str(version.number), key, value)
        _log_figures(client, version, metrics)


def find(tracking_uri: str, reference: str) -> Version:
    """The version that ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION`` means; NAME alone is its champion, else its newest.

    Raises:
        ConfigError: the reference is malformed.
        RegistryError: MLflow is out of reach, or has no such model, alias or version; the nearest are named.
    """
    wanted = parse_reference(reference)
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, f"look up {wanted}"):
        model = registered_model(client, wanted.name)
        return read_version(client, model, _number(client, model, wanted))


def registered_model(client: "MlflowClient", name: str) -> Any:
    """MLflow's record of a model, which holds its aliases.

    Raises:
        RegistryError: there is none of that name; the nearest is named.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = sorted(model.name for model in _pages(client.search_registered_models) if "~" not in model.name)
        raise RegistryError(
            f"No registered model is called {name!r}.{nearest(name, known)} Models: {', '.join(known) or 'none'}."
        ) from None


def _number(client: "MlflowClient", model: Any, wanted: Reference) -> int:
    if wanted.number is not None:
        return wanted.number
    alias = wanted.alias or CHAMPION
    if alias in model.aliases:
        return int(model.aliases[alias])
    if wanted.alias is not None:
        known = ", ".join(sorted(model.aliases)) or "none"
        raise RegistryError(
            f"{model.name} has no alias {alias!r}.{nearest(alias, model.aliases)} Its aliases: {known}."
        )
    newest = client.search_model_versions(f"name='{model.name}'", 1, ["version_number DESC"])
    if not newest:
        raise RegistryError(f"{model.name} has no version: register one first.")
    return int(newest[0].version)


def read_version(client: "MlflowClient", model: Any, number: int) -> Version:
    """One version of a model of which MLflow's record is given.

    Raises:
        RegistryError: it was deleted or never was, or Kinfolk did not register it.
    """
    from mlflow.exceptions import MlflowException

    try:
        stored = client.get_model_version(model.name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        numbers = sorted(int(each.version) for each in client.search_model_versions(f"name='{model.name}'"))
        known = ", ".join(map(str, numbers[-10:])) or "none"
        raise RegistryError(f"{model.name} has no version {number}. Its newest versions: {known}.") from None
    return version_from(stored, _aliases_of(model, number))


def _aliases_of(model: Any, number: int) -> tuple[str, ...]:
    return tuple(alias for alias, version in model.aliases.items() if int(version) == number)


def _pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def models(tracking_uri: str) -> list[Version]:
    """Every version that Kinfolk registered, by name, newest first; what others registered is left out.

    Raises:
        RegistryError: MLflow is out of reach.
    """
    client = connect(tracking_uri)
    with registry_errors(tracking_uri, "list models"):
        registered = {model.name: model for model in _pages(client.search_registered_models)}
        stored = [each for each in _pages(client.search_model_versions) if MANIFEST_TAG in each.tags]
    versions = [version_from(each, _aliases_of(registered[each.name], int(each.version))) for each in stored]
    return sorted(versions, key=lambda version: (version.name, -version.number))


def note_refusal(tracking_uri: str, name: str, number: str, reason: str) -> None:
    """Note on a version why it is not served, as its tag ``serving.refused``.

    Raises:
        RegistryError: MLflow is out of reach or the version is gone.
    """
    with registry_errors(tracking_uri, f"note why {name}/{number} is not served"):
        connect(tracking_uri).set_model_version_tag(name, number, "serving.refused", reason[:_TAG_CHARACTERS])
