"""What a flow minimises: the negative log-probability of the data, per element."""

import math
from functools import partial

import torch

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.flow.model import Flow


def negative_log_prob(module: Flow, batch: Batch, progress: Progress) -> Loss:
    """Mean of -log p(x) in nats per element, which has the same scale for data of all sizes."""
    generator = progress.generator
    uniform = torch.rand(batch.x.shape, generator=generator, device=generator.device)
    nats = module(batch.x, batch.label, uniform).mean()
    value = -nats / module.spec.dims
    bits = {} if module.spec.levels is None else {"bits_per_dim": value.detach() / math.log(2)}
    return Loss(value, {"log_prob": nats.detach(), **bits})


def phases(module: Flow) -> list[Phase]:
    """One phase that moves the whole flow, dequantisation included."""
    return [Phase("flow", module, partial(negative_log_prob, module), module.config.optimizer)]
