"""Laws of the causal networks: what a position sees, and that the cache changes nothing."""

import math

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk_families.autoregressive.config import (
    AutoregressiveConfig,
    GatedPixelCnnConfig,
    PixelCnnPpConfig,
    TransformerConfig,
)
from kinfolk_families.autoregressive.model import Autoregressive
from kinfolk_families.autoregressive.pixelcnn import GatedPixelCnn, gated
from kinfolk_families.autoregressive.pixelcnn_pp import PixelCnnPp, concat_elu, dropped
from kinfolk_families.autoregressive.transformer import CausalTransformer

LEVELS, CLASSES, OUTPUTS = 5, 3, 7
GATED = GatedPixelCnnConfig(channels=8, dilations=(1, 1, 2, 1))
PLUS = PixelCnnPpConfig(channels=(6, 8, 10), blocks=2)

CASES = {
    "gated": lambda: GatedPixelCnn(GATED, (1, 8, 8), LEVELS, CLASSES, OUTPUTS),
    "plus": lambda: PixelCnnPp(PLUS, (1, 8, 8), LEVELS, CLASSES, OUTPUTS),
    "plus, oblong": lambda: PixelCnnPp(PixelCnnPpConfig(channels=(6, 8)), (1, 4, 6), LEVELS, 0, OUTPUTS),
    "plus, colour": lambda: PixelCnnPp(PixelCnnPpConfig(channels=(6, 8)), (3, 6, 4), LEVELS, CLASSES, OUTPUTS),
    "gated, oblong": lambda: GatedPixelCnn(GATED, (1, 3, 8), LEVELS, 0, OUTPUTS),
    "transformer": lambda: CausalTransformer(
        TransformerConfig(width=16, depth=2, heads=2), 20, LEVELS, CLASSES, OUTPUTS
    ),
}


@pytest.fixture(params=CASES)
def network(request):
    torch.manual_seed(0)
    return CASES[request.param]().requires_grad_(False)


def length(network):
    return network.length if isinstance(network, CausalTransformer) else math.prod(network.shape[1:])


