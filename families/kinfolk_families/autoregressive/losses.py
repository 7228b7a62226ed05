"""What an autoregressive model minimises: the negative log-probability of each next token."""

from functools import partial

import torch

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.autoregressive.model import Autoregressive


def next_token_loss(module: Autoregressive, batch: Batch, progress: Progress) -> Loss:
    """Mean over tokens of -log p, nats; ``batch.x`` is data, or the tokens of a first stage. Logs nats a sample."""
    generator = progress.generator

    def uniform() -> torch.Tensor:
        return torch.rand(batch.x.shape, generator=generator, device=generator.device)

    tokens = module.tokeniser.observe(batch.x, uniform)  # (B, T, G)
    nats = module(tokens, batch.label, generator)  # (B, T)
    return Loss(-nats.mean() / module.tokeniser.group, {"nats": nats.detach().sum(1).mean()})


def initialise(module: Autoregressive, batch: Batch, progress: Progress) -> None:
    """Find the palette, where there is one."""
    module.tokeniser.initialise(batch.x, progress)


def phases(module: Autoregressive) -> list[Phase]:
    """One phase that moves the whole network."""
    return [Phase("network", module.network, partial(next_token_loss, module), module.config.optimizer)]
