"""Laws of the Energy Transformer: its energies, its gradient written by hand, its descent."""

import math

import pytest
import torch

from kinfolk.config import Training
from kinfolk.contract import ConfigError, DataSpec, OptimizerConfig
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_families._shared.transformer import patchify
from kinfolk_families.energy import FAMILY
from kinfolk_families.energy.config import EnergyConfig, TransformerConfig
from kinfolk_families.energy.transformer import EnergyAttention, EnergyBlock, EnergyNorm, HopfieldMemory

IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, data_std=0.7)
COLOUR = DataSpec(kind="image", shape=(3, 12, 8), levels=256)
D = 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stirred(module, scale=0.5):
    """The module in float64 with weights large enough that tokens do interact."""
    noise = generator(1)
    for parameter in module.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=noise)
    return module.double().requires_grad_(False)


def block(rate=0.1, steps=12):
    return stirred(EnergyBlock(TransformerConfig(width=D, heads=3, head_width=5, memories=20, rate=rate, steps=steps)))


def tokens(batch=2, count=6, seed=2):
    return torch.randn(batch, count, D, generator=generator(seed), dtype=torch.float64)


def test_the_attention_energy_of_two_tokens_is_closed():
    """Each token has one other to attend to, so the logarithm is of a single exponential: no beta, and no self term."""
    layer = stirred(EnergyAttention(D, heads=3, head_width=5))
    g = tokens(count=2)
    query, key = ((g @ weight.T).view(2, 2, 3, 5) for weight in (layer.query, layer.key))
    expected = -(query[:, 0] * key[:, 1]).sum((1, 2)) - (query[:, 1] * key[:, 0]).sum((1, 2))
    assert torch.allclose(layer.energy(g), expected)


def test_the_attention_energy_of_three_tokens_leaves_out_each_ones_own_key():
    layer = stirred(EnergyAttention(D, heads=3, head_width=4))
    g = tokens(count=3)
    beta, total = 1 / math.sqrt(4), torch.zeros(2, dtype=torch.float64)
    query, key = ((g @ weight.T).view(2, 3, 3, 4) for weight in (layer.query, layer.key))
    for h in range(3):
        for c in range(3):
            others = [(beta * (query[:, c, h] * key[:, b, h]).sum(1)).exp() for b in range(3) if b != c]
            total -= torch.stack(others).sum(0).log() / beta
    assert torch.allclose(layer.energy(g), total)


def test_the_memory_energy_is_half_the_squared_activation():
    layer = stirred(HopfieldMemory(D, 20))
    g = tokens()
    activation = torch.einsum("btd,md->btm", g, layer.memories).clamp(min=0)
    assert torch.allclose(layer.energy(g), -0.5 * (activation**2).sum((1, 2)))


@pytest.mark.parametrize("layer", [EnergyAttention(D, 3, 5), HopfieldMemory(D, 20)], ids=["attention", "memory"])
def test_the_gradient_written_by_hand_is_the_automatic_one(layer):
    layer, g = stirred(layer), tokens().requires_grad_()
    (automatic,) = torch.autograd.grad(layer.energy(g).sum(), g)
    assert torch.allclose(layer.gradient(g), automatic, rtol=0, atol=1e-10)
    single = layer.float().gradient(g.detach().float())
    assert torch.allclose(single.double(), automatic, rtol=1e-5, atol=1e-5)


