"""Laws of StyleGAN2: modulation, mapping, mixing, noise, truncation and path lengths."""

import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import Batch, DataSpec, OptimizerConfig, Progress, SampleRequest
from kinfolk.rng import generator
from kinfolk.step import World, make_optimizer, turn
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.config import GANConfig, GANOptions, PathLengthConfig
from kinfolk_families.gan.equalised import EqualConv, EqualLinear, activated, pixel_normalised
from kinfolk_families.gan.losses import critic_loss, generator_loss, phases
from kinfolk_families.gan.path_length import PathLength, path_lengths
from kinfolk_families.gan.stylegan import MEAN_DECAY, ModulatedConv, demodulation

SPEC = DataSpec(kind="image", shape=(1, 9, 7), levels=17, classes=10)
NETWORK = {"kind": "stylegan2", "width": 8, "max_width": 16}
B, Z = 8, 6


def build(dtype=torch.float64, network=(), **changes):
    values = {"latent": Z, "generator": {**NETWORK, "style": 12, **dict(network)}, "critic": NETWORK, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(GANConfig.model_validate(values), SPEC, {}).to(dtype)


def normal(*shape, key="normal"):
    return torch.randn(*shape, generator=generator(key, *shape), dtype=torch.float64)


def progress(step=0, all_reduce=lambda value: value):
    return Progress(0, step, generator("progress", step), all_reduce)


def batch():
    return Batch(normal(B, *SPEC.shape, key="x"), torch.arange(B))


def test_demodulated_kernels_have_norm_one():
    weight, scale = normal(5, 4, 3, 3), normal(B, 4)
    kernels = weight * scale[:, None, :, None, None] * demodulation(weight, scale)[:, :, None, None, None]
    assert torch.allclose(kernels.flatten(2).norm(dim=2), torch.ones(B, 5, dtype=torch.float64))


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_one_with_a_kernel_for_each_sample(demodulate):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = ModulatedConv(12, 4, 5, 3, demodulate=demodulate).double()
    x, style = normal(B, 4, 6, 5), normal(B, 12, key="style")
    found = layer(x, style)
    for row in range(B):
        kernel = layer.weight * layer.scale * layer.affine(style)[row][None, :, None, None]
        if demodulate:
            kernel = kernel / kernel.flatten(1).norm(dim=1)[:, None, None, None]
        expected = torch.nn.functional.conv2d(x[row : row + 1], kernel, padding=1)
        assert torch.allclose(found[row : row + 1], expected, atol=1e-6)


def test_a_demodulated_layer_does_not_see_the_length_of_its_scale():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = ModulatedConv(12, 4, 5, 3).double()
    x, style = normal(B, 4, 6, 5), normal(B, 12, key="style")
    before = layer(x, style)
    with torch.no_grad():
        layer.affine.weight *= 3
        layer.affine.bias *= 3
    assert torch.allclose(layer(x, style), before, atol=1e-6)


def test_the_rate_of_the_mapping_moves_its_weights_so_much_less_and_starts_them_alike():
    """Adam's first step is the rate, whatever the gradient: scaled weights move by rate * lr / root of inputs."""

    def layer(lr):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return EqualLinear(16, 4, lr=lr, shift=1.0)

    x = normal(B, 16).float()
    slow, fast = layer(0.01), layer(1.0)
    assert torch.allclose(slow(x), fast(x), atol=1e-5)
    for each, lr in ((slow, 0.01), (fast, 1.0)):
        before = (each.weight * each.scale).detach().clone()
        optimizer = torch.optim.Adam(each.parameters(), lr=0.1)
        each(x).square().sum().backward()
        optimizer.step()
        moved = ((each.weight * each.scale) - before).abs()
        assert torch.allclose(moved, torch.full_like(moved, 0.1 * lr / 4), rtol=1e-3)


def test_the_mapping_of_a_recipe_learns_at_its_rate():
    gan = build(network={"mapping_lr": 0.02, "mapping_depth": 3})
    assert [layer.lr for layer in gan.generator.network.mapping] == [0.02] * 3


def test_equalised_layers_keep_the_mean_square():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(EqualLinear(512, 512), (256, 512)), (EqualConv(128, 128, 3), (8, 128, 12, 12))]
    for layer, shape in layers:
        y = activated(layer(normal(*shape).float()))
        inside = y[:, :, 1:-1, 1:-1] if y.ndim == 4 else y
        assert float(inside.detach().square().mean()) == pytest.approx(1, rel=0.05)


