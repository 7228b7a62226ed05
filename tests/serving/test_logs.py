import io
import logging
import logging.handlers

import pytest

from kinfolk.serving.logs import log_as_serve


@pytest.fixture
def lines(monkeypatch):
    """What the handlers of Serve and of the root have written."""
    written = io.StringIO()
    for name in ("ray.serve", None):
        handler = logging.StreamHandler(written)
        handler.setFormatter(logging.Formatter(f"{name}: %(levelname)s %(message)s"))
        kept = logging.handlers.MemoryHandler(1000, target=handler)  # as Serve's for its file
        monkeypatch.setattr(logging.getLogger(name), "handlers", [kept if name else handler])
    ours = logging.getLogger("kinfolk")
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", True)
    before = ours.level
    yield lambda: written.getvalue().splitlines()
    ours.setLevel(before)


def test_what_the_platform_logs_is_written_once_and_at_once_as_serve_writes_its_own_lines(lines):
    log_as_serve()
    logger = logging.getLogger("kinfolk.serving.follower")
    logger.info("%s is at version %s.", "walk", 2)
    logger.debug("nothing of interest")
    logging.getLogger("another").warning("not ours")
    assert lines() == ["ray.serve: INFO walk is at version 2.", "None: WARNING not ours"]
