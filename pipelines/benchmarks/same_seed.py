"""Is the sample of a seed the same alone, among 64, and beside rows of other requests?

Samples are compared with those drawn alone, one row at a time: elements as uint8, or tokens. Rows of other requests
join and leave at other calls, where the family has them with other steps, solvers and guidance. A token that flips
changes what comes after it, so the share of samples that differ is what tells the flip rate of token models.
Run: python pipelines/benchmarks/same_seed.py [model ...]
"""

import sys
from typing import Any

import torch

from kinfolk import sampling
from kinfolk.contract import Model, SamplerState
from kinfolk.errors import ConfigError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.figures import even_labels
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.scripts import plain_mistakes
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


def others(model: Model) -> list[dict[str, Any]]:
    """Those of ``OTHERS`` that the model takes."""
    return [options for options in OTHERS if sampling.takes(model, options)]


def mixed(model: Model, labels: list[int] | None) -> torch.Tensor:
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


def compare(settings: Settings, reference: str) -> None:
    """Draw alone, together and mixed, and print how much differs."""
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
    for name, samples in found.items():
        difference = (samples.int() - alone).abs()
        differ = int(difference.flatten(1).any(dim=1).sum())
        elements = f"{int((difference > 0).sum())} of {alone.numel():,}"
        print(f"| {reference} | {name} | {differ} of {ROWS} | {elements} | {int(difference.max())} |", flush=True)


@plain_mistakes
def main(*references: str) -> None:
    """A line for each model and way."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    print("| model | how | samples that differ | elements | largest difference |\n|---|---|---|---|---|")
    for reference in references or ("digits-edm",):
        compare(settings, reference)


if __name__ == "__main__":
    main(*sys.argv[1:])