def test_every_pixel_has_mean_square_one():
    x = pixel_normalised(3 * normal(4, 6, 2, 3))
    assert torch.allclose(x.square().mean(1), torch.ones(4, 2, 3, dtype=torch.float64))


def noisy(gan):
    """With noise that shows: its strength is 0 at first."""
    with torch.no_grad():
        for layer in gan.generator.network.layers:
            layer.strength.fill_(0.5)
    return gan


def test_noise_is_fresh_while_training_and_constant_in_a_picture():
    gan, z = noisy(build()), normal(B, Z)
    pictures = [gan.generator.training_samples(z, None, generator("noise", key))[0] for key in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2])
    assert torch.equal(gan.generator(z), gan.generator(z))
    assert torch.allclose(gan.generator(z[3:4])[0], gan.generator(z)[3])
    assert sum("constant" in name for name in gan.state_dict()) == len(gan.generator.network.layers)


def test_without_noise_and_mixing_a_picture_is_the_training_sample():
    gan, z = build(), normal(B, Z)
    assert torch.allclose(gan.generator(z), gan.generator.training_samples(z, None, generator("noise"))[0])


def test_mixed_samples_change_style_once_and_never_at_the_first_layer():
    network = build(network={"mixing": 0.5}).generator.network
    B, L = 4000, len(network.layers)
    styles, others = torch.zeros(B, L, 2), torch.ones(B, L, 2)
    mixed = network.mixed(styles, others, generator("mix"))[..., 0]
    assert float(mixed[:, 0].sum()) == 0
    assert bool((mixed.diff(dim=1) >= 0).all())
    assert float(mixed[:, -1].mean()) == pytest.approx(0.5, abs=0.03)
    places = mixed[mixed[:, -1] == 1].sum(1)  # layers after the change
    assert set(places.tolist()) == set(range(1, L))


@pytest.mark.parametrize("conditional", [True, False])
def test_a_second_style_is_of_the_same_class(conditional):
    gan = build(network={"mixing": 1.0}, conditional=conditional)
    seen = []
    network = gan.generator.network
    network.mapping.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    label = torch.arange(B) if conditional else None
    gan.generator.training_samples(normal(B, Z), label, generator("second"))
    first, second = seen
    assert not torch.allclose(first[:, :Z], second[:, :Z])
    assert torch.equal(first[:, Z:], second[:, Z:])


def test_truncation_of_nothing_is_the_picture_of_the_mean_style():
    gan, z = build(), normal(B, Z)
    network = gan.generator.network
    with torch.no_grad():
        network.mean_style.copy_(normal(12, key="mean"))
        found = gan.generator(z, None, torch.zeros(B, dtype=torch.float64))
        mean = network(network.mean_style.expand(1, len(network.layers), -1))
        assert torch.allclose(found, mean.expand_as(found))
        assert torch.allclose(gan.generator(z, None, torch.ones(B, dtype=torch.float64)), gan.generator(z))
        half = network.styles(z) / 2 + network.mean_style / 2
        assert torch.allclose(gan.generator(z, None, torch.full((B,), 0.5, dtype=torch.float64)), network(half))


def test_a_row_is_truncated_as_its_request_says():
    gan = build(dtype=torch.float32)
    tasks = FAMILY.tasks(gan)
    state = tasks.starts["sample"](SampleRequest(torch.arange(3), GANOptions(truncation=0.5)))
    z = state.carry["z"]
    with torch.no_grad():
        expected = gan.generator(z, None, torch.full((3,), 0.5))
        assert torch.allclose(tasks.render(tasks.advance(state)), expected)
        assert not torch.allclose(expected, gan.generator(z), atol=1e-3)


def test_the_mean_style_follows_the_styles_of_all_workers():
    gan, z = build(), normal(B, Z)
    network = gan.generator.network
    generator_loss(gan, batch(), z, progress())
    mean = network.styles(z)[:, 0].mean(0)
    other = torch.cat([torch.full((12,), 3.0 * B), torch.tensor([float(B)])]).double()
    with torch.no_grad():
        phases(gan)[1].after(progress(all_reduce=lambda mine: mine + other))
    assert torch.allclose(network.mean_style, (1 - MEAN_DECAY) * (mean + 3) / 2)
    assert float(network.style_sum.abs().sum()) == 0


