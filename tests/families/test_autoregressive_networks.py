"""Laws of the causal networks: what a position sees, and that the cache changes nothing."""

import math
from itertools import product

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk_families._shared.dropout import dropped
from kinfolk_families.autoregressive.config import (
    AutoregressiveConfig,
    GatedPixelCnnConfig,
    PixelCnnPpConfig,
    TransformerConfig,
)
from kinfolk_families.autoregressive.convolution import CausalConv, Pixels, Whole
from kinfolk_families.autoregressive.model import Autoregressive
from kinfolk_families.autoregressive.pixelcnn import GatedPixelCnn, gated
from kinfolk_families.autoregressive.pixelcnn_pp import GatedBlock, PixelCnnPp, Resolution, concat_elu
from kinfolk_families.autoregressive.tokens import Tokeniser
from kinfolk_families.autoregressive.transformer import CausalTransformer

LEVELS, CLASSES, OUTPUTS = 5, 3, 7
LINE = Tokeniser(DataSpec(kind="tokens", shape=(20,), levels=LEVELS))


def image(shape):
    return DataSpec(kind="image", shape=shape, levels=LEVELS)


GATED = GatedPixelCnnConfig(channels=8, dilations=(1, 1, 2, 1))
PLUS = PixelCnnPpConfig(channels=(6, 8, 10), blocks=2)

CASES = {
    "gated": lambda: GatedPixelCnn(GATED, image((1, 8, 8)), CLASSES, OUTPUTS),
    "plus": lambda: PixelCnnPp(PLUS, image((1, 8, 8)), CLASSES, OUTPUTS),
    "plus, oblong": lambda: PixelCnnPp(PixelCnnPpConfig(channels=(6, 8)), image((1, 4, 6)), 0, OUTPUTS),
    "plus, colour": lambda: PixelCnnPp(PixelCnnPpConfig(channels=(6, 8)), image((3, 6, 4)), CLASSES, OUTPUTS),
    "gated, oblong": lambda: GatedPixelCnn(GATED, image((1, 3, 8)), 0, OUTPUTS),
    "transformer": lambda: CausalTransformer(TransformerConfig(width=16, depth=2, heads=2), LINE, CLASSES, OUTPUTS),
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
    seen = influence(GatedPixelCnn(GatedPixelCnnConfig(channels=8, dilations=(1,)), image((1, 9, 9)), 0, OUTPUTS))
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


def test_a_dilated_window_of_lines_and_columns_is_the_same_pixel_by_pixel():
    torch.manual_seed(0)
    layer = CausalConv(2, 3, 1, 2, dilation=2).requires_grad_(False)
    layer.key = "layer"
    x = torch.randn(1, 2, 6, 7)
    whole, cache = layer(x), {"layer": layer.lines(1, 7)}
    for line, column in product(range(6), range(7)):
        scan = Pixels(cache, torch.tensor([0]), torch.tensor([line]), torch.tensor([column]))
        found = scan.conv(layer, x[:, :, line, column, None, None])
        torch.testing.assert_close(found[..., 0, 0], whole[:, :, line, column])


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


@pytest.mark.parametrize("network", ["gated", "plus", "plus, colour", "transformer"], indirect=True)
def test_every_class_changes_every_output(network):
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
    network = CausalTransformer(TransformerConfig(width=64, depth=8), LINE, 0, OUTPUTS)
    assert abs(float(network.blocks[0].attention.out.weight.detach().std()) * 4 - 0.02) < 0.001
    assert abs(float(network.blocks[3].mlp[-1].weight.detach().std()) * 4 - 0.02) < 0.001
    assert abs(float(network.blocks[3].mlp[0].weight.detach().std()) - 0.02) < 0.001


def test_pixels_enter_between_minus_one_and_one_beside_a_channel_of_ones():
    """Margins lack the ones, so that a margin is not taken for a pixel of middle grey."""
    network = CASES["plus, colour"]()
    tokens = torch.arange(6).view(1, 1, 2, 3) % LEVELS
    expected = torch.tensor([[-1.0, 0.5], [-0.5, 1.0], [0.0, -1.0], [1.0, 1.0]])  # levels 0 to 4, G + 1 channels
    torch.testing.assert_close(network.seen(tokens)[0, :, 0], expected)


def test_a_gated_layer_adds_to_what_it_reads():
    layer = CASES["gated"]().layers[1]
    torch.nn.init.zeros_(layer.out.weight)
    torch.nn.init.zeros_(layer.out.bias)
    v, h, scan = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), Whole(torch.tensor([0, 1]))
    layer.vertical(v, scan)
    assert torch.equal(layer.horizontal(h, scan), h)


