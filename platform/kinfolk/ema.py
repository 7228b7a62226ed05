"""Exponential moving average of trainable parameters, by a half-life in samples."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kinfolk.contract import Derived


def decay(batch_size: int, samples_seen: int, halflife_samples: float, ramp: float) -> float:
    """Weight of the old average in one update.

    The half-life is at most ``ramp`` times the samples seen, so that the average forgets its start.
    Source: Karras et al., 2022 (EDM), training loop, https://arxiv.org/abs/2206.00364.
    """
    halflife = min(halflife_samples, ramp * samples_seen)
    return 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0


class Ema:
    """The average of a module's trainable parameters, in float32."""

    def __init__(self, module: nn.Module, halflife_samples: float, ramp: float) -> None:
        self.halflife_samples, self.ramp = halflife_samples, ramp
        self._live = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().float().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, batch_size: int, samples_seen: int) -> None:
        """Move the average towards the live parameters; ``samples_seen`` includes this batch."""
        kept = decay(batch_size, samples_seen, self.halflife_samples, self.ramp)
        live = [value.detach().float() for value in self._live.values()]
        if live:  # a model of fixed parts has nothing that trains
            torch._foreach_lerp_(list(self.average.values()), live, 1 - kept)

    def restart(self) -> None:
        """Begin again at the live parameters."""
        self.load(self._live)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over a stored average."""
        for name, value in self.average.items():
            value.copy_(average[name])

    def averaged(self, module: nn.Module) -> nn.Module:
        """A frozen copy of ``module`` in eval mode, with averaged parameters and the live buffers.

        Buffers that follow from parameters follow from the averaged ones.
        """
        twin = copy.deepcopy(module).eval().requires_grad_(False)
        for name, value in twin.named_parameters():
            if name in self.average:
                value.copy_(self.average[name])
        derive(twin)
        return twin


def derive(module: nn.Module) -> None:
    """Compute anew what follows from the parameters of ``module``, which were put in place of others."""
    for part in module.modules():
        if isinstance(part, Derived):
            part.derive()
