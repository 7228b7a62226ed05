"""Consistency losses against closed forms: one point, Gaussian data, and what a gradient may reach."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from kinfolk.contract import Batch, Config, DataSpec, Family, Model, Phase, Progress, Tasks
from kinfolk.step import World, make_optimizer, turn
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig
from kinfolk_families.consistency import FAMILY
from kinfolk_families.consistency.config import (
    ConsistencyConfig,
    DistillationConfig,
    EasyTuningConfig,
    ImprovedTrainingConfig,
)
from kinfolk_families.consistency.levels import Pair, noise_levels
from kinfolk_families.consistency.losses import (
    distillation_loss,
    draw_pair,
    heun,
    huber_constant,
    phases,
    pseudo_huber,
    training_loss,
)

SPEC = DataSpec(kind="vector", shape=(3,))
POINT = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64)
ECT = EasyTuningConfig(q=4, stages=3, stage_samples=100)
CD = DistillationConfig(levels=18, huber=0.0)


class Known(nn.Module):
    """A denoiser in closed form, plus ``x_t`` times a learned gain of the nearest level that starts at 0."""

    def __init__(self, spec, point=None):
        super().__init__()
        self.spec, self.point, self.levels = spec, point, noise_levels(18, 7.0, 0.002, 80.0)
        self.gain = nn.Parameter(torch.zeros(18, dtype=torch.float64))

    def forward(self, x_t, sigma, label=None, generator=None):
        """E[x | x_t] of data that is always ``point``, or N(0, 1)."""
        known = x_t / (1 + sigma[:, None] ** 2) if self.point is None else self.point.expand_as(x_t)
        nearest = (sigma.double()[:, None].log() - self.levels.log()).abs().argmin(1)
        return known + (self.gain[nearest] / (1 + sigma**2).sqrt())[:, None] * x_t


def teacher(point=None, spec=SPEC):
    family = Family(
        "known",
        frozenset({"vector"}),
        Config,
        Config,
        build=lambda config, spec, parents: Known(spec, point),
        phases=lambda module: [Phase("all", module, None, None)],
        tasks=lambda module: Tasks(options=Config(), denoise=module),
    )
    return build(family, Config(), spec, seed=0)


def student(objective, point=None, **config):
    parents = {} if isinstance(objective, ImprovedTrainingConfig) else {"teacher": teacher(point)}
    return build(FAMILY, ConsistencyConfig(objective=objective, **config), SPEC, 0, parents=parents).module


def drawn(rows=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, rows, 3, dtype=torch.float64, generator=generator)
    return x, noise


def levels(*pairs):
    sigma, after = zip(*pairs, strict=True)
    return Pair(torch.tensor(sigma, dtype=torch.float64), torch.tensor(after, dtype=torch.float64))


def progress(samples_seen=0, seed=0):
    return Progress(samples_seen, 0, torch.Generator().manual_seed(seed))


def test_pseudo_huber_of_a_right_triangle():
    """sqrt(3^2 + 4^2) - 4 = 1."""
    d = torch.tensor([[[1.0, 2.0], [2.0, 0.0]]], dtype=torch.float64)
    assert pseudo_huber(d, 4.0).tolist() == pytest.approx([1.0])


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away():
    d, c = torch.tensor([[3.0, 4.0]], dtype=torch.float64), 0.5
    assert pseudo_huber(1e-5 * d, c).item() == pytest.approx((5e-5) ** 2 / (2 * c), rel=1e-5)
    assert pseudo_huber(1e7 * d, c).item() == pytest.approx(5e7 - c, rel=1e-12)
    assert pseudo_huber(d, 0.0).item() == pytest.approx(5.0)


@pytest.mark.parametrize("c", [0.0, 0.03])
def test_pseudo_huber_has_a_gradient_of_zero_where_nothing_differs(c):
    d = torch.zeros(2, 3, requires_grad=True)
    pseudo_huber(d, c).sum().backward()
    assert torch.equal(d.grad, torch.zeros(2, 3))


def test_the_constant_is_the_published_one():
    """0.00054 sqrt(D): 0.0299 for 3 x 32 x 32, 0.0151 for 1 x 28 x 28."""
    assert huber_constant(3 * 32 * 32) == pytest.approx(0.0299, abs=1e-4)
    assert huber_constant(28 * 28) == pytest.approx(0.0151, abs=1e-4)


@pytest.mark.parametrize(("given", "used"), [(None, 0.00054 * math.sqrt(3)), (0.0, 0.0), (2.0, 2.0)])
@pytest.mark.parametrize("kind", [EasyTuningConfig, DistillationConfig])
def test_the_distance_uses_the_constant_asked_for(kind, given, used):
    x, noise = drawn()
    pair = levels(*[(3.0, 1.0)] * 8)
    loss = distillation_loss if kind is DistillationConfig else training_loss
    found = loss(student(kind(huber=given)), Batch(x), noise, pair).value
    with torch.no_grad():
        module = student(kind(huber=given))
        x_t = x + 3 * noise
        x_after = heun(gaussian, x_t, pair, None) if kind is DistillationConfig else x + noise
        distance = pseudo_huber(module(x_t, pair.sigma) - module(x_after, pair.after), used)
    scale = 1 if kind is DistillationConfig else 2  # the gap
    assert found.item() == pytest.approx(distance.mean().item() / scale, rel=1e-9)


def gaussian(x_t, sigma, label):
    return x_t / (1 + sigma[:, None] ** 2)


def test_a_heun_step_is_that_of_its_paper():
    """Written out for one element of data N(0, 1), from sigma = 2 to 1."""
    x = torch.tensor([[3.0]], dtype=torch.float64)
    slope = (3.0 - 3.0 / 5) / 2
    euler = 3.0 - slope
    slope_after = (euler - euler / 2) / 1
    assert heun(gaussian, x, levels((2.0, 1.0)), None).item() == pytest.approx(3.0 - (slope + slope_after) / 2)


def test_the_error_of_a_heun_step_falls_by_eight_when_it_halves():
    errors = []
    for step in (0.1, 0.05, 0.025):
        found = heun(gaussian, torch.ones(1, 1, dtype=torch.float64), levels((2.0, 2.0 - step)), None)
        errors.append(abs(found.item() - math.sqrt((1 + (2 - step) ** 2) / 5)))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("objective", [ECT, CD], ids=["ect", "distillation"])
@pytest.mark.parametrize("samples_seen", [0, 150, 10_000])
def test_the_loss_of_the_exact_function_of_one_point_is_zero(objective, samples_seen):
    module = student(objective, POINT)
    batch = Batch(POINT.expand(64, 3))
    noise = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair = Pair(*(level.double() for level in draw_pair(module, 64, progress(samples_seen))))
    loss = distillation_loss if objective is CD else training_loss
    assert loss(module, batch, noise, pair).value.abs() < 1e-9
    off = Batch(batch.x + 0.1) if objective is not CD else batch
    with torch.no_grad():
        module.denoiser.gain += 0.1
    assert loss(module, off, noise, pair).value > 1e-3


def test_the_loss_of_training_from_scratch_is_zero_at_one_point_too():
    module = student(ImprovedTrainingConfig(network=MlpConfig(width=8, depth=1), curriculum_samples=800, huber=0.0))
    module.denoiser = Known(SPEC, POINT)
    for samples_seen in (0, 300, 800):
        pair = Pair(*(level.double() for level in draw_pair(module, 64, progress(samples_seen))))
        noise = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert training_loss(module, Batch(POINT.expand(64, 3)), noise, pair).value.abs() < 1e-8


def test_next_to_the_end_of_the_path_the_loss_is_plain_diffusion():
    """With r = sigma_min the loss is |D(x_t, t) - x| / t."""
    module, (x, noise) = student(ECT), drawn()
    t = torch.linspace(0.5, 20, 8, dtype=torch.float64)
    found = training_loss(module, Batch(x), noise, Pair(t, torch.full_like(t, 0.002))).value
    with torch.no_grad():
        denoised = module.denoise(x + t[:, None] * noise, t, None)
    assert found.item() == pytest.approx(((denoised - x).norm(dim=1) / t).mean().item(), rel=1e-9)


def test_the_loss_divides_the_distance_of_f_by_the_gap_of_levels():
    """f of data N(0, 1) under its denoiser, an Euler step to sigma_min, written out."""
    module, (x, noise) = student(ECT), drawn(4)
    pair = levels((2.0, 0.5), (3.0, 2.9), (40.0, 10.0), (0.1, 0.002))

    def f(level):
        x_t, share = x + level[:, None] * noise, (0.002 / level)[:, None]
        return share * x_t + (1 - share) * x_t / (1 + level[:, None] ** 2)

    distance = (f(pair.sigma) - f(pair.after)).norm(dim=1)
    found = training_loss(module, Batch(x), noise, pair)
    assert found.value.item() == pytest.approx((distance / (pair.sigma - pair.after)).mean().item(), rel=1e-9)
    assert found.logs["distance"].item() == pytest.approx(distance.mean().item(), rel=1e-9)


def heard(module, loss, objective):
    """What the denoisers were asked in one turn of the phase: (x_t, sigma) of each call."""
    asked = []
    hook = module.denoiser.register_forward_hook(lambda _, given, __: asked.append(given[:2]))
    loss(module)
    hook.remove()
    return asked


def test_both_evaluations_see_the_same_noise_on_the_same_sample():
    module, (x, noise) = student(ECT), drawn()
    pair = draw_pair(module, 8, progress(200))
    asked = heard(module, lambda m: training_loss(m, Batch(x), noise, pair), ECT)
    assert len(asked) == 2
    for (x_t, sigma), level in zip(asked, pair, strict=True):
        assert torch.equal(sigma, level)
        assert torch.allclose((x_t - x) / level[:, None], noise, atol=1e-9 / float(level.min()))


def test_distillation_asks_the_target_where_the_teachers_step_leads():
    module, (x, noise) = student(CD), drawn()
    pair = draw_pair(module, 8, progress())
    asked = heard(module, lambda m: distillation_loss(m, Batch(x), noise, pair), CD)
    found = {float(sigma[0]): x_t for x_t, sigma in asked}
    x_t = x + pair.sigma[:, None] * noise
    assert torch.allclose(found[float(pair.sigma[0])], x_t)
    assert torch.allclose(found[float(pair.after[0])], heun(gaussian, x_t, pair, None))


def test_distillation_aims_at_the_target_network_and_not_at_the_student():
    module, (x, noise) = student(CD), drawn()
    pair = levels(*[(3.0, 1.0)] * 8)
    with torch.no_grad():
        module.denoiser.gain += 0.3
        x_t = x + pair.sigma[:, None] * noise
        target = student(CD)(heun(gaussian, x_t, pair, None), pair.after)  # as the target network still is
        expected = (module(x_t, pair.sigma) - target).norm(dim=1).mean()
    assert distillation_loss(module, Batch(x), noise, pair).value.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("objective", [ECT, CD], ids=["ect", "distillation"])
def test_the_target_gets_no_gradient(objective):
    """The gradient is that of the distance to a constant."""
    module, (x, noise) = student(objective), drawn()
    pair = levels(*[(3.0, 1.0), (40.0, 20.0)] * 4)
    loss = distillation_loss if objective is CD else training_loss
    loss(module, Batch(x), noise, pair).value.backward()
    found, module.denoiser.gain.grad = module.denoiser.gain.grad, None
    x_t = x + pair.sigma[:, None] * noise
    x_after = heun(gaussian, x_t, pair, None) if objective is CD else x + pair.after[:, None] * noise
    constant = module(x_after, pair.after).detach()
    distance = (module(x_t, pair.sigma) - constant).norm(dim=1)
    (distance if objective is CD else distance / (pair.sigma - pair.after)).mean().backward()
    assert torch.allclose(found, module.denoiser.gain.grad)
    assert found.abs().sum() > 0
    assert module.teacher.module.gain.grad is None


def test_what_is_drawn_follows_the_objective_and_the_samples_seen():
    gaps = [
        (p.sigma - p.after).mean() for seen in (0, 100, 250) for p in [draw_pair(student(ECT), 500, progress(seen))]
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    ict = student(ImprovedTrainingConfig(network=MlpConfig(width=8, depth=1), curriculum_samples=800))
    for seen, count in ((0, 11), (100, 21), (10_000, 1281)):
        pair, sigmas = draw_pair(ict, 500, progress(seen)), noise_levels(count, 7.0, 0.002, 80.0).float()
        assert torch.equal(sigmas[torch.searchsorted(sigmas, pair.after) + 1], pair.sigma)
    pair = draw_pair(student(CD), 500, progress(10**9))
    assert torch.isin(pair.after, noise_levels(18, 7.0, 0.002, 80.0).float()).all()


@pytest.mark.parametrize("objective", [ECT, CD], ids=["ect", "distillation"])
def test_a_turn_is_a_function_of_its_generator(objective):
    module = student(objective)
    (phase,), (x, _) = phases(module), drawn()
    first, again, other = (phase.loss(Batch(x), progress(seed=seed)).value.item() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_target_network_is_the_closed_form_average_of_what_the_student_was():
    """average_k = d^k start + (1 - d) sum_i d^(k - i) student_i."""
    module, decay = student(DistillationConfig(target_decay=0.8)), 0.8
    (phase,) = phases(module)
    expected = module.denoiser.gain.detach().clone()
    for step in range(6):
        with torch.no_grad():
            module.denoiser.gain += torch.arange(18) + step
            phase.after(progress())
        expected = decay * expected + (1 - decay) * module.denoiser.gain.detach()
    assert torch.allclose(module.target.tensors()["gain"], expected)
    weights = [(1 - decay) * decay ** (5 - i) * sum(range(i + 1)) for i in range(6)]
    assert module.target.tensors()["gain"][0].item() == pytest.approx(sum(weights))


def test_only_distillation_has_a_target_network():
    assert phases(student(ECT))[0].after is None
    assert student(ECT).target is None


def taught(objective, steps, batch_size=256):
    module = student(objective, optimizer={"kind": "adam", "lr": 0.02, "decay_samples": steps * batch_size})
    (phase,) = phases(module)
    optimizer = make_optimizer(module, phase.optimizer)
    for step in range(steps):
        where = Progress(step * batch_size, step, torch.Generator().manual_seed(step))
        x = torch.randn(batch_size, 3, generator=where.generator, dtype=torch.float64)
        turn(phase, optimizer, [Batch(x)], [where], World())
    return module


def test_distilling_a_gaussian_teacher_reproduces_its_steps_and_its_ode_map():
    """f(x_t, sigma_n) = x_t times the factors of all Heun steps below, near sqrt((1 + sigma_min^2) / (1 + sigma^2))."""
    module = taught(DistillationConfig(huber=10.0, target_decay=0.8), steps=500)
    sigmas, one = noise_levels(18, 7.0, 0.002, 80.0), torch.ones(1, 3, dtype=torch.float64)
    steps = [heun(gaussian, one, Pair(sigmas[n + 1 : n + 2], sigmas[n : n + 1]), None)[0, 0] for n in range(17)]
    composed = torch.stack([one[0, 0], *steps]).cumprod(0)
    with torch.no_grad():
        found = module(one.expand(18, 3), sigmas)[:, 0]
    scale = (1 + sigmas**2).sqrt()
    assert torch.allclose(found * scale, composed * scale, atol=0.02)
    assert torch.allclose(found * scale, torch.ones(18, dtype=torch.float64), atol=0.06)
    start = student(CD)(one.expand(18, 3), sigmas)[:, 0] * scale
    assert (start - 1).abs().max() > 0.5


def test_a_parent_is_a_model_that_students_share_and_never_train():
    shared = teacher()
    config = ConsistencyConfig(objective=ECT, optimizer={"lr": 0.1})
    one, two = (build(FAMILY, config, SPEC, 0, parents={"teacher": shared}).module for _ in range(2))
    assert isinstance(one.teacher, Model)
    (phase,) = phases(one)
    x, _ = drawn()
    turn(phase, make_optimizer(one, phase.optimizer), [Batch(x)], [progress()], World())
    assert one.denoiser.gain.abs().sum() > 0
    assert two.denoiser.gain.abs().sum() == 0
    assert one.teacher.module.gain.abs().sum() == 0
    assert not any(p.requires_grad for p in one.teacher.module.parameters())
    assert all(p.requires_grad for p in one.parameters())
