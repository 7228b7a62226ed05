"""Put registered models behind HTTP."""

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kinfolk.cluster import check_port, connect
from kinfolk.serving.config import ServeFile, load_serve_file
from kinfolk.serving.haproxy import haproxy_environment
from kinfolk_pipelines.settings import Settings


def serve_file(path: Path, host: str | None, port: int | None) -> ServeFile:
    """The serve file with the address of the command line laid over it.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    given = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    return load_serve_file(path).model_copy(update=given)


def start_serving(settings: Settings, file: ServeFile) -> Sequence[str]:
    """Bring every model of ``file`` up and return the addresses to sample at.

    Raises:
        ConfigError: the address is taken or the cluster too small.
        KinfolkError: a model is not registered, or did not come up.
    """
    if settings.ray_address is None:  # the head of a cluster may be another machine
        check_port(file.host, file.port)
    connect(settings.ray_address, settings.state, cpus=settings.cpus, environment=haproxy_environment())
    from kinfolk.serving.launch import Registry, serve_models

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    registry = Registry(settings.tracking, str(settings.cache), secret=settings.webhook_secret)
    serve_models(file, registry, settings.access)
    return [f"http://{file.host}:{file.port}{model.path}/sample" for model in file.models]


def serve_until_interrupted(settings: Settings, file: ServeFile, say: Callable[[str], None]) -> None:
    """Serve, say where, and take everything down at Ctrl-C or SIGTERM."""
    addresses = start_serving(settings, file)
    for address in addresses:
        say(f"POST {address}")
    root = f"http://{file.host}:{file.port}"
    say(f"models     {root}/v1/models\nplayground {root}/\nCtrl-C ends.")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    say("Finishing the requests that are being sampled.")
    from kinfolk.serving.launch import stop_serving

    stop_serving()