def test_a_class_adds_to_each_stack_of_a_gated_layer_before_its_gate():
    """The second of two classes; nothing else reaches the gates."""
    layer, scan = CASES["gated"]().requires_grad_(False).layers[1], Whole(torch.tensor([1]))
    for silent in (layer.down, layer.right, layer.link):
        torch.nn.init.zeros_(silent.weight)
        torch.nn.init.zeros_(silent.bias)
    below, right = (bias.table.weight[1, :, None, None] for bias in (layer.down_class, layer.right_class))
    v, h = torch.randn(2, 1, 8, 4, 4)
    torch.testing.assert_close(layer.vertical(v, scan), gated(below[None]).expand(1, 8, 4, 4))
    torch.testing.assert_close(layer.horizontal(h, scan), h + layer.out(gated(right[None])))


def test_the_head_of_pixelcnn_pp_reads_the_elu_of_the_horizontal_stack():
    network, heard = CASES["plus"]().requires_grad_(False), []
    network.right.register_forward_hook(lambda *args: heard.append(args[2]))
    network.head.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    network(*draws(network, 1))
    made, read = heard
    assert float(made.min()) < 0
    torch.testing.assert_close(read, torch.where(made > 0, made, made.expm1()))


def test_a_block_adds_a_signal_times_the_sigmoid_of_its_gate():
    block = GatedBlock(2, 0, 0, 0, 0.0, 0)
    torch.nn.init.zeros_(block.second.weight)
    block.second.bias.data = torch.tensor([1.0, -2.0, 0.5, 3.0])
    x = torch.randn(1, 2, 3, 3)
    added = torch.tensor([1.0, -2.0]) * torch.tensor([0.5, 3.0]).sigmoid()
    torch.testing.assert_close(block(x, [], Whole()), x + added[:, None, None])


def test_blocks_start_small():
    """init_scale 0.1 of PixelCNN++: against the first convolution, whose inputs are as many."""
    torch.manual_seed(0)
    block = GatedBlock(32, 0, 1, 0, 0.0, 0)
    assert abs(float((block.second.weight.std() / block.first.weight.std()).detach()) - 0.1) < 0.01


class Counting(torch.nn.Module):
    """Adds one, and remembers what it was told."""

    def forward(self, x, told, scan):
        self.told = [float(value.mean()) for value in told]
        return x + 1


class Flat(Whole):
    """A scan with no lower resolution."""

    def halve(self, layer, x):
        return x, None

    def double(self, layer, coarse, below):
        return 100 * torch.ones_like(coarse)


@pytest.mark.parametrize("vertical", [True, False])
def test_blocks_on_the_way_up_are_told_what_their_counterparts_made(vertical):
    stack = Resolution(PixelCnnPpConfig(channels=(2, 2), blocks=2), vertical, 0)
    before, after = [Counting(), Counting()], [Counting(), Counting()]
    stack.before, stack.after = torch.nn.ModuleList(before), torch.nn.ModuleList(after)
    scan = Flat()
    if not vertical:
        made = {"before.0.0": -1.0, "before.0.1": -2.0, "after.0.0": -3.0, "after.0.1": -4.0}
        for key, value in made.items():
            scan.tell(key, torch.full((1, 2, 2, 2), value))
    assert (stack(torch.zeros(1, 2, 2, 2), scan) == 104).all()
    other = ([-1.0], [-2.0], [-3.0], [-4.0]) if not vertical else ([], [], [], [])
    assert [block.told for block in (*before, *after)] == [other[0], other[1], [*other[2], 2.0], [*other[3], 1.0]]


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
    network = PixelCnnPp(config, image((1, 4, 4)), 0, OUTPUTS).requires_grad_(False)
    tokens, _ = draws(network, 2)
    assert torch.equal(network(tokens, None), network(tokens, None))
    assert not torch.equal(network(tokens, None, torch.Generator().manual_seed(0)), network(tokens, None))
