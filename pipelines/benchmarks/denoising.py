"""How much noise does a model take away? Squared error a pixel of denoised test samples, beside two plain ways.

The linear estimate weighs each pixel against its own mean and variance over the train split, the best that can be done
pixel by pixel with a straight line; clamping only keeps to the data's range.
Run after training: python pipelines/benchmarks/denoising.py mnist-energy mnist-edm
"""

import sys

import torch
from torch import Tensor

from kinfolk.contract import Batch, Model, RequestError
from kinfolk.errors import ConfigError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import Settings, apply_environment, load_settings

ROWS = 128  # of the test split, in stored order
LEVELS = (0.1, 0.3, 0.5, 1.0)  # standard deviations of the noise, of data in [-1, 1]
LEARNED = 4096  # training samples whose mean and variance the linear estimate knows


def linear(noisy: Tensor, known: Tensor, sigma: float) -> Tensor:
    """The best linear estimate of each element by itself. (B, *), (N, *) -> (B, *)"""
    mean, variance = known.mean(0), known.var(0)
    return mean + (noisy - mean) * variance / (variance + sigma**2)


def error(estimate: Tensor, x: Tensor) -> str:
    """Mean squared error an element, of an estimate kept to the data's range."""
    return f"{float((estimate.clamp(-1, 1) - x).square().mean()):.4f}"


def denoised(model: Model, test: Batch, noisy: Tensor, sigma: float) -> str:
    """The model's error, or why there is none."""
    assert model.tasks.denoise is not None
    label = test.label if "label" in model.tasks.conditions else None
    try:
        return error(model.tasks.denoise(noisy, torch.full((len(noisy),), sigma), label), test.x)
    except RequestError:
        return "not its level"


@torch.no_grad()
def measure(settings: Settings, reference: str) -> None:
    """Print a row for each noise level."""
    loaded = load_model(settings, reference)
    if loaded.model.tasks.denoise is None:
        raise ConfigError(f"{loaded.version.reference} cannot denoise.")
    data = open_dataset(settings, loaded.version.lineage.data).prepared
    test, train = data.source("test").take(0, ROWS), data.source("train")
    known, generator = train.take(0, min(LEARNED, len(train))).x, torch.Generator().manual_seed(0)
    for sigma in LEVELS:
        noisy = test.x + sigma * torch.randn(test.x.shape, generator=generator)
        plain = f"{error(noisy, test.x)} | {error(linear(noisy, known, sigma), test.x)}"
        print(f"| {loaded.version.reference} | {sigma} | {plain} | {denoised(loaded.model, test, noisy, sigma)} |")


@plain_mistakes
def main(*references: str) -> None:
    """Measure every model named."""
    apply_environment(mlflow_environment())
    print("| model | noise | clamped | linear | denoised |\n|---|---|---|---|---|")
    for reference in references:
        measure(load_settings(), reference)


if __name__ == "__main__":
    main(*sys.argv[1:])
