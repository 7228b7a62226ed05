"""Dropout is drawn from the generator it is given, in training alone, in every block of every network."""

import copy

import pytest
import torch
from pydantic import ValidationError

from kinfolk_families._shared import networks
from kinfolk_families._shared.dropout import Dropout, dropouts
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig, UNetConfig
from kinfolk_families._shared.networks import make_network

SHARE = 0.4
NETWORKS = pytest.mark.parametrize(
    ("config", "shape"),
    [
        (TransformerConfig(width=16, depth=2, heads=2), (1, 8, 8)),
        (UNetConfig(channels=8, heads=2, blocks=2), (1, 8, 8)),
        (MlpConfig(width=16, depth=2), (3,)),
    ],
    ids=["transformer", "unet", "mlp"],
)


def made(config, shape, share=SHARE):
    """A network with weights off where they start, the same for every share."""
    torch.manual_seed(0)
    network = make_network(config.model_copy(update={"dropout": share}), shape)
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return network


def inputs(network, shape, rows=5):
    generator = torch.Generator().manual_seed(1)
    x, condition = (rows, *shape), (rows, network.condition_width)
    return torch.randn(x, generator=generator), torch.randn(condition, generator=generator)


def drawing(seed=2):
    return torch.Generator().manual_seed(seed)


def test_a_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays():
    x = torch.full((200, 300), 3.0)
    dropped = Dropout(SHARE)(x, drawing())
    assert set(dropped.unique().tolist()) == {0.0, 5.0}
    assert float(dropped.mean()) == pytest.approx(3, abs=4 * 5 * (SHARE * (1 - SHARE) / x.numel()) ** 0.5)


@NETWORKS
def test_masks_are_a_function_of_the_generator_alone(config, shape):
    network = made(config, shape)
    given, before = inputs(network, shape), torch.get_rng_state()
    first, again, other = (network(*given, drawing(seed)) for seed in (2, 2, 3))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


@NETWORKS
def test_without_a_generator_or_in_eval_mode_nothing_is_dropped(config, shape):
    network, plain, generator = made(config, shape), made(config, shape, 0.0), drawing()
    given, state = inputs(network, shape), generator.get_state()
    expected = plain(*given)
    assert torch.equal(network(*given), expected)
    assert torch.equal(network.eval()(*given, generator), expected)
    assert torch.equal(generator.get_state(), state)


@NETWORKS
def test_a_share_of_zero_draws_nothing(config, shape):
    network, generator = made(config, shape, 0.0), drawing()
    given, state = inputs(network, shape), generator.get_state()
    assert torch.equal(network(*given, generator), network(*given))
    assert torch.equal(generator.get_state(), state)


@NETWORKS
def test_every_block_drops(config, shape):
    """A transformer's in both branches, a U-Net's on three levels on the way down and up, a perceptron's once."""
    network, zeros = made(config, shape), []
    for layer in dropouts(network):
        layer.register_forward_hook(lambda _, given, output: zeros.append(float((output == 0).double().mean())))
    network(*inputs(network, shape, 40), drawing())
    assert len(zeros) == {"transformer": 2 * 2, "unet": 2 * 3 * 2, "mlp": 2}[config.kind]
    assert zeros == pytest.approx([SHARE] * len(zeros), abs=0.1)


@NETWORKS
def test_weights_are_the_same_with_dropout_and_without(config, shape):
    with_it, without = made(config, shape).state_dict(), made(config, shape, 0.0).state_dict()
    assert with_it.keys() == without.keys()
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def test_masks_are_the_same_with_a_gradient_and_without(monkeypatch):
    """Without one, a U-Net on a CPU takes its rows in parts."""
    monkeypatch.setattr(networks, "PART_BYTES", 2 * 4 * 8 * 8 * 8)
    network = made(UNetConfig(channels=8, heads=2), (1, 8, 8))
    given = inputs(network, (1, 8, 8))
    learning = network(*given, drawing())
    with torch.no_grad():
        assert torch.allclose(network(*given, drawing()), learning, atol=1e-5)


def test_a_copy_drops_as_the_original_does():
    network = made(MlpConfig(width=16, depth=2), (3,))
    given = inputs(network, (3,))
    assert torch.equal(copy.deepcopy(network)(*given, drawing()), network(*given, drawing()))


@pytest.mark.parametrize("config", [TransformerConfig, UNetConfig, MlpConfig])
@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_beyond_its_limits_is_refused(config, share):
    assert config().dropout == 0
    with pytest.raises(ValidationError, match="dropout"):
        config(dropout=share)
