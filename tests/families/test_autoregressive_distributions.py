"""Laws of what a position's outputs mean: probabilities sum to one, and drawing agrees with weighing."""

from itertools import product

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk_families._shared.discretised import binarise, discretised_logistic_log_prob
from kinfolk_families.autoregressive.config import BernoulliConfig, CategoricalConfig, MixtureConfig
from kinfolk_families.autoregressive.distributions import Mixture, make_distribution
from kinfolk_families.autoregressive.tokens import Tokeniser


def image(channels, levels):
    return DataSpec(kind="image", shape=(channels, 2, 2), levels=levels)


def mixture(levels, group, components=3):
    return Mixture(MixtureConfig(components=components), image(group, levels), group)


def outputs_for(distribution, positions=6, scale=2.0):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(positions, distribution.outputs, generator=generator)


CASES = {
    "bernoulli": lambda: (make_distribution(BernoulliConfig(), Tokeniser(image(1, 2))), 2, 1),
    "categorical": lambda: (make_distribution(CategoricalConfig(), Tokeniser(image(1, 9))), 9, 1),
    "grey mixture": lambda: (mixture(256, 1, 10), 256, 1),
    "two levels": lambda: (mixture(2, 1), 2, 1),
    "coupled mixture": lambda: (mixture(5, 3), 5, 3),
}


@pytest.fixture(params=CASES)
def case(request):
    """A distribution, its vocabulary and how many tokens it draws at a position."""
    return CASES[request.param]()


def test_probabilities_of_all_tokens_sum_to_one(case):
    distribution, vocabulary, group = case
    outputs = outputs_for(distribution)
    tokens = torch.tensor(list(product(range(vocabulary), repeat=group)))  # (V^G, G)
    nats = distribution.log_prob(outputs[:, None].expand(-1, len(tokens), -1), tokens.expand(len(outputs), -1, -1))
    torch.testing.assert_close(nats.exp().sum(1), torch.ones(len(outputs)), rtol=0, atol=1e-5)


def test_choices_one_after_the_other_multiply_to_the_probability(case):
    distribution, vocabulary, group = case
    outputs = outputs_for(distribution)
    tokens = torch.randint(vocabulary, (len(outputs), group), generator=torch.Generator().manual_seed(4))
    chosen = [distribution.choices(outputs, tokens, place).gather(1, tokens[:, place, None]) for place in range(group)]
    torch.testing.assert_close(torch.cat(chosen, 1).sum(1), distribution.log_prob(outputs, tokens))


def test_a_choice_looks_at_no_token_that_is_yet_to_come(case):
    distribution, vocabulary, group = case
    outputs = outputs_for(distribution)
    tokens = torch.zeros(len(outputs), group, dtype=torch.int64)
    for place in range(group):
        other = tokens.clone()
        other[:, place:] = vocabulary - 1
        assert torch.equal(distribution.choices(outputs, tokens, place), distribution.choices(outputs, other, place))


def test_choices_sum_to_one(case):
    distribution, _, group = case
    outputs = outputs_for(distribution)
    tokens = torch.zeros(len(outputs), group, dtype=torch.int64)
    for place in range(group):
        total = distribution.choices(outputs, tokens, place).exp().sum(1)
        torch.testing.assert_close(total, torch.ones(len(outputs)), rtol=0, atol=1e-5)


def test_later_channels_of_a_component_move_with_earlier_ones():
    """PixelCNN++, eq. 3: mean of blue = m_b + c_1 red + c_2 green, coefficients through tanh."""
    distribution = mixture(5, 3, components=1)
    outputs = torch.zeros(1, distribution.outputs)
    outputs[0, 1:4] = torch.tensor([0.1, -0.2, 0.3])  # means
    outputs[0, 4:7] = -1.5  # log-scales
    outputs[0, 7:10] = torch.tensor([0.5, -0.8, 1.2])  # green of red, blue of red, blue of green
    red, green, c = -0.5, 1.0, torch.tensor([0.5, -0.8, 1.2]).tanh()
    tokens = torch.tensor([[1, 4, 0]])
    grid, scale = torch.linspace(-1, 1, 5), torch.tensor(-1.5)
    means = [0.1, -0.2 + c[0] * red, 0.3 + c[1] * red + c[2] * green]
    for place, mean in enumerate(means):
        expected = discretised_logistic_log_prob(torch.tensor(float(mean)), scale, grid, 5)
        torch.testing.assert_close(distribution.choices(outputs, tokens, place)[0], expected)


def test_a_mixture_is_the_weighted_sum_of_its_components():
    distribution = mixture(9, 1, components=2)
    outputs = torch.tensor([[0.4, -1.0, -0.5, 0.6, -2.0, -1.0]])
    weight = outputs[0, :2].softmax(0)
    parts = discretised_logistic_log_prob(
        outputs[0, 2:4, None], outputs[0, 4:6, None], torch.linspace(-1, 1, 9), 9
    ).exp()
    torch.testing.assert_close(distribution.choices(outputs, torch.zeros(1, 1).long(), 0)[0].exp(), weight @ parts)


def test_log_scales_are_floored():
    distribution = Mixture(MixtureConfig(components=1, min_log_scale=-2.0), image(1, 9), 1)
    low, floor = torch.tensor([[0.0, 0.1, -9.0]]), torch.tensor([[0.0, 0.1, -2.0]])
    token = torch.tensor([[5]])
    assert torch.equal(distribution.log_prob(low, token), distribution.log_prob(floor, token))


def test_a_mixture_has_the_outputs_the_paper_counts():
    assert mixture(256, 3, 10).outputs == 100  # PixelCNN++, nn.py
    assert mixture(256, 1, 10).outputs == 30


def test_untrained_components_stand_in_a_row():
    distribution = mixture(256, 1, 5)
    components = distribution.split(distribution.bias())
    assert components.mean.tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]]
    torch.testing.assert_close(components.log_scale.exp(), torch.full((1, 5), 0.2))
    torch.testing.assert_close(components.weight.exp(), torch.full((5,), 0.2))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bins_of_a_logistic_sum_to_one_at_any_scale(levels):
    mean = torch.tensor([-30.0, -1.0, -0.98, 0.0, 0.51, 1.0, 4.0], dtype=torch.float64)[:, None, None]
    log_scale = torch.tensor([-7.0, -4.0, -1.0, 3.0, 12.0], dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    total = discretised_logistic_log_prob(mean, log_scale, x, levels).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-7)


def test_an_inner_bin_holds_the_mass_between_its_edges():
    mean, log_scale, x = torch.tensor(0.1), torch.tensor(-1.5), torch.tensor(0.25)
    edges = torch.tensor([0.25 - 1 / 16, 0.25 + 1 / 16])
    below = torch.sigmoid((edges - mean) / log_scale.exp())
    torch.testing.assert_close(discretised_logistic_log_prob(mean, log_scale, x, 17).exp(), below[1] - below[0])


def test_gradients_of_a_mixture_are_finite_far_from_the_data():
    distribution = mixture(256, 1, 2)
    outputs = torch.tensor([[0.0, 50.0, 30.0, -30.0, -9.0, 20.0]]).repeat(3, 1).requires_grad_()
    distribution.log_prob(outputs, torch.tensor([[0], [128], [255]])).sum().backward()
    assert outputs.grad.isfinite().all()


def test_binarised_x_is_on_or_off_and_x_on_average():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.8, 1.0])
    drawn = binarise(x, (torch.arange(1000).double() / 1000)[:, None])
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), x, rtol=0, atol=2e-3)
