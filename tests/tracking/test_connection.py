import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError, RegistryError
from kinfolk.tracking.connection import reach, shown, sqlite_path
from kinfolk.tracking.runs import Tracker


def test_importing_tracking_loads_no_mlflow_and_touches_nothing(tmp_path: Path) -> None:
    program = """
import os, pkgutil, sys, threading
before = dict(os.environ)
import kinfolk.tracking
for module in pkgutil.iter_modules(kinfolk.tracking.__path__):
    __import__(f"kinfolk.tracking.{module.name}")
assert "mlflow" not in sys.modules and "ray" not in sys.modules, "loaded"
assert dict(os.environ) == before, "environment"
assert threading.active_count() == 1, "threads"
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome")

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Stranger)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_training_is_refused_while_mlflow_is_down(tmp_path: Path, scheme: str) -> None:
    address = f"{scheme}://127.0.0.1:{_closed_port()}"
    tracker = Tracker(address, "digits", tmp_path / "spool")
    for attempt in (tracker.check, lambda: tracker.start_run("vae", {}, {})):
        with pytest.raises(RegistryError, match="out of reach at"):
            attempt()
    assert not (tmp_path / "spool").exists()


def test_a_server_that_is_not_mlflow_is_refused(stranger: str) -> None:
    with pytest.raises(RegistryError, match="no MLflow server"):
        reach(stranger)


def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(RegistryError, match="timed out"):
            reach(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to hold a header of one" * 20)
    with pytest.raises(RegistryError, match="not a database"):
        reach(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.parametrize(
    "address", ["", "mlruns", "file:///tmp/mlruns", "databricks", "ftp://host", "http://", "sqlite://"]
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///PATH"):
        reach(address)


def test_messages_show_no_password() -> None:
    assert shown("postgresql://me:secret@host:5432/db") == "postgresql://host:5432/db"
    assert shown("http://me:se@cret@host") == "http://host"
    for address in ("sqlite:////data/a@b/mlflow.db", "http://host:5000/path", "mlruns", ""):
        assert shown(address) == address
    with pytest.raises(RegistryError) as caught:
        reach(f"http://me:secret@127.0.0.1:{_closed_port()}")
    assert "secret" not in str(caught.value)


def test_a_sqlite_address_names_its_file() -> None:
    assert sqlite_path("sqlite:////data/mlflow.db") == Path("/data/mlflow.db")
    assert sqlite_path("sqlite:///mlflow.db") == Path.cwd() / "mlflow.db"
    assert sqlite_path("http://host") is None
