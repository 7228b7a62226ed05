"""What energy models do with rows: Langevin walks, what is given, denoising, scores, compositions, completion."""

import math

import pytest
import torch
from torch import nn

from kinfolk import sampling
from kinfolk.contract import Batch, ConfigError, DataSpec, Model, RequestError, SampleRequest, SamplerState
from kinfolk.ema import Ema
from kinfolk.training.state import build
from kinfolk_families.energy import FAMILY
from kinfolk_families.energy.completion import draw, drawn_after, turns
from kinfolk_families.energy.config import (
    BufferConfig,
    ComposedConfig,
    ConvConfig,
    DenoisingConfig,
    EnergyConfig,
    LangevinConfig,
    MaskConfig,
    MlpConfig,
    NetworkConfig,
    Options,
    TransformerConfig,
)
from kinfolk_families.energy.model import SpectralNorm, composed, free_energy
from kinfolk_families.energy.sample import denoise

IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
FEWER = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=2, data_std=0.7)
LINE = DataSpec(kind="vector", shape=(2,), data_std=1.0)
SMALL = BufferConfig(size=6)


def model_of(spec=IMAGE, parents=None, sampler=None, **system):
    kind = {"network": NetworkConfig, "composed": ComposedConfig, "transformer": TransformerConfig}
    made = kind[system.pop("kind", "network")](**system)
    config = EnergyConfig(system=made, sampler=sampler or Options(steps=5))
    return build(FAMILY, config, spec, seed=0, parents=parents)


def network(spec=IMAGE, **system):
    return model_of(spec, **{"buffer": SMALL, "network": MlpConfig(width=16, depth=1), **system})


def transformer(**system):
    model = model_of(kind="transformer", **{"patch": 2, "width": 16, "heads": 2, "head_width": 4, **system})
    noise = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)
    return model


class Gaussian(nn.Module):
    """E = precision / 2 |x - mean|^2. (B, D) -> (B, 1)"""

    def __init__(self, mean, precision):
        super().__init__()
        self.mean, self.precision = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(precision))

    def forward(self, x):
        return self.precision / 2 * (x - self.mean).square().sum(1, keepdim=True)


def gaussian(mean, precision, **system):
    exact = LangevinConfig(steps=20, step_size=0.1, noise=math.sqrt(0.2), gradient_limit=None)
    model = network(LINE, langevin=exact, **system)
    model.module.network = Gaussian(mean, precision)
    return model


def request(n, task_mask=None, **options):
    return SampleRequest(torch.arange(n), Options(**{"steps": 5, **options}), **(task_mask or {}))


def finish(tasks, state):
    with torch.no_grad():
        while not bool(state.done.all()):
            state = tasks.advance(state)
    return tasks.render(state)


def test_rows_of_a_gaussian_energy_have_its_mean_and_discrete_variance():
    x = sampling.sample(gaussian(1.5, 2.0), 1500, options={"steps": 25})
    assert float(x.mean()) == pytest.approx(1.5, abs=0.04)
    assert float(x.var()) == pytest.approx(1 / (2 * (1 - 2 * 0.1 / 2)), rel=0.05)


def test_step_size_and_noise_are_each_rows_own():
    model = gaussian(0.0, 1.0)
    tasks = model.tasks
    state = SamplerState.cat(
        [
            tasks.starts["sample"](request(2, step_size=0.5, noise=0.0)),
            tasks.starts["sample"](request(2, step_size=0.25, noise=0.0)),
            tasks.starts["sample"](request(2, noise=0.0)),
        ]
    )
    moved = tasks.advance(state)
    assert torch.allclose(moved.x / state.x, torch.tensor([0.5, 0.5, 0.75, 0.75, 0.9, 0.9])[:, None].expand(6, 2))
    noisy = (
        tasks.advance(tasks.starts["sample"](request(400, noise=3.0))).x - 0.9 * tasks.starts["sample"](request(400)).x
    )
    assert float(noisy.std()) == pytest.approx(3.0, rel=0.1)


def test_the_models_own_sizes_and_the_gradient_limit_hold_where_nothing_is_asked():
    langevin = LangevinConfig(steps=1, step_size=2.0, noise=0.0, gradient_limit=0.05)
    model = network(LINE, langevin=langevin)
    model.module.network = Gaussian(100.0, 1.0)
    tasks = model.tasks
    state = tasks.starts["sample"](request(3))
    assert torch.allclose(tasks.advance(state).x, state.x + 2 * 0.05)