def test_the_critics_turn_leaves_the_mean_style_alone():
    gan = build()
    critic_loss(gan, batch(), normal(B, Z), progress())
    assert float(gan.generator.network.style_sum.abs().sum()) == 0


def test_the_path_length_of_a_linear_generator_is_its_closed_form():
    """Of pictures A w it is |A^T y| over the root of the pixels, if one layer takes the style."""
    matrix, styles = normal(12, 5, key="matrix"), normal(B, 1, 5).requires_grad_()
    noise = normal(B, 1, 4, 3, key="noise")
    pictures = (styles[:, 0] @ matrix.T).view(B, 1, 4, 3)
    expected = (noise.flatten(1) @ matrix).norm(dim=1) / 12**0.5
    assert torch.allclose(path_lengths(pictures, styles, noise), expected)


def test_over_layers_a_path_length_is_the_root_mean_square():
    matrix, styles = normal(12, 5, key="matrix"), normal(B, 2, 5).requires_grad_()
    noise = normal(B, 1, 4, 3, key="noise")
    pictures = ((styles[:, 0] + 2 * styles[:, 1]) @ matrix.T).view(B, 1, 4, 3)
    one = (noise.flatten(1) @ matrix).norm(dim=1) / 12**0.5
    assert torch.allclose(path_lengths(pictures, styles, noise), one * (5 / 2) ** 0.5)


def test_the_path_penalty_measures_from_the_running_mean_and_moves_it_once_a_turn():
    layer = PathLength(PathLengthConfig(weight=3.0, every_steps=2, decay=0.25)).double()
    layer.mean.fill_(0.7)
    matrix, styles = normal(12, 5, key="matrix"), normal(B, 1, 5).requires_grad_()
    pictures = (styles[:, 0] @ matrix.T).view(B, 1, 4, 3)
    cost, mean = layer(pictures, styles, generator("paths"))
    noise = torch.randn(pictures.shape, generator=generator("paths"), dtype=torch.float64)
    lengths = path_lengths(pictures, styles, noise)
    assert torch.allclose(cost, 3 * 2 * (lengths - 0.7).square().mean())
    assert torch.allclose(mean, lengths.mean())
    with torch.no_grad():
        other = torch.tensor([2.0 * B, B], dtype=torch.float64)
        layer.after(progress(all_reduce=lambda mine: mine + other))
        assert torch.allclose(layer.mean, 0.75 * 0.7 + 0.25 * (lengths.mean() + 2) / 2)
        before = layer.mean.clone()
        layer.after(progress())  # a turn in which no lengths were taken
        assert torch.equal(layer.mean, before)


def test_paths_are_measured_in_every_so_many_turns_of_the_generator():
    gan = build(path_length={"weight": 1.0, "every_steps": 2}, critic_steps=2)
    due = ["path_length" in generator_loss(gan, batch(), normal(B, Z), progress(step)).logs for step in (0, 2, 4, 6)]
    assert due == [True, False, True, False]


def test_paths_cost_what_their_penalty_says():
    batch_, z = batch(), normal(B, Z)
    with_paths, without = build(path_length={"weight": 1.0}), build()
    cost = (
        generator_loss(with_paths, batch_, z, progress()).value - generator_loss(without, batch_, z, progress()).value
    )
    draws = progress().generator
    pictures, styles = with_paths.generator.training_samples(z, None, draws)
    expected, _ = with_paths.generator.path_length(pictures, styles, draws)
    assert torch.allclose(cost, expected)


def test_a_turn_with_paths_moves_every_part_of_the_generator():
    gan = build(dtype=torch.float32, path_length={"every_steps": 1}, network={"mixing": 0.9})
    sgd = OptimizerConfig(kind="adam", lr=0.1)
    before = {name: value.clone() for name, value in gan.generator.named_parameters()}
    phase = phases(gan)[1]
    x = Batch(batch().x.float())
    turn(phase, make_optimizer(phase.module, sgd), [x], [progress()], World())
    assert all(not torch.equal(value, before[name]) for name, value in gan.generator.named_parameters())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"path_length": {}}, r"path_length.*no effect: it is for generator\.kind=stylegan2"),
        ({"generator": {"kind": "stylegan2"}, "spectral": ["generator"]}, "spectral names the generator"),
    ],
)
def test_what_is_not_for_this_generator_is_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        GANConfig.model_validate(values)
