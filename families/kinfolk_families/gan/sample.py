"""Sampling: noise of the row's own seed, one pass of the generator."""

from kinfolk.contract import SampleRequest, Tasks
from kinfolk_families._shared.one_call import OneCall
from kinfolk_families.gan.config import GANOptions
from kinfolk_families.gan.model import GAN


def truncation(request: SampleRequest) -> float:
    """Noise scaled towards its mean: the truncation of Karras et al., 2019, https://arxiv.org/abs/1812.04948, on z."""
    assert isinstance(request.options, GANOptions)
    return request.options.truncation


def tasks(gan: GAN) -> Tasks:
    """A GAN draws samples, and ways between two of them: it has neither a likelihood nor an encoder."""
    rows = OneCall(gan, gan.spec, (gan.config.latent,), gan.classes, gan.generator, truncation)
    return Tasks(
        options=gan.config.sampler,
        starts={"sample": rows.start, "interpolate": rows.start_way},
        advance=rows.advance,
        render=rows.render,
        conditions=frozenset({"label"}) if gan.classes else frozenset(),
    )
