"""Is the sample of a seed the same alone, among 64, beside rows of other requests, and over HTTP?

Samples are compared with those drawn alone, one row at a time: elements as uint8, or tokens. Rows of other requests
join and leave at other calls, where the family has them with other steps, solvers and guidance. A token that flips
changes what comes after it, so the share of samples that differ is what tells the flip rate of token models.
Run: python pipelines/benchmarks/same_seed.py [http] [model ...]
"""

import io
import json
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinfolk import sampling
from kinfolk.bundle import save_bundle
from kinfolk.cluster import free_port
from kinfolk.contract import Model, SamplerState
from kinfolk.errors import ConfigError
from kinfolk.serving.config import ServedModel, ServeFile
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.figures import even_labels
from kinfolk_pipelines.models import Loaded, load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serve import start_serving
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings

ROWS = 64
OTHERS: tuple[dict[str, Any], ...] = (
    {"steps": 7},
    {"steps": 30, "guidance": 2.0},
    {"steps": 12, "solver": "dpmpp_2m"},
    {"steps": 25, "solver": "ddim"},
    {"sigmas": []},
    {"temperature": 0.7},
    {},
)
Labels = list[int] | None


def others(model: Model) -> list[dict[str, Any]]:
    """Those of ``OTHERS`` that the model takes."""
    return [options for options in OTHERS if sampling.takes(model, options)]


def mixed(model: Model, labels: Labels) -> torch.Tensor:
    """The rows with rows of other requests joining two calls apart."""
    tasks = model.tasks
    assert tasks.advance is not None
    assert tasks.render is not None
    request = sampling.make_request(model, ROWS, 0, labels)
    pending = [sampling.make_request(model, 8, 900 + 8 * i, None, options) for i, options in enumerate(others(model))]
    pictures: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        state, call = sampling.start(tasks, request), 0
        while len(state):
            if call % 2 == 0 and pending:
                state = SamplerState.cat([state, sampling.start(tasks, pending.pop())])
            state, call = tasks.advance(state), call + 1
            done = state.select(state.done)
            if len(done):
                rendered = tasks.render(done)
                pictures |= {int(seed): rendered[i] for i, seed in enumerate(done.seed)}
            state = state.select(~state.done)
    return torch.stack([pictures[seed] for seed in range(ROWS)])


def post(address: str, body: dict[str, Any]) -> torch.Tensor:
    """What the endpoint answers. -> (N, C, H, W) uint8"""
    headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return torch.from_numpy(np.load(io.BytesIO(answer.read()), allow_pickle=False))


def over_http(address: str, model: Model, labels: Labels) -> torch.Tensor:
    """The rows as single requests, in flight together with others."""
    options = others(model)
    wanted = [{"n": 1, "seed": seed, **({"label": labels[seed]} if labels else {})} for seed in range(ROWS)]
    more = [{"n": 4, "seed": 5000 + i, **options[i % len(options)]} for i in range(ROWS)]
    bodies = [body for pair in zip(wanted, more, strict=True) for body in pair]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: post(address, body), bodies))
    return torch.cat(answers[::2])


def served(settings: Settings, loaded: Loaded, labels: Labels) -> torch.Tensor:
    """The rows from an endpoint of exactly this version, which is taken down again."""
    from kinfolk.serving.launch import stop_serving  # loads Ray

    with tempfile.TemporaryDirectory() as folder:
        save_bundle(loaded.model, Path(folder) / "bundle")
        endpoint = ServedModel(name=loaded.version.name, bundle=Path(folder) / "bundle", num_cpus=1)
        (address,) = start_serving(settings, ServeFile(port=free_port(), models=[endpoint]))
        try:
            return over_http(address, loaded.model, labels)
        finally:
            stop_serving()


def compare(settings: Settings, reference: str, http: bool) -> None:
    """Draw alone, together, mixed and over HTTP, and print how much differs."""
    loaded = load_model(settings, reference)
    model, labels = loaded.model, even_labels(loaded.model, ROWS)
    if "sample" not in model.tasks.starts:
        raise ConfigError(f"{loaded.version.reference} draws no samples.")
    shown = model.spec.to_levels if model.spec.kind == "tokens" else model.spec.to_uint8
    rows = [sampling.sample(model, 1, seed, labels[seed] if labels else None) for seed in range(ROWS)]
    alone = shown(torch.cat(rows)).int()
    found = {
        "in a batch of 64": shown(sampling.sample(model, ROWS, 0, labels)),
        "beside rows of other requests": shown(mixed(model, labels)),
    }
    if http:
        found["over HTTP, 16 connections, others in flight"] = served(settings, loaded, labels)
    for name, samples in found.items():
        difference = (samples.int() - alone).abs()
        differ = int(difference.flatten(1).any(dim=1).sum())
        elements = f"{int((difference > 0).sum())} of {alone.numel():,}"
        print(f"| {reference} | {name} | {differ} of {ROWS} | {elements} | {int(difference.max())} |", flush=True)


@plain_mistakes
def main(*words: str) -> None:
    """A line for each model and way."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    print("| model | how | samples that differ | elements | largest difference |\n|---|---|---|---|---|")
    for reference in [word for word in words if word != "http"] or ["digits-edm"]:
        compare(settings, reference, "http" in words)


if __name__ == "__main__":
    main(*sys.argv[1:])
