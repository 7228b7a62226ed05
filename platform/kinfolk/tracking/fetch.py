"""A registered version brought to this machine: downloaded beside its place, checked, then renamed into it."""

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kinfolk.errors import IntegrityError
from kinfolk.tracking.connection import connect, registry_errors
from kinfolk.tracking.lineage import Version
from kinfolk.tracking.package import bundle_in, verify_bundle
from kinfolk.tracking.registry import find

_STORES = {"", "file", "mlflow-artifacts", "s3", "gs", "abfss", "wasbs"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A version whose bundle is on this machine, checked."""

    folder: Path
    version: Version


def fetch(tracking_uri: str, reference: str, destination: Path) -> Fetched:
    """The bundle of a registered version below ``destination``, downloaded once and checked at every call.

    Raises:
        ConfigError: the reference is malformed.
        RegistryError: MLflow is out of reach, or has no such model, alias or version.
        IntegrityError: what the store holds is not what was registered, or would run code.
    """
    version = find(tracking_uri, reference)
    folder = destination / version.name / f"{version.number}-{version.manifest_sha256[:12]}"
    if not folder.exists():
        _download(tracking_uri, version, folder)
    verify_bundle(folder, version.manifest_sha256)
    return Fetched(folder, version)


def _download(tracking_uri: str, version: Version, folder: Path) -> None:
    scratch = folder.parent / f".{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    try:
        model = _download_model(tracking_uri, version, scratch)
        bundle = bundle_in(model, version.manifest_sha256)
        if not folder.exists():  # or another process was quicker, with the same bytes
            bundle.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_model(tracking_uri: str, version: Version, scratch: Path) -> Path:
    client = connect(tracking_uri)
    from mlflow.artifacts import download_artifacts

    with registry_errors(tracking_uri, f"download {version.reference}"):
        address = client.get_model_version_download_uri(version.name, str(version.number))
        _check_address(address, version)
        return Path(
            download_artifacts(address, dst_path=str(scratch), tracking_uri=tracking_uri, registry_uri=tracking_uri)
        )


def _check_address(address: str, version: Version) -> None:
    """Keep a forged version from sending this machine, with its credentials, to an address of its choice."""
    parts = urlsplit(address)
    if parts.scheme not in _STORES or (parts.scheme == "mlflow-artifacts" and parts.netloc):
        raise IntegrityError(
            f"{version.reference} is stored at a {parts.scheme}: address, which Kinfolk does not follow: "
            f"allowed are {', '.join(sorted(_STORES - {''}))} and plain paths. Register it again."
        )
