"""Laws of whole flows: densities integrate to one, bounds of levels, encoding, sampling, training, refusals."""

import math
from itertools import pairwise, product

import pytest
import torch

from kinfolk import sampling
from kinfolk.config import Training, parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress, RequestError, SampleRequest
from kinfolk.data.source import TensorSource
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_families.flow import FAMILY
from kinfolk_families.flow.config import Options
from kinfolk_families.flow.couplings import AffineCoupling

PLANE = DataSpec(kind="vector", shape=(2,), classes=3)
IMAGE = DataSpec(kind="image", shape=(1, 4, 4), levels=256, classes=3)
FEW = DataSpec(kind="vector", shape=(2,), levels=4)
REALNVP = {"kind": "realnvp", "levels": 1, "steps": 4, "width": 16}
GLOW = {"kind": "glow", "levels": 1, "steps": 2, "width": 8}
PLANAR = {"flow": REALNVP, "dequantisation": {"kind": "none"}}
PICTURE = {"flow": {**GLOW, "levels": 2}}
VARIATIONAL = {"kind": "variational", "steps": 4, "width": 8}
MARGINAL, LOGIT = {"kind": "marginal"}, {"kind": "logit"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(spec, scale=0.0, **config):
    """A fresh model, its weights moved by noise of ``scale``."""
    model = build(FAMILY, parse(FAMILY.config, config, "model"), spec, seed=0)
    noise = generator(5)
    for parameter in model.module.requires_grad_(False).parameters():
        parameter += scale * torch.randn(parameter.shape, generator=noise)
    return model


def random_levels(spec, rows, seed=1):
    levels = torch.randint(spec.levels, (rows, *spec.shape), generator=generator(seed))
    return spec.from_levels(levels), torch.arange(rows) % 3


def seeds(rows, first=0):
    return torch.arange(first, first + rows)


@pytest.mark.parametrize("flow", [REALNVP, GLOW], ids=["realnvp", "glow"])
@pytest.mark.parametrize("label", [None, 2])
def test_a_density_integrates_to_one_over_the_plane(flow, label):
    model = model_of(PLANE, 0.2, flow=flow, dequantisation={"kind": "none"}, conditional=label is not None)
    line = torch.linspace(-12, 12, 601)
    x = torch.cartesian_prod(line, line)
    told = None if label is None else torch.full((len(x),), label)
    likelihood = model.tasks.log_prob
    assert (likelihood.kind, likelihood.of) == ("exact", "density")
    nats = likelihood.nats(Batch(x, told), seeds(1))
    assert nats.shape == (len(x),)
    assert float(nats.exp().sum()) * float(line[1] - line[0]) ** 2 == pytest.approx(1, abs=2e-3)


def test_the_density_is_that_of_the_samples():
    """Mean log p over samples is minus the entropy, which the grid knows too."""
    model = model_of(PLANE, 0.2, **PLANAR)
    line = torch.linspace(-12, 12, 601)
    on_grid = model.tasks.log_prob.nats(Batch(torch.cartesian_prod(line, line)), seeds(1))
    entropy = -float((on_grid.exp() * on_grid).sum()) * float(line[1] - line[0]) ** 2
    x = sampling.sample(model, 4000, 0)
    assert -float(model.tasks.log_prob.nats(Batch(x), seeds(4000)).mean()) == pytest.approx(entropy, abs=0.06)


def test_a_uniform_model_takes_eight_bits_for_a_random_byte():
    """Untrained, behind the normal quantile of evenly spread levels; rotations leave a normal distribution as it is."""
    model = model_of(IMAGE, preprocessing=MARGINAL, **PICTURE)
    x, _ = random_levels(IMAGE, 16)
    nats = model.tasks.log_prob.nats(Batch(x), seeds(16))
    torch.testing.assert_close(-nats / (16 * math.log(2)), torch.full_like(nats, 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dequantisation", [{"kind": "uniform"}, VARIATIONAL], ids=["uniform", "variational"])
@pytest.mark.parametrize("preprocessing", [None, LOGIT, MARGINAL], ids=["none", "logit", "marginal"])
def test_probabilities_of_all_levels_add_up_to_no_more_than_one(dequantisation, preprocessing):
    """And to nearly as much as the flow gives to the square at all, with many draws."""
    model = model_of(FEW, 0.15, flow=GLOW, dequantisation=dequantisation, preprocessing=preprocessing)
    x = FEW.from_levels(torch.tensor(list(product(range(4), repeat=2))))
    many = model.tasks.importance_bound(Batch(x), seeds(16), 400).exp().sum()
    line = (torch.arange(200) + 0.5) / 200
    points = torch.cartesian_prod(line, line)
    z, log_det = model.module.bijection(points)
    inside = (log_det - 0.5 * z.double().square().sum(1) - math.log(2 * math.pi)).exp().mean()
    assert float(many) == pytest.approx(float(inside), abs=0.02)
    assert float(inside) < 1.001
    single = torch.stack([model.tasks.log_prob.nats(Batch(x), seeds(16, 16 * i)) for i in range(50)]).mean(0)
    assert float(single.exp().sum()) < float(many)


@pytest.mark.parametrize("dequantisation", [{"kind": "uniform"}, VARIATIONAL], ids=["uniform", "variational"])
def test_the_bound_rises_with_its_draws(dequantisation):
    model = model_of(FEW, 0.2, flow=GLOW, dequantisation=dequantisation)
    x, _ = random_levels(FEW, 200)
    likelihood = model.tasks.log_prob
    assert (likelihood.kind, likelihood.of) == ("lower_bound", "levels")
    bounds = [model.tasks.importance_bound(Batch(x), seeds(200), draws).mean() for draws in (1, 4, 16)]
    assert all(more - fewer > 1e-3 for fewer, more in pairwise(bounds))
    assert float(likelihood.nats(Batch(x), seeds(200)).mean()) == pytest.approx(float(bounds[0]))


def test_log_prob_is_the_bound_of_one_draw_and_the_anomaly_score_its_negative():
    x, _ = random_levels(IMAGE, 3)
    model = model_of(IMAGE, 0.1, **PICTURE)
    bound = model.tasks.importance_bound(Batch(x), seeds(3), 1)
    assert torch.equal(model.tasks.log_prob.nats(Batch(x), seeds(3)), bound)
    assert torch.equal(model.tasks.anomaly_score(Batch(x), seeds(3)), -bound)


def test_an_importance_bound_is_of_each_rows_seed_alone_however_its_draws_are_chunked(monkeypatch):
    model = model_of(IMAGE, 0.1, **PICTURE)
    x, _ = random_levels(IMAGE, 3)
    whole = model.tasks.importance_bound(Batch(x), seeds(3), 11)
    monkeypatch.setattr("kinfolk_families.flow.sample.ROWS_AT_ONCE", 4)
    torch.testing.assert_close(model.tasks.importance_bound(Batch(x[1:2]), seeds(1, 1), 11), whole[1:2])
    torch.testing.assert_close(model.tasks.importance_bound(Batch(x), seeds(3), 11), whole)


def test_untrained_variational_noise_is_the_uniform_noise_it_is_made_of():
    dequantiser = model_of(IMAGE, dequantisation=VARIATIONAL, **PICTURE).module.dequantiser
    uniform = torch.rand(5, 1, 4, 4, generator=generator()).clamp(0.001, 0.999)
    u, log_q = dequantiser(torch.zeros(5, 1, 4, 4, dtype=torch.int64), uniform)
    torch.testing.assert_close(u, uniform, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_q, torch.zeros_like(log_q), rtol=0, atol=1e-4)


@pytest.mark.parametrize("spec", [IMAGE, FEW], ids=["image", "vector"])
def test_the_density_of_variational_noise_is_the_inverse_of_its_jacobian(spec):
    model = model_of(spec, 0.15, flow=GLOW, dequantisation=VARIATIONAL)
    dequantiser = model.module.dequantiser.double()
    levels = torch.randint(spec.levels, (1, *spec.shape), generator=generator())
    uniform = torch.rand(1, *spec.shape, generator=generator(1), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: dequantiser(levels, v)[0], uniform)
    log_q = -torch.linalg.slogdet(jacobian.view(spec.dims, spec.dims)).logabsdet
    torch.testing.assert_close(dequantiser(levels, uniform)[1], log_q[None], rtol=0, atol=1e-6)
    other = dequantiser((levels + 1) % spec.levels, uniform)[0]
    assert not torch.allclose(other, dequantiser(levels, uniform)[0], atol=1e-3)


def test_dequantised_points_lie_in_their_own_bins_below_one_in_float32():
    module = model_of(IMAGE, **PICTURE).module
    x = IMAGE.from_levels(torch.tensor([0, 7, 255]))
    for uniform in (0.0, 0.5, 1.0):
        y, excess = module.dequantise(x.view(1, 3), torch.full((1, 3), uniform))
        assert (y * 256).floor().tolist() == [[0, 7, 255]]
        assert 0 < float(y.min()) < float(y.max()) < 1
    assert float(excess) == pytest.approx(16 * math.log(256))


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        (IMAGE, PICTURE),
        (IMAGE, {**PICTURE, "preprocessing": MARGINAL, "dequantisation": VARIATIONAL}),
        (IMAGE, {**PICTURE, "preprocessing": LOGIT}),
        (FEW, {"flow": REALNVP}),
    ],
)
def test_levels_decode_from_their_own_noise(spec, config):
    model = model_of(spec, 0.1, **config)
    x, _ = random_levels(spec, 32)
    z = model.tasks.encode(Batch(x), seeds(32))
    assert torch.equal(z, model.tasks.encode(Batch(x), seeds(32, 99)))
    assert torch.equal(model.tasks.decode(Batch(z), seeds(32)), x)


def test_levels_are_encoded_from_the_middle_of_their_bins():
    model, levels = model_of(FEW, 0.1, flow=REALNVP), torch.tensor([[0, 3], [2, 1]])
    middle, _ = model.module.bijection((levels + 0.5) / 4)
    assert torch.equal(model.tasks.encode(Batch(FEW.from_levels(levels)), seeds(2)), middle)


def test_continuous_data_decodes_from_its_own_noise():
    model = model_of(PLANE, 0.2, conditional=True, **PLANAR)
    x, label = torch.randn(32, 2, generator=generator()), torch.arange(32) % 3
    z = model.tasks.encode(Batch(x, label), seeds(32))
    torch.testing.assert_close(model.tasks.decode(Batch(z, label), seeds(32)), x, rtol=0, atol=1e-5)
    assert model.tasks.importance_bound is None
    assert model.tasks.latent_spec.shape == (2,)


def test_temperature_scales_the_noise_and_zero_gives_the_image_of_the_mode():
    model = model_of(PLANE, 0.2, **PLANAR)
    tasks = model.tasks
    warm, cool = (sampling.sample(model, 4, 3, options={"temperature": value}) for value in (1.0, 0.25))
    z_warm, z_cool = (tasks.encode(Batch(x), seeds(4)) for x in (warm, cool))
    torch.testing.assert_close(0.25 * z_warm, z_cool, rtol=0, atol=1e-5)
    mode = tasks.decode(Batch(torch.zeros(1, 2)), seeds(1))
    torch.testing.assert_close(sampling.sample(model, 4, 3, options={"temperature": 0.0}), mode.expand(4, 2))


def test_samples_of_levels_lie_on_the_levels():
    x = sampling.sample(model_of(IMAGE, 0.1, **PICTURE), 8, 0)
    assert torch.equal(IMAGE.from_levels(IMAGE.to_levels(x)), x)
    assert len(x.unique()) > 20


def interpolated(model, weight):
    count = len(weight)
    request = SampleRequest(
        torch.full((count,), 3), Options(), seed_to=torch.full((count,), 8), weight=torch.tensor(weight).double()
    )
    return sampling.run(model.tasks, request, "interpolate")


def test_interpolation_goes_from_one_sample_to_the_other_along_the_noise():
    model = model_of(PLANE, 0.2, **PLANAR)
    ends = torch.cat([sampling.sample(model, 1, seed) for seed in (3, 8)])
    between = interpolated(model, [0.0, 0.5, 1.0])
    torch.testing.assert_close(between[[0, 2]], ends, rtol=0, atol=1e-5)
    length = model.tasks.encode(Batch(between), seeds(3)).norm(dim=1)
    assert float(length[1]) == pytest.approx(float(length[0] + length[2]) / 2, rel=1e-4)


def test_a_class_moves_prior_and_couplings():
    told = {**PLANAR, "conditional": True}
    fresh = model_of(PLANE, **told)
    x = torch.randn(6, 2, generator=generator())

    def nats(model, label):
        return model.tasks.log_prob.nats(Batch(x, torch.full((6,), label)), seeds(6))

    assert torch.equal(nats(fresh, 0), nats(fresh, 1))
    prior = fresh.module.bijection.parts[-1].parts[1]
    prior.mean[1] = torch.tensor([2.0, -1.0])
    prior.log_std[1] = math.log(3.0)
    shifted = torch.distributions.Normal(torch.tensor([2.0, -1.0]), 3.0).log_prob(x).sum(1)
    torch.testing.assert_close(nats(fresh, 1), shifted.double(), rtol=0, atol=1e-5)
    assert not torch.equal(nats(fresh, 0), nats(fresh, 1))
    stirred = model_of(PLANE, 0.3, **told)
    stirred.module.bijection.parts[-1].parts[1].mean.zero_()
    stirred.module.bijection.parts[-1].parts[1].log_std.zero_()
    assert not torch.allclose(nats(stirred, 0), nats(stirred, 1), atol=1e-2)


def test_a_conditional_flow_without_labels_is_refused():
    model = model_of(PLANE, conditional=True, **PLANAR)
    with pytest.raises(RequestError, match="give labels, 0 to 2"):
        model.tasks.encode(Batch(torch.zeros(1, 2)), seeds(1))


def loss_of(module, batch, seed=0):
    (phase,) = FAMILY.phases(module)
    return phase.loss(batch, Progress(0, 0, generator(seed)))


def test_the_loss_is_the_mean_of_negative_log_prob_per_element_and_logs_bits():
    model = model_of(IMAGE, preprocessing=MARGINAL, **PICTURE)
    loss = loss_of(model.module, Batch(random_levels(IMAGE, 8)[0]))
    assert float(loss.value) == pytest.approx(math.log(256), abs=1e-4)
    assert float(loss.logs["bits_per_dim"]) == pytest.approx(8, abs=1e-4)
    assert float(loss.logs["log_prob"]) == pytest.approx(-16 * math.log(256), abs=1e-2)


def test_every_weight_learns():
    module = model_of(IMAGE, 0.1, conditional=True, dequantisation=VARIATIONAL, preprocessing=LOGIT, **PICTURE).module
    module.requires_grad_(True)
    loss_of(module, Batch(*random_levels(IMAGE, 64))).value.backward()
    assert [name for name, weight in module.named_parameters() if not (weight.grad != 0).any()] == []


def test_initialisation_makes_the_noise_of_the_first_batch_of_unit_scale():
    spec = IMAGE.model_copy(update={"shape": (1, 8, 8), "classes": None})
    levels = (torch.randn(256, 1, 8, 8, generator=generator()) * 9 + 70).round().clamp(0, 255)
    source = TensorSource(spec, levels.to(torch.uint8))
    config = parse(FAMILY.config, {**PICTURE, "preprocessing": MARGINAL}, "model")
    plan = Training(samples=256, batch_size=256)
    state = prepare(build(FAMILY, config, spec, seed=0), plan)
    logs = take_step(state, source, plan, 0, World())
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 81)
    assert float(logs["flow/bits_per_dim"]) == pytest.approx(entropy, abs=0.15)