def test_images_begin_uniform_and_stay_in_range_and_a_call_costs_a_pass_each_way():
    tasks = network().tasks
    state = tasks.starts["sample"](request(200, noise=5.0))
    assert float(state.x.var()) == pytest.approx(1 / 3, rel=0.05)
    assert state.cost.tolist() == [2] * 200
    assert float(tasks.advance(state).x.abs().max()) == 1


def test_vectors_begin_as_noise_of_the_datas_deviation():
    state = network(LINE.model_copy(update={"data_std": 3.0})).tasks.starts["sample"](request(2000))
    assert float(state.x.std()) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("model", [network(), transformer()], ids=["network", "transformer"])
def test_what_is_given_stays_and_the_rest_is_made(model):
    x = torch.rand(3, *IMAGE.shape) * 2 - 1
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    mask[:, :, :4, :4] = 1  # whole patches too
    tasks = model.tasks
    state = tasks.starts["inpaint"](request(3, {"x": x, "mask": mask}))
    made = finish(tasks, state)
    assert torch.equal(made[mask > 0], x[mask > 0])
    assert not torch.isclose(made[mask == 0], x[mask == 0]).any()
    assert state.carry.keys() == tasks.starts["sample"](request(1)).carry.keys()
    assert made.isfinite().all()


@pytest.mark.parametrize("model", [network(), transformer()], ids=["network", "transformer"])
@pytest.mark.parametrize("missing", ["x", "mask"])
def test_inpainting_without_its_data_is_refused(model, missing):
    both = {"x": torch.zeros(1, *IMAGE.shape), "mask": torch.ones(1, *IMAGE.shape)}
    del both[missing]
    with pytest.raises(RequestError) as caught:
        model.tasks.starts["inpaint"](request(1, both))
    assert caught.value.field == missing


@pytest.mark.parametrize(
    ("model", "option"),
    [(network(), {"temperature": 0.5}), (transformer(), {"noise": 0.1}), (transformer(), {"step_size": 0.1})],
)
def test_an_option_of_the_other_system_is_refused(model, option):
    with pytest.raises(RequestError) as caught:
        sampling.sample(model, 1, options=option)
    assert caught.value.field == next(iter(option))
    with pytest.raises(ValueError, match="is no option of"):
        EnergyConfig(system=model.config.system, sampler=Options(**option))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 50.0])
def test_denoising_a_gaussian_energy_ends_at_the_likeliest_clean_sample(sigma):
    """Of N(0, T / p) and noise of sigma^2 that is x_t / (1 + p sigma^2 / T)."""
    model, temperature = gaussian(0.0, 4.0), 0.5
    model.module.system = model.module.system.model_copy(
        update={
            "langevin": LangevinConfig(step_size=0.1, gradient_limit=None),
            "denoising": DenoisingConfig(steps=300, nats=1 / (temperature * LINE.dims)),
        }
    )
    x_t = torch.tensor([[1.0, -2.0]])
    found = denoise(model.module, x_t, torch.tensor([sigma]), None)
    assert torch.allclose(found, x_t / (1 + 4 * sigma**2 / temperature), atol=1e-5)


def test_denoising_of_much_noise_ends_with_its_steps():
    """With the steps it has by default: each goes p eta down the energy and a share of the way back to x_t."""
    model, sigma, strength = gaussian(0.0, 4.0), 1.0, 4.0
    langevin = LangevinConfig(step_size=1e-3, gradient_limit=None)
    model.module.system = model.module.system.model_copy(update={"langevin": langevin})
    back = 1e-3 / (10 * LINE.dims) / (sigma**2 + 1e-3 / (10 * LINE.dims))
    keep = (1 - back) * (1 - 1e-3 * strength)
    expected = keep**60 + back * (1 - keep**60) / (1 - keep)
    found = denoise(model.module, torch.tensor([[1.0, -2.0]]), torch.tensor([sigma]), None)
    assert torch.allclose(found, expected * torch.tensor([[1.0, -2.0]]), atol=1e-5)
    assert expected > 0.7  # the end of the way is at 1 / 81


