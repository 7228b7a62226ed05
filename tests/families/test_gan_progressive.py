"""Laws of networks that grow: fading, levels, and what follows from the samples seen."""

import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import Batch, DataSpec, Progress
from kinfolk.rng import generator
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.config import GANConfig, GrowthConfig
from kinfolk_families.gan.losses import phases

SPEC = DataSpec(kind="image", shape=(2, 13, 16), levels=17, classes=10)
NETWORK = {"kind": "progressive", "width": 8, "max_width": 16}
SIZES = [(4, 4), (7, 8), (13, 16)]
GROWTH = {"hold_samples": 100, "fade_samples": 50}
B, Z = 4, 6


def build(**changes):
    values = {"latent": Z, "generator": NETWORK, "critic": NETWORK, "growth": GROWTH, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(GANConfig.model_validate(values), SPEC, {}).double()


def normal(*shape, key="normal"):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=torch.float64)


def at(gan, growth):
    for network in (gan.generator.network, gan.critic.network):
        network.grow(growth)
    return gan


def test_growth_holds_and_fades_in_samples_seen():
    growth = GrowthConfig(hold_samples=100, fade_samples=50)
    seen = {0: 0, 100: 0, 110: 0.2, 149: 0.98, 150: 1, 250: 1, 275: 1.5, 300: 2, 10_000: 66}
    for samples, expected in seen.items():
        assert growth.at(samples) == pytest.approx(expected, abs=0.7 if samples == 10_000 else 1e-9)


def test_growth_ends_with_the_finest_resolution():
    gan = build()
    gan.grow(10**9)
    assert float(gan.generator.network.growth) == float(gan.critic.network.growth) == 2
    assert gan.generator.network.sizes == SIZES


@pytest.mark.parametrize("level", [0, 1])
def test_a_resolution_that_just_begins_to_join_changes_nothing(level):
    """At share 0 the picture is the coarser one enlarged, and the critic sees it so."""
    gan, z = build(), normal(B, Z)
    coarse = at(gan, level).generator(z)
    judged = gan.critic(coarse)
    assert torch.allclose(at(gan, level + 1e-9).generator(z), coarse, atol=1e-6)
    assert torch.allclose(gan.critic(coarse), judged, atol=1e-6)
    assert coarse[0, 0].unique().numel() == SIZES[level][0] * SIZES[level][1]


@pytest.mark.parametrize("growth", [0.0, 0.3, 0.999999999, 1.0, 1.4])
def test_growth_is_continuous(growth):
    gan, z, x = build(), normal(B, Z), normal(B, *SPEC.shape, key="x")
    before = at(gan, growth).generator(z), gan.critic(x)
    after = at(gan, growth + 1e-8).generator(z), gan.critic(x)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_share_is_the_weight_of_the_finer_picture():
    gan, z = build(), normal(B, Z)
    ends = [at(gan, growth).generator(z) for growth in (1.0, 2.0)]
    assert torch.allclose(at(gan, 1.25).generator(z), torch.lerp(*ends, 0.25))
    assert not torch.allclose(*ends, atol=1e-2)


def test_a_critic_at_a_level_sees_nothing_finer():
    gan, x = build(), normal(B, *SPEC.shape, key="x")
    at(gan, 1)
    assert torch.allclose(gan.critic(x), gan.critic(enlarged_means(x)), atol=1e-6)
    at(gan, 2)
    assert not torch.allclose(gan.critic(x), gan.critic(enlarged_means(x)), atol=1e-3)


def enlarged_means(x):
    """Another picture of the same means over the areas of level 1: noise moved within them."""
    moved = x.clone()
    moved[:, :, 0, 0] += 1
    moved[:, :, 0, 1] -= 1  # the same area of 7 x 8: rows 0 and 1, columns 0 and 1
    return moved


def test_both_players_are_at_the_level_of_the_samples_seen_in_every_turn():
    gan = build()
    batch = Batch(normal(B, *SPEC.shape, key="x"))
    seen = []
    for network in (gan.generator.network, gan.critic.network):
        network.register_forward_hook(lambda module, _, __: seen.append(float(module.growth)))
    gan.float()
    for phase in phases(gan):
        phase.loss(Batch(batch.x.float()), Progress(110, 7, generator("turn")))
    assert len(seen) == 5
    assert all(growth == pytest.approx(0.2) for growth in seen)


def test_the_level_is_state():
    gan = at(build(), 1.25)
    other = build()
    other.load_state_dict(gan.state_dict())
    z = normal(B, Z)
    assert torch.equal(other.generator(z), gan.generator(z))


def test_only_levels_that_take_part_learn():
    gan = at(build(), 0)
    gan.critic(gan.generator(normal(B, Z))).sum().backward()
    for network in (gan.generator.network, gan.critic.network):
        assert all(value.grad is not None for value in network.levels[0].parameters())
        assert all(value.grad is None for value in network.levels[1:].parameters())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"generator": NETWORK, "growth": GROWTH}, r"critic\.kind=conv.*progressive for both"),
        ({"critic": NETWORK}, r"critic\.kind=progressive.*progressive for both"),
        ({"generator": NETWORK, "critic": {**NETWORK, "base": 8}}, "same base"),
        ({"growth": GROWTH}, r"no effect: it is for generator\.kind=progressive"),
    ],
)
def test_players_that_cannot_grow_together_are_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        GANConfig.model_validate(values)
