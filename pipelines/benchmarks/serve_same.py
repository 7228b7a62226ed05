"""Is the picture of a seed the same from an endpoint under full load of mixed requests as drawn alone?

    python pipelines/benchmarks/serve_same.py BUNDLE [--requests 1000] [--connections 32]

Requests of one to four samples, with other steps, solvers, guidance and classes from one to the next, are all that
time as many under way as there are connections. Every sample is then drawn again alone, one row at a time. Prints a
table in Markdown, and ends with 1 if a sample differs by more than one level.
"""

import argparse
import io
import json
import random
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinfolk import sampling
from kinfolk.bundle import load_bundle
from kinfolk.contract import Model
from kinfolk.serving.config import ServedModel
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import serving

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 5},
    {"steps": 20, "solver": "ddim"},
    {"steps": 9, "solver": "dpmpp_2m"},
    {"steps": 8, "guidance": 2.0},
    {"steps": 30, "solver": "ddim", "eta": 1.0},
    {"temperature": 0.7},
    {"truncation": 0.8},
)
MOST = 4


def requests_for(model: Model, count: int) -> list[dict[str, Any]]:
    """Requests of the kinds that the model takes, in no order, no two with a seed in common."""
    generator, kinds = random.Random(0), [kind for kind in KINDS if sampling.takes(model, kind)]
    classes = model.spec.classes if "label" in model.tasks.conditions else None
    wanted = []
    for number in range(count):
        label = {"label": generator.randrange(classes)} if classes and generator.random() < 0.5 else {}
        more = {"n": generator.randint(1, MOST), "seed": number * MOST}
        wanted.append({**generator.choice(kinds), **label, **more})
    return wanted


def asked(url: str, body: dict[str, Any]) -> torch.Tensor:
    """What the endpoint answers. -> (n, C, H, W) uint8"""
    headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=120) as answer:
        return torch.from_numpy(np.load(io.BytesIO(answer.read()), allow_pickle=False))


def alone(model: Model, body: dict[str, Any]) -> torch.Tensor:
    """The same drawn here, one row at a time."""
    options = {name: value for name, value in body.items() if name not in ("n", "seed", "label")}
    rows = [
        sampling.sample(model, 1, body["seed"] + row, body.get("label"), options, max_rows=1)
        for row in range(body["n"])
    ]
    return model.spec.to_uint8(torch.cat(rows))


@plain_mistakes
def main() -> None:
    """Ask, draw again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_bundle(arguments.bundle)
    bodies = requests_for(model, arguments.requests)
    with serving([ServedModel(name="model", bundle=arguments.bundle)]) as server:
        with ThreadPoolExecutor(arguments.connections) as pool:
            answers = list(pool.map(lambda body: asked(server.url("model"), body), bodies))
        calls, evaluations = server.get("/v1/models/model/")["made"].values()
    off = [
        (answer.int() - alone(model, body).int()).abs().flatten(1).amax(1)
        for answer, body in zip(answers, bodies, strict=True)
    ]
    most = torch.cat(off)
    print("| requests | samples | rows in a call | samples that differ | by more than one level | largest |")
    print("|---|---|---|---|---|---|")
    differ = f"{int((most > 0).sum())} | {int((most > 1).sum())} | {int(most.max())}"
    print(f"| {len(bodies)} | {len(most)} | {evaluations / calls:.1f} | {differ} |")
    if int(most.max()) > 1:
        sys.exit(1)


if __name__ == "__main__":
    main()
