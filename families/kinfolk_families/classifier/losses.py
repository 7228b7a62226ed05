"""Cross-entropy on shifted images, and the one phase it is trained in."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kinfolk.contract import Batch, ConfigError, Loss, Phase, Progress
from kinfolk_families.classifier.model import Classifier


def random_shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by a whole number of pixels in [-most, most] each way; its border is repeated. (B, C, H, W)"""
    B, _, H, W = x.shape
    down, right = torch.randint(-most, most + 1, (2, B, 1), generator=generator, device=x.device)  # (B, 1), (B, 1)
    row = (torch.arange(H, device=x.device) - down).clamp(0, H - 1)  # (B, H)
    column = (torch.arange(W, device=x.device) - right).clamp(0, W - 1)  # (B, W)
    image = torch.arange(B, device=x.device)[:, None, None]
    return x.movedim(1, -1)[image, row[:, :, None], column[:, None, :]].movedim(-1, 1)


def classification_loss(module: Classifier, batch: Batch, progress: Progress) -> Loss:
    """Mean cross-entropy in nats; logs the share of the batch classified right.

    Raises:
        ConfigError: the batch has no labels.
    """
    if batch.label is None:
        raise ConfigError("A classifier is trained on labels and this batch has none. Use a labelled data set.")
    config = module.config
    x = random_shift(batch.x, config.max_shift, progress.generator) if config.max_shift else batch.x
    logits = module(x)  # (B, K)
    loss = cross_entropy(logits, batch.label, label_smoothing=config.label_smoothing)
    accuracy = (logits.argmax(1) == batch.label).float().mean()
    return Loss(loss, {"accuracy": accuracy})


def phases(module: Classifier) -> Sequence[Phase]:
    """One phase: all parameters, every step."""
    return [Phase("classifier", module, partial(classification_loss, module), module.config.optimizer)]
