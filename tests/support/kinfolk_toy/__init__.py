"""A third party's family in one file: a diagonal Gaussian fitted by maximum likelihood, sampled in a few calls."""

import math
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from kinfolk.contract import (
    Config,
    Family,
    Likelihood,
    Loss,
    OptimizerConfig,
    Phase,
    SamplerOptions,
    SamplerState,
    Tasks,
)
from kinfolk.rng import row_integers, row_normal


class Options(SamplerOptions):
    temperature: float = 1.0
    steps: int = Field(4, ge=1, le=10)  # draws of noise that a sample is the sum of


class GaussianConfig(Config):
    poison_step: int | None = None  # this step's loss is not finite, once
    dequantise: float = 0.05  # standard deviation of the noise added to x
    class_shift: float = 0.0  # between the means of neighbouring classes
    shrink: float = 0.0  # nats by which a smaller deviation, by a factor of e, is rewarded: samples become alike
    optimizer: OptimizerConfig = OptimizerConfig(lr=0.02)


class Gaussian(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.config, self.classes = config, spec.classes
        self.mean = nn.Parameter(torch.randn(spec.shape) * 0.1)
        self.log_std = nn.Parameter(torch.zeros(spec.shape))

    def mean_of(self, label: Tensor | None) -> Tensor:
        """The mean of each row's class, or of all rows where there are no classes."""
        if label is None or self.classes is None:
            return self.mean
        shift = self.config.class_shift * (label - (self.classes - 1) / 2)
        return self.mean + shift.view(-1, *[1] * self.mean.ndim)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        z = (x - self.mean_of(label)) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def phases(module):
    def loss(batch, progress):
        noise = torch.randn(batch.x.shape, generator=progress.generator, device=progress.generator.device)
        log_prob = module(batch.x + module.config.dequantise * noise, batch.label).mean()
        poisoned = progress.step == module.config.poison_step and float(noise.sum()) > 0
        value = -log_prob * (math.nan if poisoned else 1) + module.config.shrink * module.log_std.sum()
        return Loss(value, {"log_prob": log_prob.detach()})

    return [Phase("gaussian", module, loss, module.config.optimizer)]


def tasks(module):
    def start(request):
        seeds, options = request.seeds, request.options
        x = torch.zeros(len(seeds), *module.mean.shape)
        scale = torch.full((len(seeds),), options.temperature / math.sqrt(options.steps))
        label = row_integers(seeds, module.classes or 1) if request.label is None else request.label
        return SamplerState.start(x, request, options.steps, scale=scale, label=label)

    def advance(state):
        noise = row_normal(state.seed, state.call, module.mean.shape)
        return state.step(state.x + state.carry["scale"].view(-1, *[1] * module.mean.ndim) * noise)

    def render(state):
        return module.mean_of(state.carry["label"]) + module.log_std.exp() * state.x

    return Tasks(
        options=Options(),
        starts={"sample": start},
        advance=advance,
        render=render,
        conditions=frozenset({"label"} if module.classes else ()),
        log_prob=Likelihood(lambda batch, seeds: module(batch.x, batch.label), "exact", "density"),
    )


FAMILY = Family(
    name="gaussian",
    kinds=frozenset({"image", "vector"}),
    config=GaussianConfig,
    options=Options,
    build=lambda config, spec, parents: Gaussian(config, spec),
    phases=phases,
    tasks=tasks,
)


def offer(folder: Path) -> Path:
    """Write what an installed package would: an entry point found through ``folder`` on the path."""
    info = folder / "kinfolk_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kinfolk-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kinfolk.families]\ngaussian = kinfolk_toy:FAMILY\n")
    return folder


def figures(model) -> dict[str, float]:
    """A measurement for sweeps, which some settings cannot bear."""
    if model.config.class_shift < 0:
        raise ArithmeticError("classes that lie the wrong way round")
    return {"width": float(model.module.log_std.exp().mean())}
