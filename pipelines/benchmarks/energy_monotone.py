"""The Energy Transformer: does its energy fall at every step, and does it complete better than an autoencoder?

Falling energy is counted over random starts in float64, at several rates, with random weights and with trained ones.
Completion is the mean squared error of hidden patches of the test split, beside networks with as many parameters
(within a step of width), trained here by the same loop on the same samples, masks and schedule: a fully connected
autoencoder with a bottleneck, and plain transformers over the same patches without one, of one, two and four blocks.
Run after training: python pipelines/benchmarks/energy_monotone.py mnist-energy-transformer [starts]
"""

import copy
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk.config import Recipe, parse
from kinfolk.contract import DataSpec, Family, Model, Phase, Tasks
from kinfolk.data.prepared import Prepared
from kinfolk.errors import ConfigError
from kinfolk.rng import generator
from kinfolk.tracking.connection import mlflow_environment
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_families._shared.transformer import Block, patchify, unpatchify
from kinfolk_families.energy import FAMILY
from kinfolk_families.energy.config import EnergyConfig, MaskConfig, Options, TransformerConfig
from kinfolk_families.energy.losses import completion_loss, hidden_patches
from kinfolk_families.energy.transformer import EnergyBlock, EnergyTransformer
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings

RATES = (0.1, 0.03, 0.01)
DEPTHS = {"fully connected autoencoder": 0, "1 transformer block": 1, "2 blocks": 2, "4 blocks": 4}
HEADS = 2  # of the rivals; their width is a multiple
TEST_MASK = MaskConfig(least=0.5, most=0.5, replaced=1.0)
CHUNK = 256


class PatchAutoencoder(nn.Module):
    """The Energy Transformer's embedding and head around plain transformer blocks. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: EnergyConfig, system: TransformerConfig, spec: DataSpec, width: int, depth: int) -> None:
        super().__init__()
        C, H, W = spec.shape
        self.config, self.system, self.shape = config, system, (C, H, W)
        self.tokens, elements = H * W // system.patch**2, C * system.patch**2
        self.embed = nn.Linear(elements, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.randn(self.tokens, width))
        self.blocks = nn.Sequential(*(Block(width, HEADS) for _ in range(depth)))
        self.output = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, elements))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, H, W), (B, T) bool -> (B, C, H, W)"""
        tokens = torch.where(hidden[:, :, None], self.mask_token, self.embed(patchify(x, self.system.patch)))
        return unpatchify(self.output(self.blocks(tokens + self.positions)), self.shape, self.system.patch)


class BottleneckAutoencoder(nn.Module):
    """A picture with hidden patches at 0, through a layer of few units, whole again. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, config: EnergyConfig, system: TransformerConfig, spec: DataSpec, width: int) -> None:
        super().__init__()
        C, H, W = spec.shape
        self.config, self.system, self.shape = config, system, (C, H, W)
        self.tokens = H * W // system.patch**2
        self.layers = nn.Sequential(nn.Linear(spec.dims, width), nn.ReLU(), nn.Linear(width, spec.dims))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, H, W), (B, T) bool -> (B, C, H, W)"""
        seen = patchify(x, self.system.patch).masked_fill(hidden[:, :, None], 0.0)
        return self.layers(unpatchify(seen, self.shape, self.system.patch).flatten(1)).view_as(x)


def parameters(module: nn.Module) -> int:
    """How many there are."""
    return sum(value.numel() for value in module.parameters())


def autoencoder_of(depth: int, count: int) -> Family:
    """A family whose network has so many blocks, 0 for none, as wide as comes nearest to so many parameters."""

    def built(config: EnergyConfig, spec: DataSpec, _: Mapping[str, Model]) -> nn.Module:
        system, width = config.system, HEADS
        assert isinstance(system, TransformerConfig)

        def rival(width: int) -> nn.Module:
            if depth:
                return PatchAutoencoder(config, system, spec, width, depth)
            return BottleneckAutoencoder(config, system, spec, width)

        while parameters(rival(width + HEADS)) <= count:
            width += HEADS
        return rival(min(width, width + HEADS, key=lambda one: abs(parameters(rival(one)) - count)))

    def phases(module: Any) -> list[Phase]:
        return [Phase("completion", module, partial(completion_loss, module), module.config.optimizer)]

    return Family("autoencoder", FAMILY.kinds, EnergyConfig, Options, built, phases, lambda _: Tasks(options=Options()))


