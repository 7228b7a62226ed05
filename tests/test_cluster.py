"""The way to Ray: what is looked at before Ray is asked, and what a local cluster is started with."""

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinfolk import cluster
from kinfolk.cluster import check_cluster, check_port, connect, free_port, local_environment, write_token
from kinfolk.errors import ConfigError


@pytest.fixture
def environment(monkeypatch):
    """The environment, as it was again afterwards."""
    before = dict(os.environ)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def ray(monkeypatch, environment):
    """Stands in for Ray, not imported yet; what ``init`` was asked and the token variables it saw are written down."""
    asked = []

    def init(**given):
        seen = {key: value for key, value in os.environ.items() if key.startswith(("RAY_A", "EXTRA"))}
        asked.append((given, seen))
        if given["address"].startswith("silent"):
            raise ConnectionError("no answer")
        url = f"127.0.0.1:{given['dashboard_port']}" if given.get("include_dashboard") else ""
        return SimpleNamespace(dashboard_url=url)

    standing_in = SimpleNamespace(init=init, is_initialized=lambda: False, asked=asked)
    monkeypatch.setitem(sys.modules, "ray", standing_in)
    return standing_in


def test_a_token_is_for_its_owner_alone_and_stays(tmp_path):
    write_token(path := tmp_path / "state" / "ray_token")
    first = path.read_text()
    write_token(path)
    assert path.read_text() == first
    assert len(bytes.fromhex(first)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    write_token(tmp_path / "other")
    assert (tmp_path / "other").read_text() != first


def test_of_two_commands_that_write_the_token_the_first_wins(tmp_path, monkeypatch):
    write_token(path := tmp_path / "ray_token")
    first = path.read_text()
    monkeypatch.setattr(Path, "is_file", lambda _: False)  # as both commands saw it
    write_token(path)
    assert path.read_text() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_local_cluster_listens_here_alone_and_asks_for_the_token(ray, tmp_path):
    url = connect(None, tmp_path, cpus=3, environment={"EXTRA": "1"})
    ((given, seen),) = ray.asked
    assert url == f"http://127.0.0.1:{given['dashboard_port']}" == seen["RAY_API_SERVER_ADDRESS"]
    assert given["address"] == "local"
    assert given["num_cpus"] == 3
    assert given["dashboard_host"] == "127.0.0.1"
    assert seen["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray_token")
    assert seen["EXTRA"] == "1"
    assert (tmp_path / "ray_token").is_file()


PORT_TAKEN = [ValueError("Failed to bind"), Exception("Failed to find a valid port for dashboard after 0 retries")]


@pytest.mark.parametrize("error", PORT_TAKEN, ids=["before", "meanwhile"])
def test_a_dashboard_port_taken_while_ray_starts_is_not_insisted_on(ray, tmp_path, monkeypatch, error):
    start, left = ray.init, [1]

    def init(**given):
        if left and left.pop():
            raise error
        return start(**given)

    monkeypatch.setattr(ray, "init", init)
    url = connect(None, tmp_path)
    ((_, seen),) = ray.asked
    assert url == seen["RAY_API_SERVER_ADDRESS"]
    left += [1, 1]
    with pytest.raises(ConfigError, match="Ray does not start on this machine: Failed to"):
        connect(None, tmp_path)


def test_ray_is_not_started_again_where_something_else_is_wrong(ray, tmp_path, monkeypatch):
    def init(**given):
        ray.asked.append(given)
        raise OSError("No space left on device")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(OSError, match="No space left"):
        connect(None, tmp_path)
    assert len(ray.asked) == 1


def test_tokens_are_on_from_the_import_of_ray(ray, tmp_path, monkeypatch, environment):
    environment.pop("RAY_AUTH_MODE", None)
    connect(None, tmp_path)
    assert "RAY_AUTH_MODE" not in environment  # imported already: Ray reads the path in init
    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(cluster, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(sys, "meta_path", [Finder(ray)])
    connect(None, tmp_path)
    assert environment["RAY_AUTH_MODE"] == "token"


class Finder:
    """Imports the stand-in as ``ray``."""

    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self) if name == "ray" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        vars(module).update(vars(self.module))


def test_a_cluster_that_is_there_is_joined_as_it_is(ray, tmp_path):
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert connect(address, tmp_path, cpus=3) is None
    ((given, _),) = ray.asked
    assert given["address"] == address
    assert "num_cpus" not in given  # Ray refuses it of a cluster that has its own
    assert not (tmp_path / "ray_token").exists()


def test_a_process_that_is_connected_stays_so(ray, tmp_path):
    ray.is_initialized = lambda: True
    assert connect(None, tmp_path) is None
    assert not ray.asked


def test_an_address_where_ray_gives_up_is_named(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "check_cluster", lambda _: None)
    with pytest.raises(ConfigError, match=r"No Ray cluster answers at silent:1: no answer\. Check ray_address"):
        connect("silent:1", tmp_path)


def test_a_cluster_is_asked_before_ray_is(ray, tmp_path):
    with pytest.raises(ConfigError, match="No Ray cluster answers"):
        connect(f"127.0.0.1:{free_port()}", tmp_path)
    assert not ray.asked


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "", "ray://head"])
def test_what_is_no_address_is_refused_with_an_example(address):
    with pytest.raises(ConfigError, match=r"is no address\. Give HOST:PORT, for example"):
        check_cluster(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_that_answers_is_let_through(form):
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        check_cluster(form.format(head.getsockname()[1]))
    check_cluster("auto")


def test_a_port_is_free_until_somebody_listens():
    check_port("127.0.0.1", port := free_port())
    check_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"Nothing can listen on 127.0.0.1:{port}.*give another --port"):
            check_port("127.0.0.1", port)


def test_a_preferred_port_is_taken_unless_somebody_listens_there():
    port = free_port()
    assert free_port(port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert free_port(port) != port


def test_a_port_just_given_up_can_be_listened_on_again():
    """A connection that lingers after a service ended does not keep the next one out."""
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind(("127.0.0.1", 0))
        service.listen()
        port = service.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        service.accept()[0].close()
    with client:
        check_port("127.0.0.1", port)


def test_an_interface_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"Nothing can listen on 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)


def test_the_token_of_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert local_environment(Path("state") / "t")["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "state" / "t")