@pytest.mark.parametrize("label", [None, torch.tensor([2, 0])], ids=["free", "told"])
def test_denoising_is_by_the_energy_of_the_class_told_or_by_the_free_energy_of_its_own_temperature(label):
    """One step of size 1 from x_t, of which a temperature of 1 and sigma 1 keep a half."""
    own = {"denoising": DenoisingConfig(steps=1, nats=1 / IMAGE.dims), "langevin": LangevinConfig(gradient_limit=None)}
    model = network(conditional=True, network=MlpConfig(width=64, depth=1), **own)
    for parameter in model.module.parameters():
        parameter.data *= 3
    x_t = torch.rand(2, *IMAGE.shape, requires_grad=True)
    energies = model.module.energies(x_t)
    energy = -(-energies).logsumexp(1) if label is None else energies[torch.arange(2), label]
    (slope,) = torch.autograd.grad(energy.sum(), x_t)
    assert torch.allclose(denoise(model.module, x_t, torch.ones(2), label), (x_t - slope / 2).clamp(-1, 1), atol=1e-6)


def test_denoising_without_noise_returns_its_input():
    x_t = torch.randn(2, 2)
    assert torch.equal(network(LINE).tasks.denoise(x_t, torch.zeros(2), None), x_t)


def test_denoised_images_keep_to_their_range():
    x_t = 4 * torch.rand(2, *IMAGE.shape) - 2
    assert float(network().tasks.denoise(x_t, torch.ones(2), None).abs().max()) <= 1


def test_denoising_weighs_what_is_seen_and_what_is_completed_by_their_errors(monkeypatch):
    """Independent errors of variances v and sigma^2, best mixed, leave v sigma^2 / (v + sigma^2)."""
    spec = DataSpec(kind="image", shape=(1, 96, 96), data_std=0.1)
    system = TransformerConfig(patch=2, width=4, heads=1, head_width=2, memories=4, steps=1)
    model = build(FAMILY, EnergyConfig(system=system), spec, seed=0)
    x, error, noise = 0.01 * torch.randn(3, 2, *spec.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.module, "forward", lambda seen, hidden: x + 2 * error)
    sigma = torch.tensor([1.0, 3.0])
    found = model.tasks.denoise(x + sigma.view(2, 1, 1, 1) * noise, 0.01 * sigma, None)
    left = (found - x).square().mean((1, 2, 3))
    assert torch.allclose(1e4 * left, torch.tensor([4 * 1 / 5, 4 * 9 / 13]), rtol=0.03)


def test_denoising_trusts_a_completed_pixel_by_how_much_it_can_vary(monkeypatch):
    """The error a pixel is given, sigma^2 (1 / share - 1), goes with 1 - mean^2."""
    model = transformer()
    completed = torch.tensor([0.0, 0.9]).repeat(32).view(1, *IMAGE.shape)
    monkeypatch.setattr(model.module, "forward", lambda seen, hidden: completed)
    x_t = 0.5 * torch.rand(1, *IMAGE.shape) + 0.2
    share = (model.tasks.denoise(x_t, torch.tensor([0.1]), None) - x_t) / (completed - x_t)
    given = 0.1**2 * (1 / share - 1).flatten()
    torch.testing.assert_close(given[1::2], (1 - 0.9**2) * given[::2], rtol=1e-3, atol=0)
    assert float(given.mean()) == pytest.approx(float((completed - x_t).square().mean()) - 0.1**2, rel=1e-3)


def test_denoising_by_completion_keeps_to_the_range_and_what_has_no_noise():
    denoised = transformer().tasks.denoise
    x_t = 4 * torch.rand(2, *IMAGE.shape) - 2
    assert torch.equal(denoised(x_t, torch.zeros(2), None), x_t.clamp(-1, 1))
    together = denoised(x_t, torch.ones(2), None).detach()
    assert float(together.abs().max()) <= 1
    torch.testing.assert_close(together[1:], denoised(x_t[1:], torch.ones(1), None).detach())


def test_the_anomaly_score_is_the_energy():
    model = gaussian(1.0, 3.0)
    x = torch.randn(5, 2)
    found = model.tasks.anomaly_score(Batch(x), torch.arange(5))
    assert torch.allclose(found, 1.5 * (x - 1).square().sum(1))


