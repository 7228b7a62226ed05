"""Is the picture of a seed the same alone, among 64, beside rows at other steps and guidance, and over HTTP?

Pictures are compared as uint8 with those drawn alone, one row at a time. Over HTTP, requests for single pictures are
sent while others with more and fewer steps and with guidance keep joining and leaving.
Run: python pipelines/benchmarks/same_seed.py [model]
"""

import io
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from kinfolk import sampling
from kinfolk.cluster import free_port
from kinfolk.contract import Model, SamplerState
from kinfolk.serving.config import ServedModel, ServeFile
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.serve import start_serving
from kinfolk_pipelines.settings import apply_environment, load_settings

ROWS = 64
OTHERS = (
    {"steps": 7},
    {"steps": 30, "guidance": 2.0},
    {"steps": 12, "solver": "dpmpp_2m"},
    {"steps": 25, "solver": "ddim"},
)


def mixed(model: Model, labels: list[int]) -> torch.Tensor:
    """The rows with rows of other requests joining two calls apart."""
    tasks = model.tasks
    request = sampling.make_request(model, ROWS, 0, labels)
    pending = [sampling.make_request(model, 8, 900 + 8 * i, None, options) for i, options in enumerate(OTHERS)]
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


def over_http(address: str, labels: list[int]) -> torch.Tensor:
    """The rows as single requests, in flight together with others."""
    wanted = [{"n": 1, "seed": seed, "label": labels[seed]} for seed in range(ROWS)]
    others = [{"n": 4, "seed": 5000 + i, **OTHERS[i % len(OTHERS)]} for i in range(ROWS)]
    bodies = [body for pair in zip(wanted, others, strict=True) for body in pair]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: post(address, body), bodies))
    return torch.cat(answers[::2])


def main(reference: str) -> None:
    """Draw alone, together, mixed and over HTTP, and print how many pixels differ."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    model = load_model(settings, reference).model
    labels = [seed % 10 for seed in range(ROWS)]
    to_uint8 = model.spec.to_uint8
    alone = to_uint8(torch.cat([sampling.sample(model, 1, seed, labels[seed]) for seed in range(ROWS)]))
    file = ServeFile(port=free_port(), models=[ServedModel(name=reference.partition("@")[0], num_cpus=1)])
    (address,) = start_serving(settings, file)
    found = {
        "in a batch of 64": to_uint8(sampling.sample(model, ROWS, 0, labels)),
        "beside rows at other steps, solvers and guidance": to_uint8(mixed(model, labels)),
        "over HTTP, 16 connections, others in flight": over_http(address, labels),
    }
    print(f"{reference}, {ROWS} pictures, {alone.numel()} pixels, against each drawn alone\n")
    print("| how | pixels that differ | largest difference, levels of 255 |\n|---|---|---|")
    for name, pictures in found.items():
        difference = (pictures.int() - alone.int()).abs()
        print(f"| {name} | {int((difference > 0).sum())} | {int(difference.max())} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits-edm")
