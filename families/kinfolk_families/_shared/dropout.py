"""Dropout whose masks come from a generator that is passed down, never from the global one. ``*`` any shape.

Source: Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html.
"""

import torch
from torch import Generator, Tensor, nn


def dropped(x: Tensor, share: float, generator: Generator | None) -> Tensor:
    """Dropout whose mask is drawn from ``generator``; without one, everything stays. (*) -> (*)"""
    if generator is None or not share:
        return x
    keep = torch.rand(x.shape, generator=generator, device=generator.device) >= share
    return torch.where(keep, x / (1 - share), 0.0)


class Dropout(nn.Module):
    """A random ``share`` of the elements set to zero and the others scaled up, in training alone. (*) -> (*)"""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Without a generator everything stays. (*) -> (*)"""
        return dropped(x, self.share, generator if self.training else None)


def dropouts(module: nn.Module) -> list[Dropout]:
    """The layers of dropout in ``module``, also those whose share is 0."""
    return [layer for layer in module.modules() if isinstance(layer, Dropout)]