def test_a_conditional_energy_is_its_classes_own_and_their_free_energy_together():
    langevin = LangevinConfig(step_size=0.5, noise=1.0)  # temperature 1
    model = network(conditional=True, langevin=langevin)
    x, label = torch.randn(4, *IMAGE.shape), torch.tensor([2, 0, 1, 1])
    energies = model.module.energies(x)
    assert torch.equal(model.module(x, label), energies[torch.arange(4), label])
    assert torch.allclose(model.module(x), -(-energies).exp().sum(1).log(), atol=1e-6)
    logits = model.tasks.classify(Batch(x), torch.arange(4))
    assert torch.allclose(logits.softmax(1), (-energies).exp() / (-energies).exp().sum(1, keepdim=True))
    assert model.tasks.conditions == {"label"}


def test_free_energy_reaches_from_the_lowest_energy_to_all():
    energies = torch.tensor([[1.0, 2.0, 4.0]])
    assert free_energy(energies, 0.0).item() == 1
    assert free_energy(energies, 1e-3).item() == pytest.approx(1)
    assert free_energy(energies, 2.0).item() == pytest.approx(
        -2 * math.log(math.exp(-0.5) + math.exp(-1) + math.exp(-2))
    )


@pytest.mark.parametrize("network_config", [ConvConfig(width=4, halvings=3, hidden=8), MlpConfig(width=8, depth=2)])
def test_spectral_norm_makes_each_layers_largest_singular_value_one_and_moves_only_when_told(network_config):
    module = network(network=network_config, spectral_norm=True).module
    normalised = [one for one in module.modules() if isinstance(one, SpectralNorm)]
    assert len(normalised) == (5 if isinstance(network_config, ConvConfig) else 3)
    for one in normalised:
        one.layer.weight.data *= 3
        before = one.left.clone()
        module(torch.randn(2, *IMAGE.shape))
        assert torch.equal(one.left, before)
        for _ in range(200):
            module.settle()
        exact = torch.linalg.matrix_norm(one.layer.weight.detach().flatten(1), 2)
        assert float(one.singular_value().detach()) == pytest.approx(float(exact), rel=1e-2)
    linear = normalised[-1]
    x = torch.randn(3, linear.layer.in_features)
    expected = x @ (linear.layer.weight / linear.singular_value()).T + linear.layer.bias
    assert torch.allclose(linear(x), expected, atol=1e-6)


def test_the_spectral_norm_of_averaged_weights_is_theirs():
    module = network(network=MlpConfig(width=8, depth=2), spectral_norm=True).module
    ema = Ema(module, halflife_samples=1, ramp=1.0)
    for one in ema.average.values():
        one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(0)))
    for one in ema.averaged(module).modules():
        if isinstance(one, SpectralNorm):
            exact = torch.linalg.matrix_norm(one.layer.weight.flatten(1), 2)
            assert float(one.singular_value()) == pytest.approx(float(exact), rel=0.02)


def test_a_composed_energy_is_the_weighted_sum():
    first, second = torch.randn(4, 1), torch.randn(4, 3)
    found = composed({"first": first, "second": second}, {"first": 2.0, "second": -0.5})
    assert torch.allclose(found, 2 * first - 0.5 * second)


def test_the_free_energy_of_a_composition_is_that_of_the_summed_energies():
    """-T log sum_c exp(-sum_i w_i E_i(x, c) / T), which a sum of the parents' own free energies is not."""
    torch.manual_seed(0)
    parents = {"first": network(conditional=True), "second": network(conditional=True), "third": network()}
    for parent in parents.values():
        for parameter in parent.module.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    langevin = LangevinConfig(step_size=0.5, noise=0.8)
    weights = {"first": 0.7, "second": 1.5, "third": -2.0}
    model = model_of(parents=parents, kind="composed", weights=weights, langevin=langevin)
    x, label = torch.randn(4, *IMAGE.shape), torch.tensor([2, 0, 1, 1])
    summed = sum(weight * parents[role].module.energies(x) for role, weight in weights.items())
    temperature = 0.64
    expected = -temperature * (-summed / temperature).logsumexp(1)
    assert torch.allclose(model.tasks.anomaly_score(Batch(x), torch.arange(4)), expected, atol=1e-5)
    assert torch.allclose(model.module(x, label), summed[torch.arange(4), label], atol=1e-5)
    assert torch.allclose(model.tasks.classify(Batch(x), torch.arange(4)), -summed, atol=1e-5)
    apart = sum(weight * parents[role].module(x) for role, weight in weights.items())
    assert not torch.allclose(expected, apart, atol=1e-2)


