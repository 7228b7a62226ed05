"""Laws of layers whose weight has spectral norm 1, and of self-attention."""

import copy

import pytest
import torch
from torch import nn

from kinfolk.contract import Batch, ConfigError, DataSpec, OptimizerConfig, Progress
from kinfolk.ema import Ema
from kinfolk.rng import generator
from kinfolk.step import World, make_optimizer, turn
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.attention import SelfAttention, attention_level
from kinfolk_families.gan.config import GANConfig
from kinfolk_families.gan.losses import phases
from kinfolk_families.gan.spectral import SpectrallyNormalised, normalise_spectrally

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10)
NETWORKS = {
    "conv": {"kind": "conv", "width": 8, "attention": 4},
    "resnet": {"kind": "resnet", "width": 8},
    "residual": {"kind": "residual", "width": 8, "blocks": 1},
    "mlp": {"kind": "mlp", "width": 16, "depth": 2},
    "progressive": {"kind": "progressive", "width": 8},
}
B = 8


def normal(*shape, key="normal"):
    return torch.randn(shape, generator=generator(key, *shape))


def build(network="conv", critic=None, **changes):
    generator_network = NETWORKS[network]
    values = {"latent": 6, "conditional": True, "spectral": ["generator", "critic"], **changes}
    values |= {"generator": generator_network, "critic": critic or generator_network}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(GANConfig.model_validate(values), SPEC, {})


def progress(step=0):
    return Progress(0, step, generator("progress", step))


def trained(gan, steps=20):
    """After some steps at a rate that moves weights far."""
    optimizers = {
        phase.name: make_optimizer(phase.module, OptimizerConfig(kind="adam", lr=0.01)) for phase in phases(gan)
    }
    batch = Batch(normal(B, *SPEC.shape, key="x"), torch.arange(B))
    for step in range(steps):
        for phase in phases(gan):
            turn(phase, optimizers[phase.name], [batch], [progress(step)], World())
    return gan


def layers_of(module):
    return [layer for layer in module.modules() if isinstance(layer, SpectrallyNormalised)]


def top_singular_value(layer):
    weight = layer.weight().detach()
    if isinstance(layer.layer, nn.ConvTranspose2d):
        weight = weight.movedim(1, 0)
    return float(torch.linalg.svdvals(weight.flatten(1))[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_top_singular_value_is_one_before_and_while_training(network):
    gan = build(network)
    names = {name.rpartition(".")[0] for name, _ in gan.named_parameters()}
    for player in (gan.generator, gan.critic):
        assert layers_of(player)
        for layer in layers_of(player):
            assert top_singular_value(layer) == pytest.approx(1, abs=0.01)
    plain = {
        n for n, m in gan.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding)
    }
    assert all(name.endswith(".layer") for name in names & plain)
    trained(gan)
    for layer in (*layers_of(gan.critic), *layers_of(gan.generator)):
        assert top_singular_value(layer) == pytest.approx(1, abs=0.01)


def test_the_top_singular_value_of_averaged_weights_is_one_and_the_live_state_is_left_alone():
    gan = build("mlp")
    ema = Ema(gan, halflife_samples=B, ramp=1.0)
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in gan.parameters():
                parameter.add_(0.3 * normal(*parameter.shape, key=f"jitter {step}"))
        for phase in phases(gan):
            phase.after(progress())
        ema.update(B, samples_seen=1000)
    live = copy.deepcopy(gan.state_dict())
    served = ema.averaged(gan)
    assert all(top_singular_value(layer) == pytest.approx(1, abs=0.01) for layer in layers_of(served))
    assert all(torch.equal(gan.state_dict()[name], value) for name, value in live.items())


def test_a_layer_with_another_weight_is_the_layer_itself():
    layers = [
        (nn.Linear(5, 3), normal(2, 5)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), normal(2, 4, 7, 8)),
        (nn.ConvTranspose2d(4, 3, 5, 2, 2, output_padding=(1, 0)), normal(2, 4, 3, 5)),
        (nn.Embedding(7, 3), torch.arange(7)),
    ]
    for layer, x in layers:
        normalised = SpectrallyNormalised(copy.deepcopy(layer))
        with torch.no_grad():
            layer.weight.copy_(normalised.weight())
            if getattr(layer, "bias", None) is not None:
                layer.bias.copy_(normalised.layer.bias)
        assert torch.allclose(normalised(x), layer(x), atol=1e-6)


