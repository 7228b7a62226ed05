import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Likelihood
from kinfolk.errors import ConfigError, DataError
from kinfolk.metrics.likelihood import bits_per_dim, likelihood_figures

DIGITS = DataSpec(kind="image", shape=(1, 8, 8), levels=16)


def likelihood(
    kind: Literal["exact", "lower_bound", "ode"], of: Literal["levels", "binary", "density", "codes"]
) -> Likelihood:
    def unused(batch: Batch, seeds: Tensor) -> Tensor:
        raise AssertionError

    return Likelihood(unused, kind, of)


def test_equally_likely_levels_cost_their_logarithm() -> None:
    assert bits_per_dim(-64 * math.log(16), DIGITS) == pytest.approx(4)


@pytest.mark.parametrize(
    ("kind", "of", "names"),
    [
        ("exact", "levels", {"log_prob_nats", "log_prob_bits_per_dim"}),
        ("lower_bound", "levels", {"elbo_nats", "elbo_bits_per_dim"}),
        ("ode", "levels", {"ode_log_prob_nats", "ode_log_prob_bits_per_dim"}),
        ("exact", "density", {"log_prob_density_nats"}),
        ("lower_bound", "density", {"elbo_density_nats"}),
        ("ode", "density", {"ode_log_prob_density_nats"}),
        ("exact", "binary", {"log_prob_binary_nats", "log_prob_binary_bits_per_dim"}),
        ("lower_bound", "binary", {"elbo_binary_nats", "elbo_binary_bits_per_dim"}),
        ("exact", "codes", {"log_prob_codes_nats"}),
    ],
)
def test_a_figure_is_named_for_what_it_is(
    kind: Literal["exact", "lower_bound", "ode"], of: Literal["levels", "binary", "density", "codes"], names: set[str]
) -> None:
    assert likelihood_figures(likelihood(kind, of), torch.tensor([-1.0]), DIGITS).keys() == names


def test_figures_are_means_over_samples_in_either_unit() -> None:
    figures = likelihood_figures(likelihood("lower_bound", "levels"), torch.tensor([-100.0, -300.0]), DIGITS)
    assert figures["elbo_nats"] == pytest.approx(-200)
    assert figures["elbo_bits_per_dim"] == pytest.approx(200 / math.log(2) / 64)


def test_many_small_terms_are_summed_in_float64() -> None:
    nats = torch.full((200_000,), -1000.1)
    figures = likelihood_figures(likelihood("exact", "density"), nats, DIGITS)
    assert figures["log_prob_density_nats"] == pytest.approx(float(nats[0]), rel=1e-12)


def test_continuous_data_has_no_bits_per_dimension() -> None:
    with pytest.raises(ConfigError, match="Report nats"):
        bits_per_dim(-1.0, DataSpec(kind="vector", shape=(2,)))


def test_an_impossible_sample_makes_the_mean_infinite_and_is_no_mistake() -> None:
    figures = likelihood_figures(likelihood("exact", "binary"), torch.tensor([-1.0, -math.inf]), DIGITS)
    assert figures == {"log_prob_binary_nats": -math.inf, "log_prob_binary_bits_per_dim": math.inf}


@pytest.mark.parametrize("nats", [torch.tensor([]), torch.tensor([1.0, math.nan]), torch.zeros(2, 1)])
def test_values_that_mean_nothing_are_refused(nats: Tensor) -> None:
    with pytest.raises(DataError, match="log_prob is wrong"):
        likelihood_figures(likelihood("exact", "levels"), nats, DIGITS)
