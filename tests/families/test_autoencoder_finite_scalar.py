"""Laws of fixed levels: codes and tokens are one to one, rounding moves a channel by half a level at most."""

import pytest
import torch

from kinfolk.config import parse
from kinfolk.contract import ConfigError
from kinfolk_families.autoencoder.config import FiniteScalarConfig
from kinfolk_families.autoencoder.quantisers import FiniteScalar


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 5, 5, 5), (4, 3), (4,)])
def test_finite_scalar_codes_and_tokens_are_one_to_one(levels):
    quantiser = FiniteScalar(FiniteScalarConfig(levels=levels))
    tokens = torch.arange(quantiser.levels)
    codes = quantiser.lookup(tokens)
    assert len(codes.unique(dim=0)) == quantiser.levels == torch.tensor(levels).prod()
    sizes = torch.tensor(levels)
    offset, reach = (1 - sizes % 2) / 2, (sizes - 1) * 1.001 / 2
    z = ((codes * (sizes // 2) + offset) / reach).atanh() - (offset / reach).atanh()  # what is bounded to the codes
    assert torch.equal(quantiser.assign(z), tokens)
    assert codes.abs().max() <= 1


@pytest.mark.parametrize("levels", [(8, 6, 5), (3, 3, 4)])
def test_finite_scalar_rounding_is_within_half_a_level(levels):
    quantiser = FiniteScalar(FiniteScalarConfig(levels=levels))
    z = 2 * torch.randn(100, 3, 20, 20, generator=generator())
    quantised = quantiser(z)
    half = torch.tensor(levels).view(-1, 1, 1) // 2
    assert ((quantised.z - quantised.codes).abs() * half).max() <= 0.5 + 1e-5
    assert len(quantised.tokens.unique()) == quantiser.levels


@pytest.mark.parametrize("levels", range(3, 9))
def test_an_output_of_zero_learns_with_any_number_of_levels(levels):
    quantiser, z = FiniteScalar(FiniteScalarConfig(levels=(levels,))), torch.zeros(1, requires_grad=True)
    quantiser.bound(z).sum().backward()
    assert float(z.grad) > 0.5


def test_two_levels_are_refused():
    with pytest.raises(ConfigError, match=r"levels.*holds 2.*use 3 or more"):
        parse(FiniteScalarConfig, {"levels": [2, 3]}, "objective")


def test_zero_is_a_level_of_every_channel():
    quantiser = FiniteScalar(FiniteScalarConfig(levels=(8, 6, 5)))
    torch.testing.assert_close(quantiser.bound(torch.zeros(3)), torch.zeros(3), rtol=0, atol=1e-5)
    assert not quantiser(torch.zeros(1, 3, 1, 1)).codes.any()
