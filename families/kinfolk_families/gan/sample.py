"""Sampling: noise of the row's own seed, one pass of the generator."""

import torch
from torch import Tensor

from kinfolk.contract import SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_normal
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families.gan.config import GANOptions
from kinfolk_families.gan.model import GAN


def truncated_noise(seeds: Tensor, latent: int, truncation: float) -> Tensor:
    """z ~ N(0, truncation^2), a function of each row's seed. (N,) int64 -> (N, Z) on the CPU

    Scaling towards the mean is the truncation of Karras et al., 2019, https://arxiv.org/abs/1812.04948, applied to z.
    """
    return truncation * row_normal(seeds, torch.zeros_like(seeds), (latent,), stream="z")


def start(gan: GAN, request: SampleRequest) -> SamplerState:
    """Rows with their noise, and their class on a conditional model; x is zero until the one call is made."""
    assert isinstance(request.options, GANOptions)
    device = device_of(gan)
    x = torch.zeros(len(request.seeds), *gan.spec.shape, device=device)
    z = truncated_noise(request.seeds, gan.config.latent, request.options.truncation)
    carry = {"z": z.to(device)}
    if gan.classes:
        carry["label"] = row_labels(request, gan.classes).to(device)
    return SamplerState.start(x, request, calls=1, cost=1, **carry)


def advance(gan: GAN, state: SamplerState) -> SamplerState:
    """One pass of the generator for all rows."""
    return state.step(gan.generator(state.carry["z"], state.carry.get("label")))


def tasks(gan: GAN) -> Tasks:
    """A GAN samples, and nothing else: it has neither a likelihood nor an encoder."""
    return Tasks(
        options=gan.config.sampler,
        starts={"sample": lambda request: start(gan, request)},
        advance=lambda state: advance(gan, state),
        render=lambda state: state.x,
        conditions=frozenset({"label"}) if gan.classes else frozenset(),
    )
