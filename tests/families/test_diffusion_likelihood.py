"""Likelihood through the probability flow, against densities known in closed form."""

import math

import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import Batch, DataSpec
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import DdpmConfig, DiffusionConfig, EdmConfig, FlowConfig, LikelihoodConfig
from kinfolk_families.diffusion.integration import TABLEAUS, Point, integrate
from kinfolk_families.diffusion.likelihood import ProbabilityFlow

ENDS = (0.002, 80.0)
STD = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
FINE = LikelihoodConfig(steps=60)


def flow_of(denoise, shape, ends=ENDS, levels=None, kind="vector", data_std=0.7, config=FINE):
    return ProbabilityFlow(denoise, DataSpec(kind=kind, shape=shape, levels=levels, data_std=data_std), ends, config)


def gaussian(x_t, sigma, label):
    """E[x | x_t] of data N(label, STD^2)."""
    mean = 0.0 if label is None else label[:, None].double()
    return mean + (x_t - mean) * STD**2 / (STD**2 + sigma[:, None] ** 2)


def gaussian_log_density(x, mean=0.0, low=ENDS[0], high=ENDS[1]):
    """What the flow must find: the prior N(0, high^2), brought to ``low`` by the exact flow of N(mean, STD^2)."""
    stretch = ((STD**2 + high**2) / (STD**2 + low**2)).sqrt()
    end = mean + (x - mean) * stretch
    normal = torch.distributions.Normal(0.0, torch.tensor(high, dtype=torch.float64))
    return (normal.log_prob(end) + stretch.log()).sum(-1)


def points(rows=5):
    return STD * torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


SEEDS, SEEDS_17 = torch.arange(5), torch.arange(17)


@pytest.mark.parametrize("exact_dims", [3, 0], ids=["exact", "hutchinson"])
@pytest.mark.parametrize(
    "method",
    [{"method": "heun", "steps": 400}, {"method": "rk4", "steps": 60}, {"method": "adaptive", "tolerance": 1e-6}],
    ids=["heun", "rk4", "adaptive"],
)
def test_gaussian_data_has_the_log_density_known_for_it(method, exact_dims):
    """The Jacobian is diagonal, so Hutchinson's estimate by signs is exact as well."""
    config = LikelihoodConfig(**method, exact_dims=exact_dims)
    found = flow_of(gaussian, (3,), config=config).nats(Batch(points()), SEEDS)
    assert found.dtype == torch.float64
    assert torch.allclose(found, gaussian_log_density(points()), atol=5e-3 if method == "heun" else 1e-5)


def test_a_network_that_returns_no_numbers_ends_the_integration():
    config = LikelihoodConfig(method="adaptive")
    found = flow_of(lambda x_t, sigma, label: x_t * math.nan, (3,), config=config).nats(Batch(points()), SEEDS)
    assert found.isnan().all()


def test_a_step_that_overflows_is_taken_shorter():
    """y' = -50 y^3 from 1 is 1 / sqrt(1 + 100 s); one step over all of it squares beyond float32."""
    config = LikelihoodConfig(method="adaptive", steps=1, tolerance=1e-4)

    def steep(s, y, rows):
        return Point(-50 * y**3, torch.zeros_like(s))

    found = integrate(steep, torch.ones(2, 1), 0.0, 1.0, config).y
    assert torch.allclose(found, torch.full_like(found, 101**-0.5), atol=1e-3)


def test_a_tolerance_of_even_steps_is_refused():
    with pytest.raises(ValidationError, match=r"tolerance=0\.1 would have no effect: it is for method=adaptive"):
        LikelihoodConfig(tolerance=0.1)


def test_the_density_is_that_of_the_data_itself_up_to_the_noise_it_is_seen_with():
    """sigma_max hides the mean, sigma_min the finest detail: the plain Gaussian density is met to 0.01 nats."""
    plain = torch.distributions.Normal(0.0, STD).log_prob(points()).sum(1)
    assert torch.allclose(flow_of(gaussian, (3,)).nats(Batch(points()), SEEDS), plain, atol=0.01)


def test_a_class_has_its_own_density():
    label = torch.tensor([0, 1, 2, 0, 1])
    found = flow_of(gaussian, (3,)).nats(Batch(points(), label), SEEDS)
    assert torch.allclose(found, gaussian_log_density(points(), label[:, None].double()), atol=1e-5)


