import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest

from kinfolk.cluster import free_port
from kinfolk.errors import ConfigError
from kinfolk.serving.haproxy import haproxy_environment


def test_statistics_are_narrowed_to_the_loopback_interface_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/true")
    variables = haproxy_environment()
    statistics, metrics = variables["RAY_SERVE_HAPROXY_STATS_PORT"], variables["RAY_SERVE_HAPROXY_METRICS_PORT"]
    configuration = tmp_path / "haproxy.cfg"
    given = ["frontend prometheus", f"    bind :{metrics}", "    bind *:8000", "listen stats", f"  bind *:{statistics}"]
    configuration.write_text("\n".join(given) + "\n")
    launcher = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    subprocess.run([launcher, "-db", "-f", str(configuration)], check=True)
    given[1], given[4] = f"    bind 127.0.0.1:{metrics}", f"  bind 127.0.0.1:{statistics}"
    assert configuration.read_text().splitlines() == given
    assert Path(launcher).parent.stat().st_mode & 0o077 == 0


def test_the_head_of_a_request_must_come_in_time_in_every_part_that_serves(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/true")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("global\n    log x\ndefaults\n    mode http\n    timeout client 75s\n")
    launcher = haproxy_environment()["RAY_SERVE_HAPROXY_BINARY_PATH"]
    subprocess.run([launcher, "-db", "-f", str(configuration)], check=False)
    lines = configuration.read_text().splitlines()
    assert lines[2:4] == ["defaults", "    timeout http-request 15s"]
    assert len(lines) == 6


def test_a_folder_too_deep_for_sockets_is_refused(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 40)
    with pytest.raises(ConfigError, match="TMPDIR"):
        haproxy_environment()


@pytest.fixture
def proxy(tmp_path):
    """The answer of HAProxy, started as Serve does, which tells a request's name as it would be passed on."""
    launcher, port = haproxy_environment()["RAY_SERVE_HAPROXY_BINARY_PATH"], free_port()
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
        f"frontend http_frontend\n    bind 127.0.0.1:{port}\n"
        "    http-request return status 200 hdr Name [%[req.fhdr(x-request-id)]]\n"
    )
    process = subprocess.Popen([launcher, "-db", "-f", str(configuration)])
    transport = httpx.HTTPTransport(retries=10)
    with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
        yield client
    process.terminate()
    process.wait()


def test_only_plain_names_of_requests_are_passed_on(proxy):
    for name in ("3f2-A_b.9", "x" * 64):
        assert proxy.get("/", headers={"X-Request-ID": name}).headers["Name"] == f"[{name}]"
    for name in ("x" * 65, "a b", 'a"b', "a,b", ""):
        assert proxy.get("/", headers={"X-Request-ID": name}).headers["Name"] == "[]"
    twice = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
    assert proxy.get("/", headers=twice).headers["Name"] == "[]"