def trained(family: Family, recipe: Recipe, data: Prepared) -> nn.Module:
    """The network of ``family`` after the recipe's training, averaged weights."""
    config = parse(EnergyConfig, recipe.model, "model")
    state = prepare(build(family, config, data.spec, recipe.seed), recipe.training)
    for _ in train(state, data.source("train"), recipe.training, recipe.seed):
        pass
    return state.served().module


@torch.no_grad()
def completion_error(module: Any, data: Prepared) -> float:
    """Mean squared error of hidden patches of the test split, half of each picture, the same for every network."""
    test, errors, system = data.source("test"), [], module.system
    for start in range(0, len(test), CHUNK):
        x = test.take(start, min(start + CHUNK, len(test))).x
        masked, hidden = hidden_patches(len(x), module.tokens, TEST_MASK, generator("test masks", start))
        errors.append(patchify(module(x, hidden) - x, system.patch).square().mean(2)[masked])
    return float(torch.cat(errors).mean())


@torch.no_grad()
def monotone_starts(block: EnergyBlock, tokens: Tensor, rate: float) -> int:
    """In how many starts the energy falls at each step. (N, T, D) -> of N"""
    block = copy.deepcopy(block).double()
    block.rate = rate
    x, falls = tokens.double(), torch.ones(len(tokens), dtype=torch.bool)
    energy = block.energy(x)
    for _ in range(block.steps):
        x = block.step(x)
        before, energy = energy, block.energy(x)
        falls &= energy < before
    return int(falls.sum())


def random_block(config: TransformerConfig) -> EnergyBlock:
    """Weights of unit gain, so that tokens do interact."""
    block, noise = EnergyBlock(config), generator("weights")
    for parameter in (block.attention.query, block.attention.key, block.memory.memories):
        parameter.data = torch.randn(parameter.shape, generator=noise) / config.width**0.5
    return block


def count_monotone(system: TransformerConfig, trained_block: EnergyBlock, tokens: int, starts: int) -> None:
    """Print a row for each kind of weights and rate."""
    begin = torch.randn(starts, tokens, system.width, generator=generator("starts"))
    print(f"\n| weights | rate | starts whose energy falls at each of {system.steps} steps |\n|---|---|---|")
    for name, block in (("random", random_block(system)), ("trained", trained_block)):
        for rate in RATES:
            fallen = sum(monotone_starts(block, part, rate) for part in begin.split(CHUNK))
            print(f"| {name} | {rate} | {fallen} of {starts} |", flush=True)


@plain_mistakes
def main(reference: str = "mnist-energy-transformer", starts: str = "1000") -> None:
    """Train rivals of the registered Energy Transformer by its own recipe, compare them, and count."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    loaded = load_model(settings, reference)
    module, recipe = loaded.model.module, parse(Recipe, loaded.recipe, "recipe")
    if not isinstance(module, EnergyTransformer):
        raise ConfigError(f"{loaded.version.reference} is no Energy Transformer.")
    data = open_dataset(settings, loaded.version.lineage.data).prepared
    own = completion_error(module, data)
    told = f"{recipe.training.samples} training samples, half of the patches of the test split hidden"
    print(f"{loaded.version.reference}, {told}\n")
    print("| network | parameters | error of hidden patches | ratio |\n|---|---|---|---|")
    print(f"| Energy Transformer, {module.system.steps} steps | {parameters(module)} | {own:.4f} | 1 |", flush=True)
    for name, depth in DEPTHS.items():
        rival = trained(autoencoder_of(depth, parameters(module)), recipe, data)
        error = completion_error(rival, data)
        print(f"| {name} | {parameters(rival)} | {error:.4f} | {own / error:.3f} |", flush=True)
    count_monotone(module.system, module.block, module.tokens, int(starts))


if __name__ == "__main__":
    main(*sys.argv[1:])
