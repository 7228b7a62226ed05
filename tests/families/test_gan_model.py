import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from kinfolk.contract import ConfigError, DataSpec
from kinfolk.rng import generator
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.config import GANConfig, PenaltyConfig
from kinfolk_families.gan.convolution import KERNEL, STRIDE, initialise
from kinfolk_families.gan.network_config import ConvNetwork, MLPNetwork, ResidualNetwork
from kinfolk_families.gan.perceptron import MLP, Octaves
from kinfolk_families.gan.resampling import doubling, halving
from kinfolk_families.gan.residual import Block, ResidualCritic

NETWORKS = {
    "conv": {"kind": "conv", "width": 8, "max_width": 16},
    "residual": {"kind": "residual", "width": 8, "max_width": 16, "blocks": 1},
    "mlp": {"kind": "mlp", "width": 16, "depth": 2},
    "resnet": {"kind": "resnet", "width": 8, "max_width": 16},
    "attention": {"kind": "conv", "width": 16, "max_width": 16, "attention": 4},
    "progressive": {"kind": "progressive", "width": 8, "max_width": 16},
    "stylegan2": {"kind": "stylegan2", "width": 8, "max_width": 16},
}
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 17, 23), (3, 5, 2), (2, 1, 1), (3, 64, 64)]
B, Z = 4, 6


def build(shape=(1, 8, 8), network="conv", kind="image", classes=10, data_std=1.0, **changes):
    values = {"conditional": True, "latent": Z, **changes}
    values |= {"embedding": 4} if values["conditional"] else {}
    values = {"generator": NETWORKS[network], "critic": NETWORKS[network], **values}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        spec = DataSpec(kind=kind, shape=shape, classes=classes, data_std=data_std)
        return FAMILY.build(GANConfig.model_validate(values), spec, {}).double()


def normal(*shape):
    return torch.randn(*shape, generator=generator("normal", *shape), dtype=torch.float64)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_pixel_is_out_of_the_players_reach(network, shape):
    """Every pixel follows from the noise, and the critic looks at every pixel, whatever the size."""
    gan = build(shape, network)
    z, label = normal(10, Z), torch.arange(10)
    fake, other = gan.generator(z, label), gan.generator(-z, label)
    assert fake.shape == (10, *shape)
    assert bool((fake != other).any(0).all())
    x = fake.detach().requires_grad_()
    (grad,) = torch.autograd.grad(gan.critic(x, label).sum(), x)
    assert bool((grad != 0).any(0).all())


def test_fully_connected_players_work_in_units_of_the_data():
    critic = {**NETWORKS["mlp"], "octaves": 3}
    unit, wide = (build((2,), "mlp", "vector", data_std=std, critic=critic) for std in (1.0, 4.0))
    z, label = normal(5, Z), torch.arange(5)
    x = unit.generator(z, label)
    torch.testing.assert_close(wide.generator(z, label), 4 * x)
    torch.testing.assert_close(wide.critic(4 * x, label), unit.critic(x, label))


def test_a_generator_of_tanh_levels_off():
    z = normal(5, Z)
    for activation, level in (("tanh", True), ("leaky_relu", False)):
        gan = build((2,), "mlp", "vector", generator={**NETWORKS["mlp"], "activation": activation}, conditional=False)
        far, farther = gan.generator(1e6 * z), gan.generator(2e6 * z)
        assert torch.allclose(far, farther) == level


def test_octaves_tell_apart_what_is_within_two_standard_deviations():
    """The grid's 5 lines lie a multiple of 2 apart at a standard deviation of 2.83: no period may fit in between."""
    octaves = Octaves(6)
    x = torch.linspace(-1.99, 1.99, 200)[:, None]
    seen = octaves(x)
    assert seen.shape == (200, 13)
    apart = torch.cdist(seen[:, 1:], seen[:, 1:]) + 9 * torch.eye(200)
    assert apart.min() > 0.1
    torch.testing.assert_close(seen[:, 1], (torch.pi / 2 * x[:, 0]).sin())
    torch.testing.assert_close(seen[:, 12], (16 * torch.pi * x[:, 0]).cos())


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_of_a_batch_do_not_touch_each_other(network):
    gan = build((3, 9, 7), network)
    z, label = normal(B, Z), torch.arange(B)
    fake = gan.generator(z, label)
    logits = gan.critic(fake, label)
    alone = gan.generator(z[1:2], label[1:2])
    assert torch.allclose(alone, fake[1:2])
    assert torch.allclose(gan.critic(alone, label[1:2]), logits[1:2])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_of_both_players_learns(network):
    gan = build((1, 9, 8), network)
    with torch.no_grad():
        gan.grow(150_000)  # halfway into the second resolution
        for parameter in gan.parameters():  # residual branches start at zero, which hides what is inside them
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator("jitter"), dtype=parameter.dtype))
    label = torch.arange(10)
    gan.critic(gan.generator(normal(10, Z), label), label).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in gan.parameters())


def test_a_projection_critic_moves_along_the_direction_of_the_class():
    gan = build()
    x = normal(B, 1, 8, 8)
    one, two = torch.full((B,), 1), torch.full((B,), 2)
    features = gan.critic.network(x)
    difference = gan.critic.directions.weight[1] - gan.critic.directions.weight[2]
    assert torch.allclose(gan.critic(x, one) - gan.critic(x, two), features @ difference)
    with torch.no_grad():
        gan.critic.directions.weight.zero_()
    assert torch.allclose(gan.critic(x, one), gan.critic.head(features)[:, 0])