CENTRES = torch.tensor([[-0.8, 0.3], [0.9, 0.6], [0.1, -0.9]], dtype=torch.float64)
SPREAD = 0.35


def mixture(x_t, sigma, label):
    """E[x | x_t] of an even mixture of N(centre, SPREAD^2)."""
    total = SPREAD**2 + sigma[:, None] ** 2
    away = (x_t[:, None] - CENTRES).square().sum(-1)
    share = (-away / (2 * total)).softmax(1)  # (B, 3)
    nearest = share @ CENTRES
    return nearest + (x_t - nearest) * SPREAD**2 / total


def test_a_mixture_has_its_density_and_it_integrates_to_one():
    side = torch.linspace(-2.6, 2.6, 19, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    config = LikelihoodConfig(steps=24)
    found = flow_of(mixture, (2,), data_std=0.8, config=config).nats(Batch(grid), torch.arange(len(grid)))
    known = torch.distributions.Normal(CENTRES[:, None], SPREAD).log_prob(grid).sum(2).logsumexp(0) - math.log(3)
    assert float(found.exp().sum()) * (5.2 / 18) ** 2 == pytest.approx(1, abs=2e-3)
    likely = known > -12
    assert torch.allclose(found[likely], known[likely], atol=0.05)


ROTATION = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
VARIANCE = torch.linspace(0.1, 2.0, 20, dtype=torch.float64)


def correlated(x_t, sigma, label):
    """E[x | x_t] of Gaussian data with ``VARIANCE`` along the columns of ``ROTATION``."""
    return (x_t @ ROTATION * (VARIANCE / (VARIANCE + sigma[:, None] ** 2))) @ ROTATION.T


def test_hutchinsons_estimate_is_unbiased_and_its_draws_average():
    """Over 200 seeds the mean meets the exact trace's; four draws have half the spread of one."""
    x = 0.7 * torch.randn(1, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    batch, seeds = Batch(x.expand(200, 20)), torch.arange(200)
    exact = flow_of(correlated, (20,), config=LikelihoodConfig(exact_dims=20)).nats(Batch(x), torch.zeros(1).long())
    one = flow_of(correlated, (20,), config=LikelihoodConfig(exact_dims=0)).nats(batch, seeds)
    assert float(one.std()) > 0.3
    assert float(one.mean() - exact) == pytest.approx(0, abs=4 * float(one.std()) / math.sqrt(200))
    four = flow_of(correlated, (20,), config=LikelihoodConfig(exact_dims=0, draws=4)).nats(batch, seeds)
    assert float(four.std() / one.std()) == pytest.approx(0.5, abs=0.1)


def test_levels_weigh_their_width_and_are_probabilities():
    """Mass of a level of N(0, 0.3^2), by its mean log-density: summed over all levels it is just below one."""
    levels = 33
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)

    def narrow(x_t, sigma, label):
        return x_t * 0.3**2 / (0.3**2 + sigma[:, None] ** 2)

    flow = flow_of(narrow, (1,), levels=levels, config=LikelihoodConfig(steps=24, draws=20))
    assert flow.task.of == "levels"
    assert flow.task.kind == "ode"
    found = flow.nats(Batch(values[:, None]), torch.arange(levels))
    width, low = 2 / 32, 2 / 32 / math.sqrt(12)
    seen = torch.distributions.Normal(0.0, math.hypot(0.3, low))
    mass = seen.cdf(values + width / 2) - seen.cdf(values - width / 2)
    assert torch.allclose(found, mass.log(), atol=0.12)
    assert 0.97 < float(found.exp().sum()) < 1.001
    assert flow.lowest == pytest.approx(low)
    config = LikelihoodConfig(steps=16, draws=20)
    pair = flow_of(narrow, (2,), levels=levels, config=config).nats(Batch(values[8:25, None].expand(-1, 2)), SEEDS_17)
    assert torch.allclose(pair, 2 * mass.log()[8:25], atol=0.2)


def test_continuous_data_has_a_density():
    assert flow_of(gaussian, (3,)).task.of == "density"
    assert flow_of(gaussian, (3,)).lowest == ENDS[0]


@pytest.mark.parametrize("config", [LikelihoodConfig(exact_dims=0), LikelihoodConfig(method="adaptive", exact_dims=0)])
def test_a_rows_likelihood_is_a_function_of_its_seed_alone(config):
    x = 0.5 * torch.randn(70, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    flow = flow_of(correlated, (20,), levels=256, config=config)
    together = flow.nats(Batch(x), torch.arange(70))
    alone = flow.nats(Batch(x[66:68]), torch.tensor([66, 67]))
    assert torch.allclose(together[66:68], alone, atol=1e-9)
    assert not torch.allclose(flow.nats(Batch(x[66:68]), torch.tensor([0, 1])), alone, atol=1e-3)


def exponential(s, y, rows):
    """y' = y, and a divergence that is its own integral: exp(s)."""
    return Point(y, s.exp())


def error_of(method, steps):
    y = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    end = integrate(exponential, y, 0.0, 1.0, LikelihoodConfig(method=method, steps=steps))
    off = torch.cat([(end.y - y * math.e).flatten(), end.nats - (math.e - 1)])
    return float(off.abs().max())


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_integration_errors_fall_by_two_to_the_order(method, order):
    assert math.log2(error_of(method, 8) / error_of(method, 16)) == pytest.approx(order, abs=0.2)
    assert TABLEAUS[method].order == order


def test_the_embedded_pair_is_of_orders_three_and_two():
    """Hairer et al., II.1: sums of weights times powers of the nodes are 1 / k up to the order of a method."""
    rule = TABLEAUS["adaptive"]
    embedded = [weight - error for weight, error in zip(rule.weights, rule.errors, strict=True)]
    for weights, order in ((rule.weights, 3), (embedded, 2)):
        for power in range(order):
            moment = sum(w * node**power for w, node in zip(weights, rule.nodes, strict=True))
            assert moment == pytest.approx(1 / (power + 1))
    assert sum(w * node**2 for w, node in zip(embedded, rule.nodes, strict=True)) != pytest.approx(1 / 3, abs=1e-3)
    for node, stage in zip(rule.nodes, rule.stages, strict=True):
        assert sum(stage) == pytest.approx(node)
    assert rule.stages[-1] == rule.weights[:-1]  # the last slope is taken where the step ends


def test_adaptive_steps_keep_to_their_tolerance_and_are_fewer_where_little_happens():
    calls = []

    def bend(s, y, rows):
        """A bump at s = 2, of area 1, in the first row alone."""
        calls.append(len(s))
        height = (-((s - 2) ** 2) / (2 * 0.4**2)).exp() / (0.4 * math.sqrt(2 * math.pi))
        return Point(torch.zeros_like(y), torch.where(rows == 0, height, 0.0))

    config = LikelihoodConfig(method="adaptive", steps=1, tolerance=1e-6)  # the first step tried is the whole way
    end = integrate(bend, torch.zeros(2, 1, dtype=torch.float64), 0.0, 4.0, config)
    assert end.nats.tolist() == pytest.approx([1, 0], abs=1e-4)
    assert calls[0] == 2
    assert calls[-1] == 1  # the second row has long arrived


@pytest.mark.parametrize("preconditioning", [EdmConfig(), DdpmConfig(), FlowConfig()], ids=["edm", "ddpm", "flow"])
def test_a_built_models_likelihood_is_that_of_what_it_is(preconditioning):
    """A fresh EDM is the best linear estimate, the denoiser of N(0, data_std^2); all can be asked."""
    spec = DataSpec(kind="vector", shape=(2,), data_std=0.6, classes=3)
    config = DiffusionConfig(network=MlpConfig(width=8, depth=1), preconditioning=preconditioning, conditional=True)
    model = build(FAMILY, config, spec, seed=0)
    x = torch.tensor([[0.3, -0.2], [1.0, 0.1]])
    nats = model.tasks.log_prob.nats(Batch(x, torch.tensor([0, 2])), torch.arange(2))
    assert nats.isfinite().all()
    if isinstance(preconditioning, EdmConfig):
        known = torch.distributions.Normal(0.0, 0.6).log_prob(x).sum(1).double()
        assert torch.allclose(nats, known, atol=0.01)
