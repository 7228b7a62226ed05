"""Sampling: noise of the row's own seed, one pass of the generator."""

import torch

from kinfolk.contract import SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_between
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families.gan.config import GANOptions
from kinfolk_families.gan.model import GAN


def start(gan: GAN, request: SampleRequest) -> SamplerState:
    """Rows with their noise, and their class on a conditional model; x is zero until the one call is made.

    Noise is scaled towards its mean: the truncation of Karras et al., 2019, https://arxiv.org/abs/1812.04948, on z.
    """
    assert isinstance(request.options, GANOptions)
    device = device_of(gan)
    x = torch.zeros(len(request.seeds), *gan.spec.shape, device=device)
    z = row_between(request.seeds, request.seed_to, request.weight, (gan.config.latent,))
    carry = {"z": (request.options.truncation * z).to(device)}
    if gan.classes:
        carry["label"] = row_labels(request, gan.classes).to(device)
    return SamplerState.start(x, request, calls=1, cost=1, **carry)


def advance(gan: GAN, state: SamplerState) -> SamplerState:
    """One pass of the generator for all rows."""
    return state.step(gan.generator(state.carry["z"], state.carry.get("label")))


def tasks(gan: GAN) -> Tasks:
    """A GAN draws samples, and ways between two of them: it has neither a likelihood nor an encoder."""

    def begin(request: SampleRequest) -> SamplerState:
        return start(gan, request)

    return Tasks(
        options=gan.config.sampler,
        starts={"sample": begin, "interpolate": begin},
        advance=lambda state: advance(gan, state),
        render=lambda state: state.x,
        conditions=frozenset({"label"}) if gan.classes else frozenset(),
    )