def test_the_norm_centres_scales_by_gamma_and_shifts_by_delta():
    norm = stirred(EnergyNorm(D))
    x = 3 * tokens() + 1
    g = norm(x) - norm.delta
    assert torch.allclose(g.mean(-1), torch.zeros(2, 6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(g.square().mean(-1).sqrt(), norm.log_gamma.exp().expand(2, 6), rtol=1e-4)
    assert abs(float(norm.log_gamma)) > 0.1


def test_the_norms_jacobian_is_symmetric_and_positive_so_that_descent_in_g_is_descent_in_x():
    norm, descent = stirred(EnergyNorm(D)), block()
    for x in tokens(1, 4)[0]:
        jacobian = torch.autograd.functional.jacobian(norm, x)
        assert torch.allclose(jacobian, jacobian.T, atol=1e-10)
        assert float(torch.linalg.eigvalsh(jacobian).min()) > -1e-10
    x = tokens(8).requires_grad_()
    (slope,) = torch.autograd.grad(descent.energy(x).sum(), x)
    velocity = (descent.step(x.detach()) - x.detach()) / descent.rate
    assert bool(((slope * velocity).sum((1, 2)) < 0).all())  # dE/dt


def test_a_step_is_as_long_as_the_rate_says_and_all_steps_share_their_weights():
    x = tokens()
    one, two = block(rate=0.1, steps=1), block(rate=0.1, steps=2)
    g = one.norm(x).requires_grad_()
    (gradient,) = torch.autograd.grad((one.attention.energy(g) + one.memory.energy(g)).sum(), g)
    assert torch.allclose(one(x), x - 0.1 * gradient)
    assert torch.allclose(two(x), one(one(x)))


def test_the_energy_falls_at_every_step_from_random_starts():
    descent = block(rate=0.01)
    x = tokens(30)
    energy = descent.energy(x)
    for _ in range(descent.steps):
        x = descent.step(x)
        before, energy = energy, descent.energy(x)
        assert bool((energy < before).all())


def test_trained_weights_leave_the_energy_falling_at_every_step(digits):
    config = EnergyConfig(system=TransformerConfig(patch=2, width=32, heads=4, head_width=8, memories=64))
    config = config.model_copy(update={"optimizer": OptimizerConfig(kind="adam", lr=0.01)})
    plan = Training(samples=50 * 32, batch_size=32)
    state = prepare(build(FAMILY, config, digits.spec, seed=0), plan)
    errors = [report.logs["completion/loss"] for report in train(state, digits.source("train"), plan, 0) if report.logs]
    assert errors[-1] < 0.7 * errors[0]
    descent = state.served().module.block.double()
    descent.rate = 0.01
    x = torch.randn(100, 16, 32, generator=generator(), dtype=torch.float64)
    energy = descent.energy(x)
    for _ in range(descent.steps):
        x = descent.step(x)
        before, energy = energy, descent.energy(x)
        assert bool((energy < before).all())


def test_tokens_permuted_descend_permuted():
    descent, x, order = block(), tokens(), torch.randperm(6, generator=generator(4))
    assert torch.allclose(descent(x[:, order]), descent(x)[:, order])
    assert torch.allclose(descent.energy(x[:, order]), descent.energy(x))


def transformer(spec=IMAGE, **config):
    system = TransformerConfig(**{"patch": 2, "width": 16, "heads": 2, "head_width": 4, "memories": 16, **config})
    return stirred(build(FAMILY, EnergyConfig(system=system), spec, seed=0).module, 0.2)


@pytest.mark.parametrize("spec", [IMAGE, COLOUR], ids=["grey", "colour"])
def test_what_is_hidden_does_not_reach_the_network_and_the_rest_does(spec):
    module = transformer(spec, patch=4)
    x = torch.randn(2, *spec.shape, dtype=torch.float64, generator=generator())
    hidden = torch.zeros(2, module.tokens, dtype=torch.bool)
    hidden[:, 1] = True
    other = torch.where(module.pixels(hidden), 7.0, x)
    assert torch.equal(module(x, hidden), module(other, hidden))
    shown = torch.where(module.pixels(~hidden), 7.0, x)
    assert not torch.allclose(module(x, hidden), module(shown, hidden))


def test_equal_patches_differ_by_their_place():
    module, nothing = transformer(), torch.zeros(1, 16, dtype=torch.bool)
    made = module(torch.full((1, *IMAGE.shape), 0.3, dtype=torch.float64), nothing)
    assert float(torch.pdist(patchify(made, 2)[0]).min()) > 1e-3


def test_a_patchs_value_covers_its_pixels_and_no_others():
    module = transformer(COLOUR, patch=4)
    patches = torch.arange(6.0).expand(1, 6)
    pixels = module.pixels(patches)
    assert pixels.shape == (1, 3, 12, 8)
    assert pixels[0, :, :4, :4].unique().tolist() == [0]
    assert pixels[0, :, :4, 4:].unique().tolist() == [1]
    assert pixels[0, :, 8:, 4:].unique().tolist() == [5]


def test_the_energy_of_a_picture_is_where_its_tokens_arrive():
    module = transformer()
    x = torch.randn(3, *IMAGE.shape, dtype=torch.float64, generator=generator())
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    begun = module.block.energy(module.embedded(x, nothing))
    assert bool((module.energy(x) < begun).all())
    assert torch.allclose(module.energy(x), module.block.energy(module.block(module.embedded(x, nothing))))


@pytest.mark.parametrize(
    ("spec", "patch", "named"),
    [
        (IMAGE, 3, "Use 1, 2, 4"),
        (IMAGE, 8, "Use 1, 2, 4"),
        (COLOUR, 8, "Use 1, 2, 4"),
        (DataSpec(kind="vector", shape=(2,)), 2, "Use kind: network"),
    ],
)
def test_data_that_does_not_split_into_patches_is_refused(spec, patch, named):
    with pytest.raises(ConfigError, match=named):
        build(FAMILY, EnergyConfig(system=TransformerConfig(patch=patch)), spec, seed=0)