def test_the_generator_is_told_the_class_of_a_conditional_model_only():
    z, label = normal(B, Z), torch.arange(B)
    told, untold = build(), build(conditional=False)
    assert not torch.allclose(told.generator(z, label), told.generator(z, label + 1))
    assert untold.condition(label) is None
    assert untold.generator.embedding is None
    assert untold.critic.directions is None


def test_vectors_are_made_by_a_perceptron():
    gan = build((2,), "mlp", kind="vector", classes=8)
    assert gan.generator(normal(B, Z), torch.arange(B)).shape == (B, 2)


def test_resolutions_halve_until_the_shorter_side_is_short():
    sizes = ConvNetwork(base=4).resolutions
    assert sizes(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert sizes(8, 8) == [(8, 8), (4, 4)]
    assert sizes(5, 40) == [(5, 40), (3, 20)]
    assert sizes(2, 2) == [(2, 2), (1, 1)]
    assert ConvNetwork(base=7).resolutions(28, 28) == [(28, 28), (14, 14), (7, 7)]
    assert ConvNetwork(width=8, max_width=20).channels(4) == [8, 16, 20, 20]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
def test_halving_is_the_filter_and_doubling_its_transpose(size):
    x = normal(2, 3, *size)
    tap = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = (tap[:, None] * tap).expand(3, 1, 3, 3)
    half, back = halving(size).double(), doubling(size).double()
    assert torch.allclose(half(x), F.conv2d(x, kernel, stride=2, padding=1, groups=3))
    y = normal(2, 3, *half(x).shape[2:])
    assert torch.allclose((x * back(y)).sum(), 4 * (half(x) * y).sum())
    assert torch.allclose(back(y)[:, :, ::2, ::2], y)  # its own pixels stay


def test_a_block_starts_as_the_identity_and_is_damped_by_the_depth():
    config = ResidualNetwork(width=16)

    def weights(depth):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Block(16, config, depth)

    shallow, deep = weights(1), weights(16)
    x = torch.randn(2, 16, 4, 4, generator=generator("block"))
    assert torch.equal(shallow(x), x)
    for layer in (0, 2):
        assert torch.allclose(shallow.branch[layer].weight, 2 * deep.branch[layer].weight)  # 16 ** (1/4) = 2


def test_a_residual_branch_keeps_the_variance_it_is_given():
    """With depth 1 nothing is damped, so what enters the last layer has twice 1/(1 + 0.2^2) of the square before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = Block(512, ResidualNetwork(width=512, group_width=256), 1).branch
    x = torch.randn(8, 512, 6, 6, generator=generator("variance"))
    widened = branch[0](x)
    mixed = branch[2](branch[1](widened))[:, :, 1:-1, 1:-1]  # zero padding lowers the border
    assert widened.var().item() == pytest.approx(1, rel=0.05)
    assert mixed.var().item() == pytest.approx(1, rel=0.05)


def test_initial_weights_keep_variance_through_a_leaky_relu():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = MLP(MLPNetwork(width=1024, depth=4), 1024)
    square = mlp(torch.randn(256, 1024, generator=generator("mlp"))).square().mean()
    assert square.item() == pytest.approx(1, rel=0.1)


def test_initial_weights_of_a_transposed_convolution_keep_variance_too():
    """Input of mean square 1 comes out with the gain's square, 2 / (1 + 0.2^2), as from any other layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(64, 16, KERNEL, STRIDE, KERNEL // 2, output_padding=1)
        initialise(layer)
    y = layer(torch.randn(32, 64, 9, 9, generator=generator("transposed")))[:, :, 2:-2, 2:-2]
    assert y.square().mean().item() == pytest.approx(2 / 1.04, rel=0.05)


def test_players_may_have_different_networks():
    gan = build(critic=NETWORKS["residual"], generator=NETWORKS["mlp"])
    assert isinstance(gan.critic.network, ResidualCritic)
    assert isinstance(gan.generator.network[0], MLP)
    assert gan.critic(gan.generator(normal(B, Z), torch.arange(B)), torch.arange(B)).shape == (B,)


@pytest.mark.parametrize("player", ["generator", "critic"])
@pytest.mark.parametrize("network", ["conv", "residual"])
def test_a_convolution_over_vectors_is_refused_by_name(player, network):
    with pytest.raises(ConfigError, match=rf"{player}\.kind={network}.*vector.*kind: mlp"):
        build((2,), "mlp", kind="vector", classes=8, **{player: NETWORKS[network]})


def test_classes_of_data_without_classes_are_refused():
    with pytest.raises(ConfigError, match="conditional: false"):
        build(classes=None)


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (GANConfig, {"penalties": [{"kind": "r1", "gamma": 1}] * 2}, "r1 2 times"),
        (GANConfig, {"loss": "wasserstien"}, "non_saturating"),
        (PenaltyConfig, {"kind": "r1", "gamma": 1, "final_gamma": 0.1}, "both or neither"),
        (PenaltyConfig, {"kind": "r1", "gamma": 1, "decay_samples": 10}, "both or neither"),
        (ResidualNetwork, {"width": 12}, "multiple of 8 for width"),
        (ResidualNetwork, {"max_width": 20}, "multiple of 8 for max_width"),
    ],
)
def test_a_config_that_contradicts_itself_says_what_would_do(kind, values, says):
    with pytest.raises(ValidationError, match=says):
        kind.model_validate(values)
