"""Connection to Ray: a cluster by address, or one on this machine that only this user can command."""

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kinfolk.errors import ConfigError

_CONNECT_TIMEOUT_S = 5.0
_LOOPBACK = "127.0.0.1"
_DASHBOARD_PORT = 8265  # Ray's own choice
_NO_PORT = "Failed to find a valid port for dashboard"  # Ray's words, where somebody took it a moment ago


def write_token(path: Path) -> None:
    """Make the token file of a local cluster, readable by its owner alone, unless it is there."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="ascii") as file:  # its mode is 600
        file.write(secrets.token_hex(32))
        file.flush()
        with suppress(FileExistsError):  # another command was first
            os.link(file.name, path)


def local_environment(token: Path) -> dict[str, str]:
    """Variables a local cluster is started with: token authentication, quiet logs, prompt health checks."""
    return {
        "RAY_AUTH_TOKEN_PATH": str(token.resolve()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0",  # also how soon a checkpoint and the end are noted
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; nobody takes this machine away
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_worker_niceness": "0",  # by default workers yield to whatever else runs here
    }


def free_port(preferred: int | None = None) -> int:
    """``preferred`` if it can be listened on just now, else a TCP port of the loopback interface that is free."""
    if preferred is not None:
        with suppress(ConfigError):
            check_port(_LOOPBACK, preferred)
            return preferred
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        ConfigError: something listens there, or the host is no interface of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Nothing can listen on {host}:{port}: {error.strerror}. Stop what is there, or give another --port."
            ) from None


def check_cluster(address: str) -> None:
    """Refuse a cluster whose head takes no connection, where Ray would try for minutes.

    Raises:
        ConfigError: ``address`` is no address, or nothing listens there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"ray_address={address!r} is no address. Give HOST:PORT, for example 10.0.0.5:6379, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, reason: Exception) -> ConfigError:
    return ConfigError(f"No Ray cluster answers at {address}: {reason}. Check ray_address in the settings.")


def connect(
    address: str | None, state: Path, *, cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> str | None:
    """Connect this process to Ray and return the dashboard's address, if there is one.

    Without an address a cluster is started on the loopback interface, ends with this process, and keeps its token in
    ``state``. ``environment`` holds further variables that must be set before Ray starts.

    Raises:
        ConfigError: no cluster answers at ``address``.
    """
    if address is None:
        write_token(state / "ray_token")
        os.environ.update(local_environment(state / "ray_token"))
        if "ray" not in sys.modules:  # read once, at import; a Ray imported earlier turns tokens on in init
            os.environ["RAY_AUTH_MODE"] = "token"
    else:
        check_cluster(address)
    os.environ.update(environment or {})
    import ray

    if ray.is_initialized():
        return None
    try:
        if address is not None:
            context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            context = _started(ray, cpus)
    except ConnectionError as error:
        raise _no_cluster(address or "this machine", error) from None
    url = context.dashboard_url
    return f"http://{url}" if url else None


def _started(ray: Any, cpus: int | None) -> Any:
    """The context of a new cluster on this machine; another port where somebody took the dashboard's meanwhile.

    Ray Train asks the state API for its controller. Without an address it asks whichever cluster was noted on this
    machine last, waits where that one has gone, and takes placement groups away where it knows no such controller.
    """
    reason: Exception | None = None
    for port in (free_port(_DASHBOARD_PORT), free_port()):
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{_LOOPBACK}:{port}"
        try:
            return ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=True,
                dashboard_host=_LOOPBACK,
                dashboard_port=port,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:  # of no class of its own where the dashboard itself finds its port taken
            if not isinstance(error, ValueError) and _NO_PORT not in str(error):
                raise
            reason = error
    raise ConfigError(f"Ray does not start on this machine: {reason}") from reason


def export(given: Mapping[str, str]) -> None:
    """Environment variables that Ray reads in this process from now on."""
    os.environ.update(given)


@contextmanager
def variables(given: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Ray reads as it runs, put back afterwards."""
    before = {name: os.environ.get(name) for name in given}
    export(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
