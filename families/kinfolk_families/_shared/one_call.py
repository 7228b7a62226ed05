"""Sampling of a network that turns noise into a sample at once: rows, and ways between two seeds.

Shapes: N samples asked, R rows, ``z`` one latent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinfolk.contract import DataSpec, SampleRequest, SamplerState
from kinfolk.rng import row_between
from kinfolk_families._shared.given import check_given
from kinfolk_families._shared.labels import device_of, row_labels


@dataclass(frozen=True, slots=True)
class OneCall:
    """Draws ``decode(z, label)`` for normal z, a function of the row's seed, times ``scale`` of the request."""

    module: nn.Module
    spec: DataSpec
    latent: tuple[int, ...]  # shape of one z
    classes: int  # 0: nothing is conditioned
    decode: Callable[[Tensor, Tensor | None], Tensor]  # (R, *z), (R,) -> (R, *shape)
    scale: Callable[[SampleRequest], float]

    def start(self, request: SampleRequest) -> SamplerState:
        """Rows with their noise, and their class on a conditional model; x is zero until the one call is made."""
        device = device_of(self.module)
        noise = row_between(request.seeds, request.seed_to, request.weight, self.latent)
        carry = {"z": (self.scale(request) * noise).to(device)}
        if self.classes:
            carry["label"] = row_labels(request, self.classes).to(device)
        x = torch.zeros(len(noise), *self.spec.shape, device=device)
        return SamplerState.start(x, request, calls=1, cost=1, **carry)

    def start_way(self, request: SampleRequest) -> SamplerState:
        """Rows with noise between that of two seeds.

        Raises:
            RequestError: it is not said which, or how far between them.
        """
        check_given(request, self.spec.shape, "seed_to", "weight")
        return self.start(request)

    def advance(self, state: SamplerState) -> SamplerState:
        """One pass of the network for all rows."""
        return state.step(self.decode(state.carry["z"], state.carry.get("label")))

    @staticmethod
    def render(state: SamplerState) -> Tensor:
        """The samples. -> (R, *shape)"""
        return state.x
