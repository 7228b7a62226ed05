"""Laws of p(x | z): masses sum to one, means are means, the optimal variance is the mean squared error."""

import math
from itertools import product

import pytest
import torch

from kinfolk.config import parse
from kinfolk.contract import ConfigError, DataSpec, Progress
from kinfolk_families.autoencoder.config import BernoulliConfig, DiscretisedLogisticConfig, GaussianConfig
from kinfolk_families.autoencoder.distributions import (
    OptimalGaussian,
    bernoulli_log_prob,
    binarise,
    clipped_logistic_mean,
    discretised_logistic_log_prob,
    gaussian_log_prob,
    make_distribution,
)

IMAGE = DataSpec(kind="image", shape=(1, 2, 2), levels=17, data_std=0.5)
VECTOR = DataSpec(kind="vector", shape=(3,), data_std=2.0)
MEANS = torch.tensor([-30.0, -1.0, -0.98, -0.3, 0.0, 0.51, 1.0, 4.0], dtype=torch.float64)
LOG_SCALES = torch.tensor([-7.0, -4.0, -1.0, 0.0, 3.0, 12.0], dtype=torch.float64)


def grid(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretised_logistic_sums_to_one_over_all_levels(levels):
    mean, log_scale, x = MEANS[:, None, None], LOG_SCALES[:, None], grid(levels)
    total = discretised_logistic_log_prob(mean, log_scale, x, levels).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


def test_discretised_logistic_is_the_mass_between_the_edges_of_an_inner_bin():
    mean, log_scale, x = torch.tensor(0.1), torch.tensor(-1.5), torch.tensor(0.25)
    edges = torch.tensor([0.25 - 1 / 16, 0.25 + 1 / 16])
    below = torch.sigmoid((edges - mean) / log_scale.exp())
    mass = discretised_logistic_log_prob(mean, log_scale, x, 17).exp()
    torch.testing.assert_close(mass, below[1] - below[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("log_scale", [-7.0, 12.0])
def test_discretised_logistic_has_finite_float32_gradients_at_extreme_scales(log_scale):
    mean = torch.full((17,), 3.0, requires_grad=True)
    scale = torch.full((17,), log_scale, requires_grad=True)
    nats = discretised_logistic_log_prob(mean, scale, grid(17).float(), 17)
    nats.sum().backward()
    assert all(values.isfinite().all() for values in (nats, mean.grad, scale.grad))


def test_clipped_logistic_mean_is_the_expected_level_of_a_fine_grid():
    levels = 2001
    mean, log_scale, x = MEANS[:, None, None], LOG_SCALES[:, None], grid(levels)
    expected = (discretised_logistic_log_prob(mean, log_scale, x, levels).exp() * x).sum(-1)
    torch.testing.assert_close(clipped_logistic_mean(mean[..., 0], log_scale[..., 0]), expected, rtol=0, atol=1e-3)


def test_discretised_logistic_sees_the_nearest_level_and_floors_the_scale():
    distribution = make_distribution(DiscretisedLogisticConfig(min_log_scale=-2.0), IMAGE)
    x = torch.tensor([[0.26, -0.97, 1.4, 0.0]]).view(1, 1, 2, 2)
    seen = distribution.observe(x, lambda: pytest.fail("nothing to draw"))
    assert seen.flatten().tolist() == [0.25, -1.0, 1.0, 0.0]
    outputs = [torch.zeros(1, *x.shape), torch.tensor([-9.0, -2.0]).view(2, 1, 1, 1, 1)]
    low, floor = distribution.log_prob((outputs[0].repeat(2, 1, 1, 1, 1), outputs[1]), seen)[:, 0]
    assert low == floor


def test_bernoulli_log_prob_sums_to_one_over_all_binary_images():
    images = torch.tensor(list(product([-1.0, 1.0], repeat=4)))  # (16, 4)
    logits = torch.linspace(-6, 6, 20).view(5, 1, 4).expand(5, 16, 4)
    total = bernoulli_log_prob(logits, images).sum(-1).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(5))


def test_bernoulli_on_has_the_probability_of_its_logit():
    torch.testing.assert_close(
        bernoulli_log_prob(torch.tensor(0.7), torch.tensor(1.0)), torch.tensor(0.7).sigmoid().log()
    )


def test_binarised_x_is_on_or_off_and_x_on_average():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.8, 1.0])
    uniform = (torch.arange(1000).double() / 1000)[:, None]
    drawn = binarise(x, uniform)
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), x, rtol=0, atol=2e-3)