def test_rows_of_two_composed_gaussians_have_the_products_mean_and_variance():
    """Precisions add, each times its weight; means are averaged by them."""
    parents = {"first": gaussian(-1.0, 1.0), "second": gaussian(2.0, 1.5)}
    langevin = LangevinConfig(step_size=0.1, noise=math.sqrt(0.2), gradient_limit=None)
    model = model_of(LINE, parents, kind="composed", weights={"first": 0.5, "second": 2.0}, langevin=langevin)
    precision, mean = 0.5 + 3.0, (0.5 * -1 + 3.0 * 2) / 3.5
    x = sampling.sample(model, 1500, options={"steps": 15})
    assert float(x.mean()) == pytest.approx(mean, abs=0.04)
    assert float(x.var()) == pytest.approx(1 / (precision * (1 - precision * 0.1 / 2)), rel=0.05)


def test_a_composition_with_given_weights_trains_nothing_and_one_that_learns_trains_its_weights_alone():
    parents = {"first": network(), "second": network(conditional=True)}
    fixed = model_of(parents=parents, kind="composed", weights={"first": 1.0, "second": -2.0})
    assert FAMILY.phases(fixed.module) == []
    assert fixed.module.buffer is None
    learning = model_of(
        parents=parents, kind="composed", weights={"first": 1.0, "second": 2.0}, learn_weights=True, buffer=SMALL
    )
    (phase,) = FAMILY.phases(learning.module)
    assert [p.shape for p in phase.module.parameters()] == [(2,)]
    for model, weights in ((fixed, [1, -2]), (learning, [1, 2])):
        values = model.module.weights()
        assert [values[role].item() for role in ("first", "second")] == pytest.approx(weights)
        assert model.tasks.conditions == {"label"}
        assert not any(name.startswith("parents") for name in model.module.state_dict())


def other_family():
    return Model(FAMILY, EnergyConfig(), IMAGE, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("parents", "named"),
    [
        ({}, "parents: {first: NAME@champion, second: NAME@champion}"),
        ({"first": network()}, "parents names first. Name each in both"),
        ({"first": network(), "second": network(FEWER, conditional=True)}, "knows 2 classes, this data has 3"),
        ({"first": network(), "second": transformer()}, "without an energy of x"),
        ({"first": network(), "second": other_family()}, "without an energy of x"),
        ({"first": network(), "second": network(LINE)}, "Compose models of like data"),
    ],
)
def test_parents_that_cannot_be_composed_are_refused(parents, named):
    with pytest.raises(ConfigError, match=named):
        model_of(parents=parents, kind="composed")


@pytest.mark.parametrize(
    ("system", "spec", "named"),
    [
        ({"conditional": True}, LINE, "Set conditional: false"),
        ({"network": ConvConfig()}, LINE, "Use kind: mlp"),
        ({"network": ConvConfig()}, DataSpec(kind="image", shape=(1, 7, 8)), "even height and width"),
        ({"parents": {"first": network()}}, IMAGE, "takes no parent, got first"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(system, spec, named):
    with pytest.raises(ConfigError, match=named):
        model_of(spec, **system)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MaskConfig(least=0.8, most=0.5), "must not be above"),
        (lambda: ComposedConfig(weights={"first": 0.0}, learn_weights=True), "must start there"),
        (lambda: ComposedConfig(weights={"fourth": 1.0}), "first"),
    ],
)
def test_settings_that_contradict_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(("calls", "asked"), [(1, 16), (4, 16), (16, 16), (7, 5)])
def test_patches_are_drawn_a_few_at_first_and_all_at_the_end(calls, asked):
    drawn = [
        int(drawn_after(torch.tensor([c]), torch.tensor([calls]), torch.tensor([asked]))) for c in range(calls + 1)
    ]
    assert drawn[0] == 0
    assert drawn[-1] == asked
    assert drawn == sorted(drawn)
    if calls == 4:  # 16 (1 - cos(pi/8 call)), rounded up
        assert drawn == [0, 2, 5, 10, 16]


