"""Laws of what stands against collapse: packing, minibatch statistics, foreseen critics, and augmentation."""

import math

import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.rng import generator
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.adversarial import LOSSES
from kinfolk_families.gan.augmentation import TRANSFORMS, Augmentation
from kinfolk_families.gan.config import AugmentationConfig, DeviationConfig, DiscriminationConfig, GANConfig
from kinfolk_families.gan.losses import critic_loss, generator_loss, phases
from kinfolk_families.gan.minibatch import EPSILON, MinibatchDeviation, MinibatchDiscrimination
from kinfolk_families.gan.packing import packed, unpacked
from kinfolk_families.gan.penalties import clip_weights
from kinfolk_families.gan.unrolling import unrolled

IMAGE = DataSpec(kind="image", shape=(3, 8, 8), levels=17, classes=10)
POINT = DataSpec(kind="vector", shape=(2,))
MLP = {"kind": "mlp", "width": 8, "depth": 2}
CONV = {"kind": "conv", "width": 8}
B, Z = 8, 4


def build(spec=POINT, dtype=torch.float64, **changes):
    network = MLP if spec.kind == "vector" else CONV
    config = GANConfig.model_validate({"latent": Z, "generator": network, "critic": network, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(config, spec, {}).to(dtype)


def normal(*shape, key="normal"):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=torch.float64)


def progress(step=0, samples_seen=0, all_reduce=lambda value: value):
    return Progress(samples_seen, step, generator("progress", step), all_reduce)


def test_a_packed_critic_sees_m_times_the_channels():
    gan = build(IMAGE, packing=3)
    assert gan.critic.network[0].weight.shape[1] == 9
    x = normal(6, 3, 8, 8)
    packs = packed(x, 3)
    assert packs.shape == (2, 9, 8, 8)
    assert torch.equal(packs[1, 3:6], x[4])
    assert torch.equal(unpacked(packs, 3), x)
    assert gan.critic(packs).shape == (2,)


def test_a_packed_loss_is_one_of_packs_and_so_are_its_penalties():
    """A pack of a linear critic has the gradient (w, w): its squared norm is twice that of one sample."""
    gan = build(packing=2, penalties=[{"kind": "r1", "gamma": 2.0}, {"kind": "gradient", "gamma": 1.0}])

    class Linear(torch.nn.Module):
        def forward(self, packs, label=None):
            assert packs.shape[1:] == (4,)
            return packs @ torch.tensor([3.0, 4.0, 3.0, 4.0], dtype=torch.float64)

    gan.critic = Linear()
    logs = critic_loss(gan, Batch(normal(B, 2)), normal(B, Z), progress()).logs
    assert float(logs["r1"]) == pytest.approx(50)
    assert float(logs["gradient"]) == pytest.approx((math.sqrt(50) - 1) ** 2)


def statistics_case(kind):
    if kind == "discrimination":
        return {"minibatch": {"kind": kind, "group": 2, "kernels": 3, "dims": 2}}
    return {"minibatch": {"kind": kind, "group": 2, "hidden": 5}}


@pytest.mark.parametrize("kind", ["discrimination", "deviation"])
@pytest.mark.parametrize("packing", [1, 2])
@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
def test_microbatches_of_whole_groups_average_to_the_full_batch(kind, packing, loss):
    both = [{"kind": "r1", "gamma": 1.0}, {"kind": "r2", "gamma": 1.0}]
    gan = build(packing=packing, loss=loss, penalties=both, **statistics_case(kind))
    assert {phase.group for phase in phases(gan)} == {2 * packing}
    _averages(gan)


def test_foreseen_critics_learn_from_their_own_groups():
    gan = build(unrolled={"steps": 2, "lr": 0.3, "group": 4}, packing=2)
    assert [phase.group for phase in phases(gan)] == [2, 4]
    _averages(gan)


def _averages(gan):
    batch, z = Batch(normal(B, 2, key="x")), normal(B, Z)
    for module, loss in ((gan.critic, critic_loss), (gan.generator, generator_loss)):
        parameters = list(module.parameters())
        whole = torch.autograd.grad(loss(gan, batch, z, progress()).value, parameters)
        parts = zip(batch.split(2), z.chunk(2), strict=True)
        mean = torch.stack([loss(gan, part, noise, progress()).value for part, noise in parts]).mean()
        for a, b in zip(whole, torch.autograd.grad(mean, parameters), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_minibatch_discrimination_is_its_formula():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = MinibatchDiscrimination(DiscriminationConfig(group=4, kernels=3, dims=2), 5).double()
    features = normal(8, 5)
    found = layer(features).detach()
    for i in range(8):
        for k in range(3):
            group = range(i // 4 * 4, i // 4 * 4 + 4)
            rows = [features[j] @ layer.projection[:, k] for j in (i, *group)]
            expected = sum(math.exp(-float((rows[0] - row).detach().abs().sum())) for row in rows[1:])
            assert float(found[i, k]) == pytest.approx(expected)


def test_minibatch_deviation_is_the_mean_standard_deviation_of_the_group():
    layer, features = MinibatchDeviation(DeviationConfig(group=4)), normal(8, 5)
    found = layer(features)
    for rows in (slice(0, 4), slice(4, 8)):
        expected = features[rows].std(0, correction=0).mean()
        assert torch.allclose(found[rows], expected.expand(4, 1))
    same = layer(features[:1].expand(4, 5))
    assert torch.allclose(same, torch.full_like(same, math.sqrt(EPSILON)))


def test_a_critic_told_of_its_group_can_tell_equal_samples_from_spread_ones():
    for kind in ("discrimination", "deviation"):
        gan = build(**statistics_case(kind))
        x = normal(4, 2)
        beside_itself, beside_another = x[[0, 0]], x[[0, 1]]
        assert not torch.allclose(gan.critic(beside_itself)[0], gan.critic(beside_another)[0])


def test_a_foreseen_critic_follows_the_gradient_of_a_square():
    """Descent on a (w - 1)^2 / 2 from w = 0 is at 1 - (1 - lr a)^k."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start = {"w": torch.zeros((), dtype=torch.float64)}
    end = unrolled(lambda p: a * (p["w"] - 1).square() / 2, start, 3, 0.5, None)["w"]
    assert float(end.detach()) == pytest.approx(1 - (1 - 0.35) ** 3)
    (slope,) = torch.autograd.grad(end, a)
    assert float(slope) == pytest.approx(3 * 0.5 * (1 - 0.35) ** 2)
    assert float(start["w"]) == 0


@pytest.mark.parametrize("loss", ["minimax", "relativistic"])
@pytest.mark.parametrize("penalties", [[], [{"kind": "r1", "gamma": 0.5}, {"kind": "gradient", "gamma": 2.0}]])
def test_the_unrolled_gradient_is_that_of_finite_differences(loss, penalties):
    gan = build(loss=loss, penalties=penalties, unrolled={"steps": 3, "lr": 0.4, "group": B})
    batch, z = Batch(normal(B, 2, key="x")), normal(B, Z)
    before = {name: value.clone() for name, value in gan.critic.state_dict().items()}

    def value():
        return generator_loss(gan, batch, z, progress()).value

    weight = gan.generator.network[1].weight
    (gradient,) = torch.autograd.grad(value(), weight)
    for index in ((0, 0), (1, 3)):
        ends = []
        for move in (1e-5, -2e-5):
            with torch.no_grad():
                weight[index] += move
            ends.append(float(value().detach()))
        with torch.no_grad():
            weight[index] += 1e-5
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in gan.critic.state_dict().items())
    assert all(parameter.grad is None for parameter in gan.critic.parameters())


@pytest.mark.parametrize(("loss", "clip"), [("minimax", None), ("wasserstein", None), ("wasserstein", 0.2)])
def test_a_generator_that_foresees_the_critic_minimises_the_whole_game(loss, clip):
    """Metz et al., eq. 10: less what the critic, after its steps, minimises itself, the data's part included."""
    gan = build(loss=loss, penalties=[], weight_clip=clip, unrolled={"steps": 2, "lr": 0.4, "group": B})
    batch, z = Batch(normal(B, 2, key="x")), normal(B, Z)
    fake = gan.generator(z).detach()
    ahead, game = build(loss=loss), LOSSES[loss]
    ahead.load_state_dict(gan.state_dict())
    descent = torch.optim.SGD(ahead.critic.parameters(), lr=0.4)
    for _ in range(2):
        descent.zero_grad()
        game.critic(ahead.critic(batch.x), ahead.critic(fake)).backward()
        descent.step()
        with torch.no_grad():
            clip_weights(ahead.critic, clip or math.inf)
    expected = -game.critic(ahead.critic(batch.x), ahead.critic(fake))
    torch.testing.assert_close(generator_loss(gan, batch, z, progress()).value, expected)


def test_foresight_changes_what_the_generator_learns():
    gan, plain = build(unrolled={"steps": 3, "lr": 0.4, "group": B}), build()
    batch, z = Batch(normal(B, 2, key="x")), normal(B, Z)
    grads = [
        torch.autograd.grad(generator_loss(each, batch, z, progress()).value, each.generator.network[1].weight)[0]
        for each in (gan, plain)
    ]
    assert not torch.allclose(*grads, rtol=0.01)


def ramp(rows=4):
    """A picture whose every pixel differs."""
    return torch.arange(rows * 3 * 64, dtype=torch.float64).view(rows, 3, 8, 8) / 100 + 1


def uniform(name, value, rows=4):
    return torch.full((TRANSFORMS[name].numbers, rows), value, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_transform_in_the_middle_of_its_range_is_known(name):
    x = ramp()
    found = TRANSFORMS[name].apply(x, uniform(name, 0.5))
    if name == "cutout":
        expected = x.clone()
        expected[:, :, 2:6, 2:6] = 0
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, x)


def test_transforms_at_the_end_of_their_range():
    x = ramp()
    assert torch.allclose(TRANSFORMS["brightness"].apply(x, uniform("brightness", 0.0)), x - 0.5)
    grey = TRANSFORMS["saturation"].apply(x, uniform("saturation", 0.0))
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x))
    low = TRANSFORMS["contrast"].apply(x, uniform("contrast", 0.0))
    assert torch.allclose(low.std((1, 2, 3)), x.std((1, 2, 3)) / 2)
    assert torch.allclose(low.mean((1, 2, 3)), x.mean((1, 2, 3)))
    shifts = torch.tensor([[0.0, 0.99, 0.5, 0.5], [0.5, 0.5, 0.0, 0.99]], dtype=torch.float64)
    moved = TRANSFORMS["translation"].apply(x, shifts)
    assert torch.equal(moved[0, :, :-1], x[0, :, 1:])
    assert torch.equal(moved[1, :, 1:], x[1, :, :-1])
    assert torch.equal(moved[2, :, :, :-1], x[2, :, :, 1:])
    assert torch.equal(moved[3, :, :, 1:], x[3, :, :, :-1])
    assert float(moved[0, :, -1].abs().sum()) == 0


def augmentation(spec=IMAGE, **config):
    return Augmentation(AugmentationConfig.model_validate(config), spec)


ALL = {"transforms": sorted(TRANSFORMS)}


def test_gradients_flow_through_every_transform():
    x = ramp().requires_grad_()
    (grad,) = torch.autograd.grad(augmentation(**ALL)(x, generator("flow")).square().sum(), x)
    assert bool((grad.flatten(1) != 0).any(1).all())
    assert bool(grad.isfinite().all())


def test_a_transform_is_applied_with_its_probability_whatever_it_is_applied_to():
    x = torch.ones(4000, 3, 2, 2, dtype=torch.float64)
    for probability in (0.0, 0.3, 1.0):
        seen = [
            augmentation(transforms=["brightness"], probability=probability)(data, generator("share"))
            for data in (x, -x)
        ]
        changed = (seen[0] != x).flatten(1).all(1).double().mean()
        assert float(changed) == pytest.approx(probability, abs=0.03)
        assert torch.allclose(seen[0] - x, seen[1] + x)  # of real and of generated samples alike


def test_both_players_see_the_critic_through_the_augmentation():
    gan = build(IMAGE, augmentation={"transforms": ["brightness"]})
    batch, z = Batch(normal(B, 3, 8, 8)), normal(B, Z)
    seen = []
    gan.critic.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    critic_loss(gan, batch, z, progress())
    generator_loss(gan, batch, z, progress())
    fake = gan.generator(z)
    for found, plain in zip(seen, (batch.x, fake, fake), strict=True):
        moved = (found - plain).flatten(1)
        assert torch.allclose(moved, moved[:, :1].expand_as(moved))
        assert moved[:, 0].unique().numel() == B


def test_samples_of_a_pack_are_transformed_each_on_its_own():
    gan = build(IMAGE, packing=2, augmentation={"transforms": ["brightness"]})
    packs = packed(normal(B, 3, 8, 8), 2)
    moved = unpacked(gan.augmented(packs, generator("pack")) - packs, 2).flatten(1)
    assert torch.allclose(moved, moved[:, :1].expand_as(moved))
    assert moved[:, 0].unique().numel() == B


@pytest.mark.parametrize(("margins", "moves"), [([1, 2, 3, -1], -1), ([1, 2, 3, 4], 1), ([1, 1, 1, 1, -1], 0)])
def test_the_probability_moves_towards_the_target(margins, moves):
    layer = augmentation(target=0.6, probability=0.5, ramp_samples=100)
    layer.record(torch.tensor(margins, dtype=torch.float32))
    layer.after(progress(), packing=2)
    assert float(layer.probability) == pytest.approx(0.5 + moves * 2 * len(margins) / 100)
    assert float(layer.signs.abs().sum()) == 0


def test_the_probability_stays_between_nothing_and_always():
    layer = augmentation(target=0.6, probability=0.0, ramp_samples=10)
    for sign, end in ((-1, 0), (1, 1)):
        for _ in range(9):
            layer.record(torch.full((4,), float(sign)))
            layer.after(progress(), packing=1)
        assert float(layer.probability) == end


def test_the_probability_is_of_all_workers():
    """Alone this worker would move it up, with the other it goes down by both shares."""
    layer = augmentation(target=0.6, probability=0.5, ramp_samples=100)
    layer.record(torch.ones(4))
    layer.after(progress(all_reduce=lambda mine: mine + torch.tensor([-4.0, 4.0])), packing=1)
    assert float(layer.probability) == pytest.approx(0.5 - 8 / 100)


def test_a_probability_that_is_not_adaptive_stands():
    layer = augmentation(probability=0.5)
    layer.record(torch.ones(4))
    layer.after(progress(), packing=1)
    assert float(layer.probability) == 0.5
    assert float(layer.signs.abs().sum()) == 0


def test_a_probability_is_state_where_it_is_adaptive_and_the_recipes_where_not():
    assert not augmentation(probability=0.5).state_dict()
    assert set(augmentation(target=0.6).state_dict()) == {"probability", "signs"}
    one, other = build(IMAGE, augmentation={"probability": 0.2}), build(IMAGE, augmentation={"probability": 0.7})
    other.load_state_dict(one.state_dict())
    assert float(other.augmentation.probability) == pytest.approx(0.7)


def test_an_adaptive_probability_starts_at_nothing_and_another_is_always():
    starts = [augmentation(**config) for config in ({}, {"target": 0.6}, {"target": 0.6, "probability": 0.3})]
    assert [float(layer.probability) for layer in starts] == pytest.approx([1.0, 0.0, 0.3])


@pytest.mark.parametrize("loss", ["non_saturating", "least_squares", "relativistic"])
def test_a_critics_turn_tells_the_augmentation_who_it_took_for_real(loss):
    gan = build(IMAGE, loss=loss, penalties=[], augmentation={"transforms": ["cutout"], "target": 0.6})
    batch = Batch(normal(B, 3, 8, 8))

    def brightness(packs, label=None):
        return packs.flatten(1)[:, 0]

    gan.critic.forward = brightness
    with torch.no_grad():
        gan.generator.network.layers[-2].weight.zero_()
        gan.generator.network.layers[-2].bias.fill_(0.3)
    gan.augmentation.probability.zero_()
    critic_loss(gan, batch, normal(B, Z), progress())
    boundary = {"non_saturating": 0.0, "least_squares": 0.5, "relativistic": math.tanh(0.3)}[loss]
    assert gan.augmentation.signs.tolist() == [float((batch.x[:, 0, 0, 0] - boundary).sign().sum()), B]


def test_transforms_that_mean_nothing_to_the_data_are_refused():
    with pytest.raises(ConfigError, match=r"vector.*Leave it out"):
        augmentation(POINT, transforms=["cutout"])
    grey = IMAGE.model_copy(update={"shape": (1, 8, 8)})
    with pytest.raises(ConfigError, match=r"saturation.*one channel"):
        augmentation(grey, transforms=["saturation", "cutout"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"packing": 2, "conditional": True}, "packing=2.*conditional=false"),
        ({"packing": 2, "unrolled": {"group": 5}}, "unrolled.group=5 is not a multiple of the 2"),
        ({"augmentation": {"transforms": ["cutout", "cutout"]}}, "cutout 2 times"),
        ({"loss": "wasserstein", "augmentation": {"target": 0.6}}, "loss=wasserstein"),
        ({"spectral": ["critic", "critic"]}, "critic 2 times"),
    ],
)
def test_stabilisers_that_contradict_each_other_are_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        GANConfig.model_validate(values)