def test_a_gaussian_of_two_dimensions_is_learnt_to_its_entropy():
    mixing = torch.tensor([[1.0, 0.8], [0.0, 0.5]])
    x = 4 + torch.randn(4096, 2, generator=generator()) @ mixing
    config = parse(FAMILY.config, {**PLANAR, "optimizer": {"kind": "adam", "lr": 0.02}}, "model")
    plan = Training(samples=256 * 60, batch_size=256)
    spec = PLANE.model_copy(update={"classes": None})
    state = prepare(build(FAMILY, config, spec, seed=0), plan)
    for _ in range(60):
        take_step(state, TensorSource(spec, x), plan, 0, World())
    with torch.no_grad():
        nats = state.model.tasks.log_prob.nats(Batch(x), seeds(1)).mean()
    entropy = 1 + math.log(2 * math.pi) + math.log(0.5)
    assert -float(nats) == pytest.approx(entropy, abs=0.05)


@pytest.mark.parametrize("spec", [PLANE, IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize("flow", [{**REALNVP, "steps": 2}, {**GLOW, "steps": 1}], ids=["realnvp", "glow"])
def test_couplings_of_the_fewest_steps_move_every_element(spec, flow):
    module = model_of(spec, flow=flow, dequantisation={"kind": "none" if spec is PLANE else "uniform"}).module
    z = torch.randn(1, spec.dims, generator=generator(2))
    before, noise = module.bijection.inverse(z), generator(3)
    for coupling in (part for part in module.modules() if isinstance(part, AffineCoupling)):
        for weight in coupling.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=noise)
    assert ((module.bijection.inverse(z) - before).abs() > 1e-5).all()


@pytest.mark.parametrize(
    ("spec", "config", "named"),
    [
        (IMAGE, {"flow": {**GLOW, "levels": 3}}, r"multiples of 2\*\*3 = 8, images are 4 x 4. Use levels: 1 to 2"),
        (IMAGE, {"flow": {"kind": "realnvp", "levels": 3}}, "Use levels: 1 to 2"),
        (IMAGE, {"flow": {**GLOW, "squeeze": 3}}, "Pad the images so that 3 divides both sides"),
        (IMAGE, {"dequantisation": {"kind": "none"}}, "of 256 levels.*Use kind: uniform or variational"),
        (PLANE, {"flow": REALNVP}, "data is continuous. Use kind: none"),
        (PLANE, {**PLANAR, "preprocessing": LOGIT}, "continuous. Leave it out"),
        (PLANE, {**PLANAR, "flow": {**REALNVP, "steps": 1}}, "the next has the opposite mask: use 2 or more"),
        (PLANE, {**PLANAR, "flow": {**REALNVP, "levels": 2}}, "vectors have one scale. Use levels: 1"),
        (PLANE, {**PLANAR, "flow": {**GLOW, "squeeze": 4}}, "squeeze=4 would have no effect: it is for images"),
        (DataSpec(kind="vector", shape=(1,)), PLANAR, "two elements or more"),
        (FEW, {"flow": REALNVP, "conditional": True}, "Use conditional: false"),
        (
            DataSpec(kind="image", shape=(1, 9, 9), levels=4),
            {"flow": {**GLOW, "squeeze": 3}, "dequantisation": VARIATIONAL},
            "even sides, images are 9 x 9. Use kind: uniform",
        ),
        (DataSpec(kind="tokens", shape=(8,), levels=4), {}, "learns image, vector data"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_is_refused(spec, config, named):
    with pytest.raises(ConfigError, match=named):
        model_of(spec, **config)
