"""A third party's family in one file: a diagonal Gaussian fitted by maximum likelihood, sampled in four calls."""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from kinfolk.contract import Config, Family, Likelihood, Loss, OptimizerConfig, Phase, SamplerState, Tasks
from kinfolk.rng import row_normal

_CALLS = 4


class Options(Config):
    temperature: float = 1.0


class GaussianConfig(Config):
    poison_step: int | None = None  # this step's loss is not finite, once
    dequantise: float = 0.05  # standard deviation of the noise added to x
    optimizer: OptimizerConfig = OptimizerConfig(lr=0.02)


class Gaussian(nn.Module):
    def __init__(self, config, spec):
        super().__init__()
        self.config = config
        self.mean = nn.Parameter(torch.randn(spec.shape) * 0.1)
        self.log_std = nn.Parameter(torch.zeros(spec.shape))

    def forward(self, x: Tensor) -> Tensor:
        z = (x - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def phases(module):
    def loss(batch, progress):
        noise = torch.randn(batch.x.shape, generator=progress.generator, device=progress.generator.device)
        log_prob = module(batch.x + module.config.dequantise * noise).mean()
        poisoned = progress.step == module.config.poison_step and float(noise.sum()) > 0
        return Loss(-log_prob * (math.nan if poisoned else 1), {"log_prob": log_prob.detach()})

    return [Phase("gaussian", module, loss, module.config.optimizer)]


def tasks(module):
    def start(request):
        shape = module.mean.shape
        temperature = torch.full((len(request.seeds),), request.options.temperature)
        return SamplerState.start(torch.zeros(len(request.seeds), *shape), request, _CALLS, temperature=temperature)

    def advance(state):
        noise = row_normal(state.seed, state.call, module.mean.shape) / math.sqrt(_CALLS)
        scale = state.carry["temperature"].view(-1, *[1] * module.mean.ndim)
        return state.step(state.x + scale * noise)

    def render(state):
        return module.mean + module.log_std.exp() * state.x

    return Tasks(
        options=Options(),
        starts={"sample": start},
        advance=advance,
        render=render,
        log_prob=Likelihood(lambda batch, seeds: module(batch.x), "exact", "density"),
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


def paths(folder: Path) -> list[str]:
    """What a process must have on its path to find this family."""
    return [str(folder), str(Path(__file__).parents[1]), *sys.path]
