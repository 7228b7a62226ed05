"""What each solver makes of one trained network: fd_local against network evaluations, and the ratios to expect.

The ratios are those of the papers on CIFAR-10 (DDIM, Table 1; DPM-Solver++; EDM), asked of the model's own data. Every
solver draws from the same seeds, as many samples of each class (which count as often as the data has them), its
estimates kept within the data's range where they are samples and not latents.
Small sets say little, as fd_local falls with their size and differs between seeds: use 5,000 samples or more.
Run after training: python pipelines/benchmarks/solver_quality.py mnist-edm mnist-ddpm-unet --samples 5000
Some rows only:     python pipelines/benchmarks/solver_quality.py mnist-edm --rows "DDIM 20" "DPM-Solver++(2M) 10"
Networks in bfloat16, every row alike, cost half the time: --bfloat16
"""

import argparse
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kinfolk import sampling
from kinfolk.contract import Model
from kinfolk.data.prepared import Prepared
from kinfolk.errors import ConfigError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.figures import even_labels
from kinfolk_pipelines.figures_on_samples import on_features
from kinfolk_pipelines.models import feature_model, load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings

RUNS: Mapping[str, Mapping[str, Any]] = {
    "DDPM 1000": {"solver": "ddpm", "steps": 1000, "variance": "large"},
    "DDIM 10": {"solver": "ddim", "steps": 10},
    "DDIM 20": {"solver": "ddim", "steps": 20},
    "DDIM 50": {"solver": "ddim", "steps": 50},
    "DDIM 100": {"solver": "ddim", "steps": 100},
    "Heun 18": {"solver": "heun", "steps": 18},
    "Heun 18, churn 4": {"solver": "heun", "steps": 18, "churn": 4.0, "churn_low": 0.05, "churn_high": 50.0},
    "Heun 18, eta 1": {"solver": "heun", "steps": 18, "eta": 1.0},
    "Heun 18, eta 1, to 0.02": {"solver": "heun", "steps": 18, "eta": 1.0, "sigma_min": 0.02},
    "DPM-Solver++(2M) 10": {"solver": "dpmpp_2m", "steps": 10},
    "DPM-Solver++(2M) 10, to 0.02": {"solver": "dpmpp_2m", "steps": 10, "sigma_min": 0.02},
    "DPM-Solver++(2M) 20": {"solver": "dpmpp_2m", "steps": 20},
    "SDE-DPM-Solver++(2M) 10": {"solver": "dpmpp_2m", "steps": 10, "eta": 1.0},
    "SDE-DPM-Solver++(2M) 10, to 0.02": {"solver": "dpmpp_2m", "steps": 10, "eta": 1.0, "sigma_min": 0.02},
    "SDE-DPM-Solver++(2M) 18": {"solver": "dpmpp_2m", "steps": 18, "eta": 1.0},
}
BARS = (  # (a, b, largest fd_local of a over that of b)
    ("DPM-Solver++(2M) 10", "DDIM 20", 1.0),
    ("DPM-Solver++(2M) 10, to 0.02", "DDIM 20", 1.0),
    ("SDE-DPM-Solver++(2M) 10", "DDIM 20", 1.0),
    ("SDE-DPM-Solver++(2M) 10, to 0.02", "DDIM 20", 1.0),
    ("DDIM 50", "DDPM 1000", 1.5),
    ("Heun 18", "DDPM 1000", 1.0),
    ("Heun 18, churn 4", "DDPM 1000", 1.0),
    ("Heun 18, eta 1", "DDPM 1000", 1.0),
    ("Heun 18, eta 1, to 0.02", "DDPM 1000", 1.0),
)


@dataclass(frozen=True, slots=True)
class Draw:
    """What every solver is asked for."""

    samples: int
    seed: int
    bfloat16: bool  # what the network computes in; the features stay in float32


@dataclass(frozen=True, slots=True)
class Run:
    """One solver at one number of steps."""

    fd_local: float
    nfe: int
    samples_per_second: float


def runs_of(model: Model) -> dict[str, dict[str, Any]]:
    """``RUNS`` with estimates kept within the data's range, where there is one and the model can."""
    clamp = {"clamp": True}
    within = model.spec.levels is not None and sampling.takes(model, clamp)
    return {name: {**options, **clamp} if within else dict(options) for name, options in RUNS.items()}


def run(model: Model, features: Model, data: Prepared, options: Mapping[str, Any], draw: Draw) -> Run:
    """Draw and measure."""
    labels = even_labels(model, draw.samples)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=draw.bfloat16):
        x = sampling.sample(model, draw.samples, draw.seed, labels, options)
    seconds = time.perf_counter() - started
    figures = on_features(features, data.source("train"), data.source("test"), x, labels)
    nfe = sampling.evaluations(model.tasks, sampling.make_request(model, 1, 0, None, options))
    return Run(figures["fd_local"], nfe, draw.samples / seconds)


def bars(runs: Mapping[str, Run]) -> Iterator[str]:
    """A line for each ratio to expect, of which both sides were measured."""
    for a, b, most in BARS:
        if not {a, b} <= runs.keys():
            continue
        ratio = runs[a].fd_local / runs[b].fd_local
        yield f"| {a} / {b} | {ratio:.2f} | {most:g} | {'yes' if ratio <= most else 'no'} |"


def measure(settings: Settings, reference: str, rows: Collection[str], draw: Draw) -> None:
    """Print a row for each solver as it comes, then what becomes of each bar."""
    loaded = load_model(settings, reference)
    data = open_dataset(settings, loaded.version.lineage.data).prepared
    features = feature_model(settings, loaded.version.lineage.data).model
    if not sampling.takes(loaded.model, RUNS["Heun 18"]):
        raise ConfigError(f"{loaded.version.reference} is no diffusion model: it has no solvers to choose.")
    print(f"\n{loaded.version.reference}, {draw}\n")
    print("| solver and steps | network evaluations | fd_local | samples/s |\n|---|---|---|---|", flush=True)
    runs = {}
    for name, options in runs_of(loaded.model).items():
        if name not in rows:
            continue
        found = runs[name] = run(loaded.model, features, data, options, draw)
        print(f"| {name} | {found.nfe} | {found.fd_local:.3f} | {found.samples_per_second:.1f} |", flush=True)
    print("\n| ratio of fd_local | measured | at most | holds |\n|---|---|---|---|", *bars(runs), sep="\n")


@plain_mistakes
def main() -> None:
    """Measure every model named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="registered diffusion models, e.g. mnist-edm or mnist-edm/3")
    parser.add_argument("--samples", type=int, default=5000, help="of every row")
    parser.add_argument("--seed", type=int, default=1, help="of every row; 1 is that of `kinfolk evaluate`")
    parser.add_argument("--bfloat16", action="store_true", help="networks compute in bfloat16, on the CPU")
    parser.add_argument("--rows", nargs="+", choices=RUNS, default=list(RUNS), help="solvers to measure")
    given = parser.parse_args()
    apply_environment(mlflow_environment())
    settings = load_settings()
    for reference in given.models:
        measure(settings, reference, given.rows, Draw(given.samples, given.seed, given.bfloat16))


if __name__ == "__main__":
    main()
