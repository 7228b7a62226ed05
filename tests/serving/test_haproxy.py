import subprocess
import tempfile
from pathlib import Path

import pytest

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


def test_a_folder_too_deep_for_sockets_is_refused(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 40)
    with pytest.raises(ConfigError, match="TMPDIR"):
        haproxy_environment()
