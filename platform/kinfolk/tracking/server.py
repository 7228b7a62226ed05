"""A local MLflow server on loopback, so that a browser can look at runs and models."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kinfolk.errors import ConfigError, RegistryError
from kinfolk.tracking.connection import mlflow_environment, reach

_HOST = "127.0.0.1"
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running MLflow server; leaving the ``with`` block, or ``stop``, ends it and nothing else."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End the server and the processes it started; a second call does nothing."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def store_address(folder: Path) -> str:
    """The address under which the store of ``start_server(folder, ...)`` is used directly, without the server."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def start_server(
    folder: Path, port: int = 0, timeout_s: float = 120.0, environment: Mapping[str, str] | None = None
) -> Server:
    """Serve the SQLite store in ``folder`` on loopback and return once it answers; port 0 takes a free one.

    Artifacts stay plain files below ``folder``, so the same store works with the server and, by ``store_address``,
    without it. ``environment`` is laid over this process's own.

    Raises:
        ConfigError: the port is in use or not allowed.
        RegistryError: the server ended, or did not answer in time; its log is named.
    """
    port = _free_port(port)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            _command(folder, port),
            env={**os.environ, **mlflow_environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, for stop
        )
    server = Server(f"http://{_HOST}:{port}", process, log)
    try:
        _await(server, timeout_s)
    except BaseException:
        server.stop()
        raise
    return server


def _command(folder: Path, port: int) -> list[str]:
    artifacts = folder.absolute() / "artifacts"
    options = {
        "--backend-store-uri": store_address(folder),
        "--default-artifact-root": str(artifacts),
        "--host": _HOST,
        "--port": str(port),
        "--workers": "1",
    }
    flat = [part for option in options.items() for part in option]
    return [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", *flat]


def _free_port(port: int) -> int:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port={port} is no port: use 1 to 65535, or 0 for a free one.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} on {_HOST} cannot be used: {error.strerror}. Give another, or 0 for a free one."
            ) from None
        return int(probe.getsockname()[1])


def _await(server: Server, timeout_s: float) -> None:
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            return reach(server.address)
        except RegistryError as error:
            if server.process.poll() is not None:
                raise RegistryError(f"The MLflow server ended at once; its log {server.log} says why.") from error
            if time.monotonic() >= give_up:
                raise RegistryError(
                    f"The MLflow server did not answer within {timeout_s:g} s; see its log {server.log}."
                ) from error
            time.sleep(0.1)