def draws(network, rows, seed=1):
    """Tokens and classes of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    group = 1 if isinstance(network, CausalTransformer) else network.shape[0]
    tokens = torch.randint(LEVELS, (rows, length(network), group), generator=generator)
    return tokens, torch.arange(rows) % CLASSES if has_classes(network) else None


def has_classes(network):
    if isinstance(network, CausalTransformer):
        return network.embed.num_embeddings > LEVELS + 1
    return any(isinstance(layer, torch.nn.Embedding) for layer in network.modules())


def influence(network):
    """Whether the token at position s moves the outputs at position t. -> (t, s) bool"""
    tokens, label = draws(network, 1)
    entered = []
    if isinstance(network, CausalTransformer):  # tokens enter by their embedding, each one place later than it stands
        network.embed.register_forward_hook(lambda *args: entered.append(args[2].requires_grad_()))
    else:
        entered.append(tokens := tokens.float().requires_grad_())
    outputs = network(tokens, label)[0]  # (T, O)
    at = [torch.autograd.grad(row.square().sum(), entered, retain_graph=True)[0] for row in outputs]
    moved = torch.cat(at).abs().sum(2) > 0  # (T, T)
    if isinstance(network, CausalTransformer):
        return torch.cat([moved[:, 1:], torch.zeros_like(moved[:, :1])], 1)
    return moved


def test_gradients_reach_all_tokens_before_a_position_and_no_other(network):
    """d outputs_t / d x_s is 0 for s >= t. Windows are wide enough here for every s < t, so a blind spot would show."""
    seen = influence(network)
    assert torch.equal(seen, torch.ones_like(seen).tril(-1))


def test_a_small_window_sees_what_its_layers_reach_and_nothing_beyond():
    """One layer: three lines above and three pixels to each side of those, three pixels to the left."""
    torch.manual_seed(0)
    seen = influence(GatedPixelCnn(GatedPixelCnnConfig(channels=8, dilations=(1,)), (1, 9, 9), LEVELS, 0, OUTPUTS))
    t = 6 * 9 + 4
    window = torch.zeros(9, 9, dtype=torch.bool)
    window[3:6, 1:8] = True
    window[6, 1:4] = True
    assert torch.equal(seen[t].view(9, 9), window)


def test_cached_outputs_equal_uncached_ones_at_every_position(network):
    tokens, label = draws(network, 4)
    whole, cache = network(tokens, label), network.cache(4)
    for t in range(length(network)):
        hidden = tokens.clone()
        hidden[:, t:] = 0  # tokens to come are not drawn yet
        torch.testing.assert_close(
            network.step(hidden, torch.full((4,), t), label, cache), whole[:, t], rtol=1e-5, atol=1e-5
        )


def test_cached_rows_at_different_positions_stand_in_one_call(network):
    tokens, label = draws(network, 4)
    whole, T = network(tokens, label), length(network)
    head_start = torch.tensor([0, 3, 7, 11])
    cache, position = network.cache(4), torch.zeros(4, dtype=torch.int64)
    for call in range(T + 11):
        rows = ((call >= head_start) & (position < T)).nonzero().flatten()
        part = {key: value[rows] for key, value in cache.items()}
        outputs = network.step(tokens[rows], position[rows], None if label is None else label[rows], part)
        torch.testing.assert_close(outputs, whole[rows, position[rows]], rtol=1e-5, atol=1e-5)
        for key, value in part.items():
            cache[key][rows] = value
        position[rows] += 1
    assert position.tolist() == [T] * 4


def test_every_class_changes_every_output(network):
    if not has_classes(network):
        pytest.skip("no classes")
    tokens, _ = draws(network, 1)
    outputs = network(tokens.repeat(CLASSES, 1, 1), torch.arange(CLASSES))
    for other in (1, 2):
        assert (outputs[0] != outputs[other]).any(1).all()


def test_an_untrained_transformer_gives_every_level_the_same_chance():
    torch.manual_seed(0)
    spec = DataSpec(kind="image", shape=(1, 6, 6), levels=256)
    module = Autoregressive(AutoregressiveConfig(network=TransformerConfig(width=64, depth=4)), spec)
    nats = module(torch.randint(256, (4, 36, 1)), None).detach()
    assert abs(float(nats.mean()) + math.log(256)) < 0.05


def test_residual_branches_of_a_deep_transformer_start_smaller():
    """GPT-2: 0.02 / sqrt(2 depth)."""
    torch.manual_seed(0)
    network = CausalTransformer(TransformerConfig(width=64, depth=8), 4, LEVELS, 0, OUTPUTS)
    assert abs(float(network.blocks[0].attention.out.weight.detach().std()) * 4 - 0.02) < 0.001
    assert abs(float(network.blocks[3].mlp[-1].weight.detach().std()) * 4 - 0.02) < 0.001
    assert abs(float(network.blocks[3].mlp[0].weight.detach().std()) - 0.02) < 0.001


def test_a_gate_is_the_tanh_of_half_one_part_times_the_sigmoid_of_the_other():
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(gated(x), (x[:, :3] / 2).tanh() * x[:, 3:].sigmoid())


def test_concat_elu_has_both_signs():
    x = torch.tensor([-2.0, 0.0, 3.0]).view(1, 3, 1, 1)
    found = concat_elu(x).flatten()
    expected = torch.tensor([math.expm1(-2), 0, 3, 2, 0, math.expm1(-3)])
    torch.testing.assert_close(found, expected)


def test_dropout_keeps_the_mean_draws_from_its_generator_and_rests_without_one():
    x = torch.ones(100_000)
    first, again = (dropped(x, 0.3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert abs(float(first.mean()) - 1) < 0.01
    assert abs(float((first == 0).float().mean()) - 0.3) < 0.01
    assert dropped(x, 0.3, None) is x


def test_dropout_is_in_training_alone():
    torch.manual_seed(0)
    config = PixelCnnPpConfig(channels=(6, 8), dropout=0.5)
    network = PixelCnnPp(config, (1, 4, 4), LEVELS, 0, OUTPUTS).requires_grad_(False)
    tokens, _ = draws(network, 2)
    assert torch.equal(network(tokens, None), network(tokens, None))
    assert not torch.equal(network(tokens, None, torch.Generator().manual_seed(0)), network(tokens, None))