def test_every_patch_asked_for_has_its_turn_in_an_order_of_its_seed():
    asked = torch.ones(50, 9, dtype=torch.bool)
    asked[:, 3] = False
    order = turns(torch.arange(50), asked)
    assert (order[:, 3] == -1).all()
    assert torch.equal(order[asked].view(50, 8).sort(1).values, torch.arange(8).expand(50, 8))
    assert len(order.unique(dim=0)) > 45
    assert torch.equal(turns(torch.tensor([7]), asked[:1])[0], order[7])


def test_drawn_pixels_have_the_mean_and_at_temperature_0_are_it():
    mean = torch.tensor([-0.9, 0.0, 0.6]).view(1, 1, 1, 3).expand(20_000, 1, 1, 3)
    uniform = torch.rand(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand_as(mean)
    full = draw(mean, uniform, torch.ones(20_000, 1, 1, 1))
    assert set(full.unique().tolist()) == {-1.0, 1.0}
    assert torch.allclose(full.mean(0), mean[0], atol=0.02)
    assert torch.allclose(draw(mean, uniform, torch.zeros(20_000, 1, 1, 1)), mean)
    half = draw(mean, uniform, torch.full((20_000, 1, 1, 1), 0.5))
    assert torch.allclose(half, (full + mean) / 2, atol=1e-6)
    assert (full.diff(dim=3) >= 0).all()  # one number for all: where the mean is higher, the pixel is


def test_what_is_drawn_stays_and_the_rest_is_a_preview():
    tasks = transformer().tasks
    state = tasks.starts["sample"](request(4, steps=8))
    assert state.calls.tolist() == [8] * 4
    seen, turn = [], state.carry["turn"]
    while not bool(state.done.all()):
        state = tasks.advance(state)
        seen.append(state.x)
    module = transformer().module
    for call, x in enumerate(seen):
        done = drawn_after(torch.full((4,), call + 1), torch.full((4,), 8), torch.full((4,), 16))[:, None]
        fixed = module.pixels(turn < done)
        assert torch.equal(x[fixed], seen[-1][fixed])
    assert set(seen[-1].unique().tolist()) == {-1.0, 1.0}


def test_a_patch_is_hidden_until_it_is_drawn_and_seen_from_then_on():
    model, heard = transformer(), []
    model.module.register_forward_pre_hook(lambda _, given: heard.append(given[1]))
    state = model.tasks.starts["sample"](request(3, steps=4))
    finish(model.tasks, state)
    assert len(heard) == 4
    for call, hidden in enumerate(heard):
        drawn = drawn_after(*(torch.full((3,), count) for count in (call, 4, 16)))
        assert torch.equal(hidden, state.carry["turn"] >= drawn[:, None])


def test_one_call_at_temperature_0_is_the_networks_own_completion():
    model = transformer()
    x = torch.rand(2, *IMAGE.shape) * 0.2
    mask = torch.ones_like(x)
    mask[:, :, :2, :] = 0
    tasks = model.tasks
    state = tasks.starts["inpaint"](request(2, {"x": x, "mask": mask}, steps=1, temperature=0.0))
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, :4] = True
    expected = torch.where(mask > 0, x, model.module(x, hidden).clamp(-1, 1))
    assert torch.allclose(finish(tasks, state), expected, atol=1e-6)


def test_more_steps_than_patches_take_as_many_calls_as_there_are_patches():
    assert transformer().tasks.starts["sample"](request(1, steps=500)).calls.tolist() == [16]


def test_a_completed_patch_does_not_see_itself_and_the_score_is_its_error():
    model = transformer(folds=3)
    x = torch.rand(2, *IMAGE.shape)
    batch, seeds = Batch(x), torch.tensor([5, 9])
    completed = model.tasks.complete(batch, seeds)
    assert model.tasks.reconstruct is None
    changed = x.clone()
    changed[:, :, 2:4, 4:6] += 1
    again = model.tasks.complete(Batch(changed), seeds)
    assert torch.equal(again[:, :, 2:4, 4:6], completed[:, :, 2:4, 4:6])
    assert not torch.equal(again, completed)
    assert (completed != 0).all()
    score = model.tasks.anomaly_score(batch, seeds)
    assert torch.allclose(score, (completed - x).square().mean((1, 2, 3)))
    energy = transformer(anomaly="energy")
    assert torch.equal(energy.tasks.anomaly_score(batch, seeds), energy.module.energy(x))
