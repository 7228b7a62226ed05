"""Adversarial losses at closed forms and at their optima."""

import math

import pytest
import torch

from kinfolk.rng import generator
from kinfolk_families.gan.adversarial import LOSSES

B = 8


def logits(seed):
    return torch.randn(B, generator=generator("logits", seed), dtype=torch.float64).requires_grad_()


def constant(value):
    return torch.full((B,), float(value), dtype=torch.float64)


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_the_entropy_critic_is_two_cross_entropies(name):
    real, fake = logits(1), logits(2)
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    assert torch.allclose(LOSSES[name].critic(real, fake), expected)
    assert float(LOSSES[name].critic(constant(0), constant(0))) == pytest.approx(2 * math.log(2))


def test_the_minimax_generator_plays_the_critics_own_game_and_saturates():
    fake = logits(3)
    value = LOSSES["minimax"].generator(fake)
    assert torch.allclose(value, (1 - fake.sigmoid()).log().mean())
    lost = constant(-40).requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES["minimax"].generator(lost), lost)
    assert slope.abs().max() < 1e-15
    (steep,) = torch.autograd.grad(LOSSES["non_saturating"].generator(lost), lost)
    assert torch.allclose(steep, torch.full_like(steep, -1 / B))


def test_the_hinge_ends_where_the_critic_is_sure_by_one():
    critic = LOSSES["hinge"].critic
    assert float(critic(constant(1), constant(-1))) == 0
    assert float(critic(constant(0.5), constant(2))) == 0.5 + 3
    real, fake = constant(3).requires_grad_(), constant(-1.5).requires_grad_()
    slopes = torch.autograd.grad(critic(real, fake), (real, fake))
    assert all(float(slope.abs().sum()) == 0 for slope in slopes)
    margin = logits(4)
    assert torch.allclose(LOSSES["hinge"].generator(margin), -margin.mean())


def test_least_squares_aims_at_one_and_zero():
    game = LOSSES["least_squares"]
    assert float(game.critic(constant(1), constant(0))) == 0
    assert float(game.critic(constant(3), constant(1))) == 0.5 * (4 + 1)
    assert float(game.generator(constant(1))) == 0
    assert float(game.generator(constant(-2))) == 4.5
    same = constant(game.boundary).requires_grad_()  # where both are drawn alike, the best logit is the boundary
    slopes = torch.autograd.grad(game.critic(same, same), same)
    assert torch.allclose(slopes[0], torch.zeros_like(slopes[0]))


def test_the_wasserstein_loss_is_minus_the_difference_of_means():
    real, fake = logits(5), logits(6)
    game = LOSSES["wasserstein"]
    assert torch.allclose(game.critic(real, fake), fake.mean() - real.mean())
    assert torch.allclose(game.critic(real + 7, fake + 7), game.critic(real, fake))
    assert torch.allclose(game.generator(fake), -fake.mean())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_players_pull_a_generated_logit_apart(name):
    """Between -1 and 1, where no loss is flat: the critic takes it down, the generator up."""
    real, fake = (0.3 * logits(seed).tanh() for seed in (7, 8))
    (down,) = torch.autograd.grad(LOSSES[name].critic(real, fake + 0.4), fake, retain_graph=True)
    (up,) = torch.autograd.grad(LOSSES[name].generator(fake), fake)
    assert bool((down > 0).all())
    assert bool((up < 0).all())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"wasserstein", "relativistic"}))
def test_where_both_are_drawn_alike_the_best_logit_is_the_boundary(name):
    game = LOSSES[name]
    values = [
        float(game.critic(constant(game.boundary + move), constant(game.boundary + move))) for move in (-0.1, 0.1)
    ]
    assert float(game.critic(constant(game.boundary), constant(game.boundary))) <= min(values) + 1e-12
