"""The way to MLflow: an explicit address, looked at before it is used.

``import mlflow`` takes seconds, configures loggers and starts telemetry, so every module here imports it on first use.
MLflow's own client retries an unreachable server for minutes, and only the environment changes that; ``reach`` asks
first, within ``timeout_s``.
"""

import http.client
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from kinfolk.errors import ConfigError, RegistryDownError

if TYPE_CHECKING:
    from mlflow import MlflowClient

REACH_TIMEOUT_S = 2.0
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # the servers' registered ports
_ALLOWED = "http://HOST:PORT, https://HOST, sqlite:///PATH/mlflow.db or postgresql://USER@HOST/DATABASE"


def mlflow_environment() -> dict[str, str]:
    """Variables that keep MLflow private, offline, pickle-free and brief; the program sets them before first use."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_MODEL_CATALOG_URI": "",  # no download of a model price list
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes in place of 10
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    }


def shown(tracking_uri: str) -> str:
    """The address without user and password, for messages."""
    scheme, separator, rest = tracking_uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a ``sqlite:///`` address; None for any other address."""
    head, found, path = tracking_uri.partition("sqlite:///")
    return Path(path).absolute() if found and not head and path else None


def reach(tracking_uri: str, timeout_s: float = REACH_TIMEOUT_S) -> None:
    """Return if something that can be MLflow's store answers at the address within ``timeout_s``.

    Raises:
        ConfigError: the address is of a kind that MLflow 3 does not keep runs under.
        RegistryDownError: nothing answers there, or something else does.
    """
    parts = urlsplit(tracking_uri)
    dialect = parts.scheme.partition("+")[0]
    try:
        if parts.scheme in ("http", "https") and parts.hostname:
            _reach_server(tracking_uri, timeout_s)
        elif path := sqlite_path(tracking_uri):
            _reach_file(path, timeout_s)
        elif dialect in _DATABASE_PORTS and parts.hostname:
            _reach_database(parts, _DATABASE_PORTS[dialect], timeout_s)
        else:
            raise ConfigError(f"The tracking address {shown(tracking_uri)!r} cannot be used: give {_ALLOWED}.")
    except (OSError, http.client.HTTPException, sqlite3.Error, ValueError) as error:
        raise RegistryDownError(
            f"MLflow is out of reach at {shown(tracking_uri)}: {error}. Start it, or give another tracking address."
        ) from error


def _reach_server(address: str, timeout_s: float) -> None:
    with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=timeout_s) as answer:
        if answer.read(64).strip() != b"OK":
            raise ValueError("what answers there is no MLflow server (its /health does not say OK)")


def _reach_file(path: Path, timeout_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=timeout_s)) as database:
        database.execute("PRAGMA schema_version").fetchone()


def _reach_database(parts: SplitResult, default_port: int, timeout_s: float) -> None:
    with socket.create_connection((parts.hostname, parts.port or default_port), timeout=timeout_s):
        pass


def connect(tracking_uri: str) -> "MlflowClient":
    """A client bound to the address alone; the first use of a SQLite file creates its schema.

    Raises:
        ConfigError, RegistryDownError: as ``reach``.
    """
    reach(tracking_uri)
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel("WARNING")  # announces each new SQLite file
    with registry_errors(tracking_uri, "open its store"):
        return MlflowClient(tracking_uri, registry_uri=tracking_uri)


@contextmanager
def registry_errors(tracking_uri: str, action: str) -> Iterator[None]:
    """Turn what MLflow raises inside the block into a RegistryDownError that says which ``action`` failed and why."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise RegistryDownError(f"MLflow at {shown(tracking_uri)} could not {action}: {reason}") from error
