"""Sampling: noise of the row's own seed, one pass of the generator."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from kinfolk.contract import SampleRequest, SamplerState, Tasks
from kinfolk_families._shared.one_call import OneCall
from kinfolk_families.gan.config import GANOptions
from kinfolk_families.gan.model import GAN

Start = Callable[[SampleRequest], SamplerState]


def _with_truncation(start: Start, request: SampleRequest) -> SamplerState:
    """Rows that carry their truncation, (R,): Karras et al., 2019, https://arxiv.org/abs/1812.04948, Appendix B."""
    assert isinstance(request.options, GANOptions)
    state = start(request)
    truncation = torch.full((len(state),), request.options.truncation, device=state.x.device)
    return replace(state, carry={**state.carry, "truncation": truncation})


def _advance(gan: GAN, state: SamplerState) -> SamplerState:
    """One pass of the generator for all rows."""
    return state.step(gan.generator(state.carry["z"], state.carry.get("label"), state.carry["truncation"]))


def tasks(gan: GAN) -> Tasks:
    """A GAN draws samples, and ways between two of them: it has neither a likelihood nor an encoder."""
    rows = OneCall(gan, gan.spec, (gan.config.latent,), gan.classes, gan.generator, lambda _: 1.0)
    return Tasks(
        options=gan.config.sampler,
        starts={
            "sample": partial(_with_truncation, rows.start),
            "interpolate": partial(_with_truncation, rows.start_way),
        },
        advance=partial(_advance, gan),
        render=rows.render,
        conditions=frozenset({"label"}) if gan.classes else frozenset(),
    )
