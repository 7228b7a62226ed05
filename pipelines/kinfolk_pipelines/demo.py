"""The whole line once: data, training, comparison, registry, promotion, an endpoint, a picture over HTTP."""

import io
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console

from kinfolk.cluster import connect, free_port
from kinfolk.serving.config import Autoscaling, ServedModel, ServeFile
from kinfolk.serving.haproxy import haproxy_environment
from kinfolk.tracking.promotion import promote
from kinfolk.tracking.server import Server, start_server
from kinfolk_pipelines.compare import Compared, compare, plans, write_report
from kinfolk_pipelines.promotion import RULE
from kinfolk_pipelines.serve import start_serving
from kinfolk_pipelines.settings import Settings

RECIPES = ("digits/conditional-vae", "digits/dcgan", "digits/edm")
_WORKERS = 2
_PORT = 8000
_PICTURES = 100
_ZOOM = 6
_REQUEST_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo leaves standing."""

    endpoints: Sequence[str]
    mlflow: Server
    dashboard: str | None
    report: Path
    samples: Path


def run_demo(settings: Settings, console: Console, out: Path) -> Demo:
    """Everything up to a served champion and a picture drawn over HTTP; repeated runs reuse what is trained."""
    started = time.perf_counter()

    def stage(text: str) -> None:
        console.print(f"[bold]{text}[/bold]  [dim]{time.perf_counter() - started:.0f} s[/dim]")

    stage("1  checking the recipes and the data")
    planned = plans(settings, RECIPES)
    stage("2  starting Ray and MLflow on this machine")
    dashboard = connect(settings.ray_address, settings.state, cpus=settings.cpus, environment=haproxy_environment())
    mlflow = start_server(settings.state)
    try:
        stage(f"3  training and measuring {len(planned)} recipes on Ray Train with {_WORKERS} workers")
        compared = compare(settings, planned, console, workers=_WORKERS)
        write_report(out / "report.html", compared, _WORKERS)
        stage("4  promoting")
        _promote_all(settings, compared, console)
        stage("5  serving the champions")
        endpoints = start_serving(settings, _serve_file(compared))
        _draw_over_http(settings, endpoints[-1], out / "samples.png")
    except BaseException:
        mlflow.stop()
        raise
    stage("done")
    return Demo(endpoints, mlflow, dashboard, out / "report.html", out / "samples.png")


def _promote_all(settings: Settings, compared: Sequence[Compared], console: Console) -> None:
    for each in compared:
        version = each.trained.version
        promotion = promote(settings.tracking, version.name, version.number, RULE)
        word = "promoted" if promotion.decision.promote else "not promoted"
        console.print(f"{version.reference}: {word}, {promotion.decision.reason}")


def _serve_file(compared: Sequence[Compared]) -> ServeFile:
    """One replica a model, sharing the machine's CPUs."""
    share = 1.0 / len(compared)
    models = [
        ServedModel(name=each.trained.version.name, num_cpus=share, autoscaling=Autoscaling(max_replicas=2))
        for each in compared
    ]
    return ServeFile(port=free_port(_PORT), models=models)


def _draw_over_http(settings: Settings, address: str, path: Path) -> None:
    """Ten samples of each class, as a user would ask for them; each pixel enlarged to be seen."""
    body = {"n": _PICTURES, "seed": 0, "label": [index % 10 for index in range(_PICTURES)]}
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    if settings.api_token is not None:
        headers["Authorization"] = f"Bearer {settings.api_token.get_secret_value()}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S) as answer:
        grid = Image.open(io.BytesIO(answer.read()))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.resize((_ZOOM * grid.width, _ZOOM * grid.height), Image.Resampling.NEAREST).save(path)


def wait(demo: Demo, console: Console, sleep: Callable[[float], None] = time.sleep) -> None:
    """Stay up until Ctrl-C."""
    console.print("Everything stays up until Ctrl-C.")
    try:
        while demo.mlflow.process.poll() is None:
            sleep(1)
    except KeyboardInterrupt:
        console.print("Stopping.")