def test_passes_leave_the_singular_vectors_alone_and_the_end_of_a_turn_moves_them():
    gan = build()
    before = {name: value.clone() for name, value in gan.state_dict().items() if "left" in name or "right" in name}
    batch = Batch(normal(B, *SPEC.shape, key="x"), torch.arange(B))
    for phase in phases(gan):
        phase.loss(batch, progress())
    assert all(torch.equal(gan.state_dict()[name], value) for name, value in before.items())
    with torch.no_grad():
        for parameter in gan.parameters():
            parameter.add_(0.1 * normal(*parameter.shape, key="jitter"))
    critic, generator_phase = phases(gan)
    critic.after(progress())
    moved = {name for name, value in before.items() if not torch.equal(gan.state_dict()[name], value)}
    assert moved
    assert all(name.startswith("critic.") for name in moved)
    generator_phase.after(progress())
    moved = {name for name, value in before.items() if not torch.equal(gan.state_dict()[name], value)}
    assert any(name.startswith("generator.") for name in moved)


def test_the_gradient_goes_through_the_norm():
    """Scaling a normalised weight changes nothing, so the gradient has no part along the weight."""
    layer = SpectrallyNormalised(nn.Linear(5, 3).double())
    x = normal(4, 5).double()
    (grad,) = torch.autograd.grad((layer(x) - layer.layer.bias).square().sum(), layer.layer.weight)
    assert float((grad * layer.layer.weight).sum().detach()) == pytest.approx(0, abs=1e-9)
    assert float(grad.abs().sum()) > 0


def test_a_normalised_perceptron_has_slope_one_at_most():
    mlp = nn.Sequential(nn.Linear(6, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    normalise_spectrally(mlp)
    x, y = normal(500, 6, key="x"), normal(500, 6, key="y")
    slopes = (mlp(x) - mlp(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(slopes.detach().max()) <= 1.01


def test_equalised_layers_of_a_critic_are_normalised_whatever_their_scale():
    gan = build("mlp", critic={"kind": "stylegan2", "width": 8}, spectral=["critic"])
    assert all(top_singular_value(layer) == pytest.approx(1, abs=0.01) for layer in layers_of(gan.critic))


def test_attention_starts_as_the_identity_and_mixes_every_position():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SelfAttention(16)
    x = normal(2, 16, 3, 5)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.gain.fill_(1.0)
    y = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((layer(y) - y)[0, 0, 0, 0], y)
    assert bool((grad[0].abs().sum(0) > 0).all())
    assert float(grad[1].abs().sum()) == 0


def test_attention_is_its_formula():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SelfAttention(8)
    with torch.no_grad():
        layer.gain.fill_(0.5)
    x = normal(1, 8, 2, 2)
    columns = x[0].flatten(1)  # (C, N)
    query, key, value, output = (
        each.weight[:, :, 0, 0] for each in (layer.query, layer.key, layer.value, layer.output)
    )
    for n in range(4):
        scores = torch.stack([(query @ columns[:, n]) @ (key @ columns[:, m]) for m in range(4)])
        mixed = sum(share * (value @ columns[:, m]) for m, share in enumerate(scores.softmax(0)))
        assert torch.allclose(layer(x)[0].flatten(1)[:, n], columns[:, n] + 0.5 * output @ mixed, atol=1e-5)


def test_attention_is_at_the_finest_resolution_it_may_be_at():
    sizes = [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert [attention_level(side, sizes, 0) for side in (32, 28, 27, 7, 6)] == [0, 0, 1, 2, 3]
    assert attention_level(28, sizes, 1) == 1
    assert attention_level(None, sizes, 0) is None
    with pytest.raises(ConfigError, match=r"attention=3.*4 x 4.*at least 4"):
        attention_level(3, sizes, 0)


@pytest.mark.parametrize(("network", "side"), [("conv", 4), ("resnet", 8), ("resnet", 4)])
def test_both_players_attend_where_the_recipe_says(network, side):
    shapes = []
    other = {**NETWORKS[network], "attention": side}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        gan = FAMILY.build(GANConfig.model_validate({"latent": 6, "generator": other, "critic": other}), SPEC, {})
    for module in gan.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[2:])))
    gan.critic(gan.generator(normal(2, 6)))
    assert shapes == [(side, side)] * 2
