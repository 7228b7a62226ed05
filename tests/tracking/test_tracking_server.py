import socket
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError
from kinfolk.tracking.server import start_server


def test_a_port_in_use_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used"):
            start_server(tmp_path / "server", taken.getsockname()[1])
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=f"port={port}"):
        start_server(tmp_path / "server", port)