def test_bernoulli_mean_is_the_probability_of_on_in_the_range_of_the_data():
    distribution = make_distribution(BernoulliConfig(), IMAGE)
    on = torch.tensor([0.0, 0.3, 0.9])
    torch.testing.assert_close(distribution.mean((on.logit(),)), 2 * on - 1)


def test_grey_targets_are_seen_as_they_are_and_have_no_log_prob():
    distribution = make_distribution(BernoulliConfig(binarise=False), IMAGE)
    x = torch.full((1, 1, 2, 2), 0.3)
    assert distribution.observe(x, lambda: pytest.fail("nothing to draw")) is x
    assert distribution.of is None


def test_gaussian_log_prob_integrates_to_one():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    density = gaussian_log_prob(torch.tensor(0.4), torch.tensor(0.3), x).exp()
    torch.testing.assert_close(torch.trapezoid(density, x), torch.tensor(1.0, dtype=torch.float64))


def test_the_optimal_variance_is_the_mean_squared_error():
    """-log p is stationary there, and is D/2 (log(2 pi mse) + 1)."""
    x, mean = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mse = (x - mean).square().mean()
    log_sigma = (mse.log() / 2).requires_grad_()
    nats = -gaussian_log_prob(mean, log_sigma, x).flatten(1).sum(1).mean()
    nats.backward()
    torch.testing.assert_close(log_sigma.grad, torch.zeros_like(mse))
    torch.testing.assert_close(nats, 1.5 * ((2 * math.pi * mse).log() + 1))


def advance_variance(parts, all_reduce=lambda value: value):
    distribution = make_distribution(GaussianConfig(halflife_samples=8), VECTOR)
    assert isinstance(distribution, OptimalGaussian)
    for x in parts:
        distribution.record((torch.zeros(1, *x.shape),), x)
    distribution.after(Progress(0, 0, torch.Generator(), all_reduce))
    return distribution


def test_a_half_life_of_a_learned_variance_is_refused_and_its_default_is_read_back():
    learned = GaussianConfig(variance="learned")
    assert parse(GaussianConfig, learned.model_dump(), "decoder") == learned
    with pytest.raises(ConfigError, match="halflife_samples=8 would have no effect: it is for variance"):
        parse(GaussianConfig, {"variance": "learned", "halflife_samples": 8}, "decoder")


def test_the_tracked_variance_moves_half_way_to_the_mean_squared_error_in_a_half_life():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    distribution = advance_variance([x])
    torch.testing.assert_close(distribution.variance, (2.0**2 + x.square().mean()) / 2)


def test_the_tracked_variance_is_the_same_over_microbatches_and_workers():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    whole = advance_variance([x])
    other = torch.stack([x[4:].square().sum(), torch.tensor(4.0)])
    for again in (advance_variance(x.split(2)), advance_variance([x[:4]], lambda value: value + other)):
        torch.testing.assert_close(again.variance, whole.variance)
        assert not again.errors.any()


@pytest.mark.parametrize("config", [BernoulliConfig(), DiscretisedLogisticConfig()])
def test_a_distribution_over_other_data_is_refused(config):
    with pytest.raises(ConfigError, match=r"decoder\.kind='.*' is over .* Use kind: gaussian"):
        make_distribution(config, VECTOR)
