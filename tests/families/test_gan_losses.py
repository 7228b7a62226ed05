import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kinfolk.contract import Batch, ConfigError, DataSpec, OptimizerConfig, Progress
from kinfolk.rng import generator
from kinfolk.step import World, make_optimizer, trainable, turn
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.adversarial import LOSSES, relativistic_critic, softplus_generator
from kinfolk_families.gan.config import GANConfig, PenaltyConfig
from kinfolk_families.gan.losses import critic_loss, generator_loss, phases
from kinfolk_families.gan.penalties import (
    between,
    clip_weights,
    penalty_weight,
    squared_gradient_norm,
    unit_norm_distance,
)

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10)
NETWORKS = {
    "conv": {"kind": "conv", "width": 8},
    "residual": {"kind": "residual", "width": 8, "max_width": 16, "blocks": 1},
    "mlp": {"kind": "mlp", "width": 16, "depth": 2},
}
BOTH = [{"kind": "r1", "gamma": 2.0}, {"kind": "r2", "gamma": 6.0}]
B = 8


def config_of(network="conv", **changes):
    values = {"conditional": True, "latent": 6, "embedding": 4, **changes}
    return GANConfig.model_validate({**values, "generator": NETWORKS[network], "critic": NETWORKS[network]})


def build(config, spec=SPEC, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(config, spec, {}).to(dtype)


def data(dtype=torch.float64):
    g = generator("data")
    x = torch.rand(B, *SPEC.shape, generator=g, dtype=dtype) * 2 - 1
    return Batch(x, torch.randint(10, (B,), generator=g)), torch.randn(B, 6, generator=g, dtype=dtype)


def progress(step=0, samples_seen=0):
    return Progress(samples_seen, step, generator("progress", step))


def logits(seed):
    return torch.randn(B, generator=generator("logits", seed), dtype=torch.float64).requires_grad_()


def gradient(function, *tensors):
    return torch.autograd.grad(function(*tensors), tensors)


class LinearCritic(nn.Module):
    """<weight, x> + shift."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(64, dtype=torch.float64) / 10)
        self.shift = shift

    def forward(self, x, label=None):
        return x.flatten(1) @ self.weight + self.shift


class SquareCritic(nn.Module):
    """|x|^2 / 2, whose gradient is x."""

    def forward(self, x, label=None):
        return x.square().flatten(1).sum(1) / 2


def test_the_generator_learns_fastest_where_the_critic_is_surest():
    margin = logits(3)
    (slope,) = gradient(softplus_generator, margin)
    assert torch.allclose(slope, -(-margin).sigmoid() / B)
    (sure,) = gradient(softplus_generator, torch.full((B,), -40.0, dtype=torch.float64).requires_grad_())
    assert torch.allclose(sure, torch.full_like(sure, -1 / B))


def test_the_relativistic_loss_sees_differences_of_pairs_only():
    real, fake, shift = logits(4), logits(5), logits(6).detach()
    loss = relativistic_critic(real, fake)
    assert torch.allclose(loss, -(real - fake).sigmoid().log().mean())
    assert torch.allclose(loss, relativistic_critic(real + shift, fake + shift))
    assert not torch.allclose(loss, relativistic_critic(real, fake.flip(0)))
    for_real, for_fake = gradient(relativistic_critic, real, fake)
    assert torch.allclose(for_real, -for_fake)


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_the_gradient_penalty_of_a_linear_critic_is_its_squared_weight(shift):
    critic = LinearCritic(shift)
    x = data()[0].x.requires_grad_()
    assert torch.allclose(squared_gradient_norm(x, critic(x)), critic.weight.square().sum())


def test_the_gradient_penalty_trains_the_critic():
    critic = LinearCritic()
    x = data()[0].x.requires_grad_()
    (grad,) = torch.autograd.grad(squared_gradient_norm(x, critic(x)), critic.weight)
    assert torch.allclose(grad, 2 * critic.weight)


def test_the_distance_from_unit_norm_is_nothing_for_a_linear_critic_of_unit_norm():
    critic, x = LinearCritic(), data()[0].x.requires_grad_()
    norm = critic.weight.detach().norm()
    assert torch.allclose(unit_norm_distance(x, critic(x)), (norm - 1).square())
    with torch.no_grad():
        critic.weight /= norm
    assert float(unit_norm_distance(x, critic(x)).detach()) == pytest.approx(0, abs=1e-20)


def test_a_critic_that_is_flat_has_a_finite_gradient_penalty():
    critic, x = LinearCritic(), data()[0].x.requires_grad_()
    with torch.no_grad():
        critic.weight.zero_()
    penalty = unit_norm_distance(x, critic(x))
    assert float(penalty.detach()) == 1
    (grad,) = torch.autograd.grad(penalty, critic.weight)
    assert bool(grad.isfinite().all())


def test_the_gradient_penalty_is_taken_between_the_pair():
    x, y = data()[0].x, data()[0].x.flip(0)
    weight = torch.linspace(0, 1, B, dtype=torch.float64)
    points = between(x, y, weight)
    assert torch.equal(points[0], x[0])
    assert torch.equal(points[-1], y[-1])
    assert torch.allclose(points[3], x[3] + weight[3] * (y[3] - x[3]))


def test_the_gradient_penalty_of_a_turn_is_at_points_drawn_from_its_generator():
    """Of |x|^2 / 2 the gradient is x: the penalty is the mean of (|x| - 1)^2 at the points."""
    batch, z = data()
    gan = build(config_of(penalties=[{"kind": "gradient", "gamma": 10.0}]))
    gan.critic = SquareCritic()
    place = torch.rand(B, generator=progress().generator, dtype=torch.float64)
    points = between(batch.x, gan.generator(z, batch.label), place)
    expected = (points.flatten(1).norm(dim=1) - 1).square().mean()
    found = critic_loss(gan, batch, z, progress())
    assert torch.allclose(found.logs["gradient"], expected)
    plain = build(config_of(penalties=[]))
    plain.critic = SquareCritic()
    assert torch.allclose(found.value - critic_loss(plain, batch, z, progress()).value, 10 * expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_gradient_penalty_is_much_the_same_where_networks_are_in_bfloat16(network):
    batch, z = data(torch.float32)
    gan = build(config_of(network, penalties=[{"kind": "gradient", "gamma": 10.0}]), dtype=torch.float32)
    exact = critic_loss(gan, batch, z, progress()).logs["gradient"]
    with torch.autocast("cpu", torch.bfloat16):
        found = critic_loss(gan, batch, z, progress()).logs["gradient"]
    assert torch.allclose(found.float(), exact, rtol=0.05)


def test_drift_is_the_squared_logit_of_data():
    batch, z = data()
    gan = build(config_of(penalties=[{"kind": "drift", "gamma": 0.001}]))
    gan.critic = LinearCritic(shift=2.0)
    logs = critic_loss(gan, batch, z, progress()).logs
    assert torch.allclose(logs["drift"], gan.critic(batch.x).square().mean())


def test_clipped_weights_are_within_the_bound_and_the_others_as_they_were():
    critic = LinearCritic()
    with torch.no_grad():
        critic.weight -= 3  # of both signs
    before = critic.weight.detach().clone()
    clip_weights(critic, 2.5)
    assert torch.equal(critic.weight, before.clamp(-2.5, 2.5))


def largest(module):
    return max(float(value.detach().abs().max()) for value in module.parameters())


def test_the_critics_weights_are_clipped_at_the_end_of_its_turn():
    gan = build(config_of(loss="wasserstein", penalties=[], weight_clip=0.01))
    critic, generator_phase = phases(gan)
    generator_phase.after(progress())
    assert largest(gan.critic) > 0.01
    critic.after(progress())
    assert largest(gan.critic) == pytest.approx(0.01)
    assert largest(gan.generator) > 0.01


def test_a_generator_waits_for_so_many_steps_of_the_critic():
    assert [phase.every_steps for phase in phases(build(config_of(critic_steps=5)))] == [1, 5]


@pytest.mark.parametrize("kind", ["r1", "r2"])
def test_a_penalty_adds_half_of_gamma_times_the_squared_norm(kind):
    batch, z = data()
    plain, penalised = (build(config_of(penalties=p)) for p in ([], [{"kind": kind, "gamma": 3.0}]))
    plain.critic = penalised.critic = LinearCritic()
    added = critic_loss(penalised, batch, z, progress()).value - critic_loss(plain, batch, z, progress()).value
    assert torch.allclose(added, 3.0 / 2 * plain.critic.weight.square().sum())


def test_r1_is_taken_at_real_and_r2_at_generated_samples():
    batch, z = data()
    gan = build(config_of(penalties=BOTH))
    gan.critic = SquareCritic()
    logs = critic_loss(gan, batch, z, progress()).logs
    fake = gan.generator(z, batch.label)
    assert torch.allclose(logs["r1"], batch.x.square().flatten(1).sum(1).mean())
    assert torch.allclose(logs["r2"], fake.square().flatten(1).sum(1).mean())
    assert torch.allclose(logs["logit_gap"], (logs["r1"] - logs["r2"]) / 2)


def test_a_lazy_penalty_weighs_the_same_on_average():
    lazy, eager = (PenaltyConfig(kind="r1", gamma=2.0, every_steps=n) for n in (4, 1))
    weights = [penalty_weight(lazy, step, 0) for step in range(8)]
    assert weights == [4.0, 0, 0, 0] * 2
    assert sum(weights) == sum(penalty_weight(eager, step, 0) for step in range(8))


def test_a_lazy_penalty_is_computed_only_when_due():
    batch, z = data()
    gan = build(config_of(penalties=[{"kind": "r1", "gamma": 1.0, "every_steps": 2}]))
    assert ["r1" in critic_loss(gan, batch, z, progress(step)).logs for step in range(4)] == [True, False, True, False]


def test_gamma_falls_along_a_cosine_between_its_ends():
    penalty = PenaltyConfig(kind="r1", gamma=10.0, final_gamma=1.0, decay_samples=1000)
    assert penalty.gamma_at(0) == 10.0
    assert math.isclose(penalty.gamma_at(250), 1 + 9 * (1 + math.sqrt(0.5)) / 2)
    assert math.isclose(penalty.gamma_at(500), 5.5)
    assert penalty.gamma_at(1000) == penalty.gamma_at(10**9) == 1.0
    assert penalty_weight(penalty, 0, 500) == 5.5 / 2
    assert PenaltyConfig(kind="r1", gamma=10.0).gamma_at(10**9) == 10.0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_microbatches_average_to_the_full_batch(network, loss):
    gan = build(config_of(network, loss=loss, penalties=BOTH))
    batch, z = data()
    for module, of in (
        (gan.critic, lambda part, noise: critic_loss(gan, part, noise, progress()).value),
        (gan.generator, lambda part, noise: generator_loss(gan, part, noise, progress()).value),
    ):
        whole = torch.autograd.grad(of(batch, z), list(module.parameters()), allow_unused=True)
        parts = zip(batch.split(4), z.chunk(4), strict=True)
        mean = torch.stack([of(part, noise) for part, noise in parts]).mean()
        summed = torch.autograd.grad(mean, list(module.parameters()), allow_unused=True)
        for a, b in zip(whole, summed, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=0, atol=1e-6)


def generator_gradient(gan, batch, z):
    return torch.autograd.grad(generator_loss(gan, batch, z, progress()).value, list(gan.generator.parameters()))


def test_the_non_saturating_generator_climbs_the_critic():
    batch, z = data()
    gan = build(config_of(loss="non_saturating"))
    gan.critic = SquareCritic()
    fake = gan.generator(z, batch.label)
    slope = -(-gan.critic(fake)).sigmoid() / B  # d loss / d logit
    expected = torch.autograd.grad(fake, list(gan.generator.parameters()), slope[:, None, None, None] * fake)
    for a, b in zip(generator_gradient(gan, batch, z), expected, strict=True):
        assert torch.allclose(a, b)


def test_the_relativistic_generator_climbs_from_its_real_partner():
    batch, z = data()
    gan = build(config_of(loss="relativistic"))
    gan.critic = SquareCritic()
    fake = gan.generator(z, batch.label)
    slope = -(gan.critic(batch.x) - gan.critic(fake)).sigmoid() / B
    expected = torch.autograd.grad(fake, list(gan.generator.parameters()), slope[:, None, None, None] * fake)
    for a, b in zip(generator_gradient(gan, batch, z), expected, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize(("loss", "invariant"), [("relativistic", True), ("non_saturating", False)])
def test_only_the_relativistic_game_ignores_the_critics_bias(loss, invariant):
    batch, z = data()
    gan = build(config_of(loss=loss))

    def values():
        return torch.stack(
            [critic_loss(gan, batch, z, progress()).value, generator_loss(gan, batch, z, progress()).value]
        )

    before = values()
    with torch.no_grad():
        gan.critic.head.bias += 5
    assert torch.allclose(before, values()) == invariant


def test_generated_samples_are_of_their_real_partners_class():
    batch, z = data()
    gan = build(config_of(penalties=BOTH))
    seen = []
    gan.generator.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    gan.critic.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    critic_loss(gan, batch, z, progress())
    generator_loss(gan, batch, z, progress())
    assert len(seen) == 5
    assert all(torch.equal(label, batch.label) for label in seen)


def test_noise_follows_from_the_generator_of_the_step():
    gan = build(config_of(), dtype=torch.float32)
    batch, _ = data(torch.float32)
    before = torch.random.get_rng_state()
    for phase in phases(gan):
        first, again, other = (float(phase.loss(batch, progress(step)).value.detach()) for step in (0, 0, 1))
        assert first == again != other
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
@pytest.mark.parametrize(("turning", "resting"), [("critic", "generator"), ("generator", "critic")])
def test_a_phase_moves_its_own_player_only(loss, turning, resting):
    sgd = OptimizerConfig(kind="sgd", lr=0.1, betas=(0.0, 0.0))
    gan = build(config_of(loss=loss, penalties=BOTH), dtype=torch.float32)
    batch, _ = data(torch.float32)
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    phase = next(replace(p, optimizer=sgd) for p in phases(gan) if p.name == turning)
    assert phase.module is getattr(gan, turning)
    turn(phase, make_optimizer(phase.module, sgd), [batch], [progress()], World())
    moved = {name.split(".")[0] for name, value in gan.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {turning}
    assert all(value.grad is None for value in trainable(getattr(gan, resting)))


def test_only_a_penalised_critic_is_differentiated_twice():
    assert [p.double_backward for p in phases(build(config_of(penalties=BOTH)))] == [True, False]
    assert [p.double_backward for p in phases(build(config_of(penalties=[])))] == [False, False]
    foreseen = config_of(penalties=[{"kind": "drift", "gamma": 1.0}], unrolled={"steps": 1})
    assert [p.double_backward for p in phases(build(foreseen))] == [False, True]


def test_a_conditional_model_refuses_a_batch_without_labels():
    batch, z = data()
    with pytest.raises(ConfigError, match="no labels"):
        critic_loss(build(config_of()), Batch(batch.x), z, progress())
