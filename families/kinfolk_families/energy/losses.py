"""What the systems minimise: contrastive divergence, and the error of completed patches.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families._shared.transformer import patchify
from kinfolk_families.energy.config import ContrastiveConfig, MaskConfig
from kinfolk_families.energy.langevin import is_bounded, langevin
from kinfolk_families.energy.model import ComposedEnergy, EnergyModel
from kinfolk_families.energy.transformer import EnergyTransformer


def contrastive_loss(data: Tensor, chains: Tensor, config: ContrastiveConfig) -> Tensor:
    """Energies of data pulled down, of chains pushed up, all kept near zero. (B,), (B,) -> ()

    The gradient of the difference is that of -log p(x) with the model's expectation taken over the chains; softplus
    of a pair fades once the pair is told apart. Source: Du & Mordatch, 2019, eq. 3 and section 3.3.
    """
    gap = data - chains
    value = gap.mean() if config.loss == "difference" else F.softplus(gap).mean()
    return value + config.energy_l2 * (data.square() + chains.square()).mean()


def guarded(value: Tensor, data: Tensor, chains: Tensor, config: ContrastiveConfig) -> Tensor:
    """``value``, or NaN once an energy or the gap is beyond its limit, so that training goes back by itself."""
    largest = torch.cat([data, chains]).detach().abs().amax()
    gap = (data.detach().mean() - chains.detach().mean()).abs()
    sound = (largest <= config.energy_limit) & (gap <= config.gap_limit)  # NaN is not sound either
    return torch.where(sound, value, torch.nan)


def energy_loss(module: EnergyModel, batch: Batch, progress: Progress) -> Loss:
    """Contrastive divergence against persistent chains, one for each sample, of the sample's class."""
    config, generator, buffer = module.system, progress.generator, module.buffer
    assert buffer is not None
    label = batch.label if module.classes else None
    index = buffer.draw(len(batch), label, progress)
    start = buffer.read(index, generator)
    chains = langevin(module, start, label, config.langevin, is_bounded(module.spec), generator)
    buffer.write(index, chains)
    noise = torch.randn(batch.x.shape, generator=generator, device=generator.device)
    both = torch.cat([batch.x + config.input_noise * noise, chains])
    data, sampled = module(both, None if label is None else label.repeat(2)).chunk(2)
    value = guarded(contrastive_loss(data, sampled, config), data, sampled, config)
    of_data, of_chains = data.detach().mean(), sampled.detach().mean()
    return Loss(value, {"energy_data": of_data, "energy_chains": of_chains, "energy_gap": of_data - of_chains})


def hidden_patches(count: int, tokens: int, config: MaskConfig, generator: Generator) -> tuple[Tensor, Tensor]:
    """Which patches are to be completed, and which of them the network does not see. -> (count, T), (count, T) bool"""
    drawn = torch.rand(3, count, tokens, generator=generator, device=generator.device)
    share = config.least + (config.most - config.least) * drawn[0, :, :1]
    rank = drawn[1].argsort(1).argsort(1)  # (count, T), a random order of each sample's patches
    masked = rank < (share * tokens).round().clamp(min=1)
    return masked, masked & (drawn[2] < config.replaced)


def completion_loss(module: EnergyTransformer, batch: Batch, progress: Progress) -> Loss:
    """Mean squared error of the masked patches, a mean over each sample's and then over samples."""
    masked, hidden = hidden_patches(len(batch), module.tokens, module.system.mask, progress.generator)
    error = patchify(module(batch.x, hidden) - batch.x, module.system.patch).square().mean(2)  # (B, T)
    return Loss(((error * masked).sum(1) / masked.sum(1)).mean())


def _after(module: EnergyModel, progress: Progress) -> None:
    assert module.buffer is not None
    module.buffer.exchange(progress)
    module.settle()


def phases(module: EnergyModel | EnergyTransformer) -> Sequence[Phase]:
    """One phase; none for a composition whose weights are given."""
    optimizer = module.config.optimizer
    if isinstance(module, EnergyTransformer):
        return [Phase("completion", module, partial(completion_loss, module), optimizer)]
    if isinstance(module, ComposedEnergy) and not module.learns:
        return []
    return [Phase("energy", module, partial(energy_loss, module), optimizer, after=partial(_after, module))]
