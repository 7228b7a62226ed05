"""Laws of invertible maps: inverses, log-dets against the Jacobian, initialisation from data over workers."""

import copy
import threading

import pytest
import torch

from kinfolk.contract import Batch, DataSpec, Progress
from kinfolk.training.state import build
from kinfolk_families.flow import FAMILY
from kinfolk_families.flow.bijections import (
    ActNorm,
    Flatten,
    InvertibleLinear,
    NormalisedLinear,
    Sequence,
    Squeeze,
    channel_statistics,
)
from kinfolk_families.flow.config import FlowConfig, GlowConfig, NoDequantisationConfig, RealNvpConfig
from kinfolk_families.flow.couplings import (
    AffineCoupling,
    ClassPrior,
    MultiScale,
    checkerboard,
    deep_network,
    every_other,
    halves,
    linear_network,
)
from kinfolk_families.flow.dequantisation import Logit, Marginal

IMAGE = DataSpec(kind="image", shape=(2, 4, 4), classes=3)
VECTOR = DataSpec(kind="vector", shape=(5,), classes=3)
NOTHING = NoDequantisationConfig()
GLOW, REALNVP = GlowConfig(levels=2, steps=2, width=6), RealNvpConfig(levels=2, steps=2, width=6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def stirred(module, seed=7, scale=0.15):
    """``module`` in float64 with every weight moved, so that nothing stays at zero."""
    noise = generator(seed)
    for parameter in module.double().parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return module.requires_grad_(False)


def whole(flow, spec, conditional):
    config = FlowConfig(flow=flow, dequantisation=NOTHING, conditional=conditional)
    return build(FAMILY, config, spec, seed=0).module.bijection


def one_hot(rows):
    return torch.nn.functional.one_hot(torch.arange(rows) % 3, 3).double()


def marginal(levels=4):
    module = Marginal(levels, smoothing=0.1)
    module.initialise(torch.linspace(0, 1, 50).square().view(10, 5), None, lambda value: value)
    return module


def multi_scale():
    prior = AffineCoupling(halves(8), linear_network(True), 0, 2.0)
    return MultiScale(Sequence([Squeeze(), ActNorm(8)]), prior, (8, 2, 2), Flatten((4, 2, 2)))


MAPS = {
    "squeeze": (lambda: Squeeze(2), (2, 4, 4), False),
    "squeeze by four": (lambda: Squeeze(4), (2, 4, 4), False),
    "flatten": (lambda: Flatten((2, 4, 4)), (2, 4, 4), False),
    "actnorm": (lambda: ActNorm(2), (2, 4, 4), False),
    "actnorm of vectors": (lambda: ActNorm(5), (5,), False),
    "1x1 convolution": (lambda: InvertibleLinear(2), (2, 4, 4), False),
    "linear": (lambda: InvertibleLinear(5), (5,), False),
    "normalised 1x1 convolution": (lambda: NormalisedLinear(2), (2, 4, 4), False),
    "normalised linear": (lambda: NormalisedLinear(5), (5,), False),
    "class prior": (lambda: ClassPrior(3, 2), (2, 4, 4), True),
    "coupling of halves": (lambda: AffineCoupling(halves(2), deep_network(True, 6), 0, 2.0), (2, 4, 4), False),
    "told coupling": (lambda: AffineCoupling(halves(2), deep_network(True, 6), 3, 2.0), (2, 4, 4), True),
    "checkerboard": (lambda: AffineCoupling(checkerboard(8), deep_network(True, 6), 0, 2.0), (8, 2, 2), False),
    "other checkerboard": (lambda: AffineCoupling(~checkerboard(8), deep_network(True, 6), 0, 2.0), (8, 2, 2), False),
    "coupling of vectors": (lambda: AffineCoupling(every_other(5), deep_network(False, 6), 3, 2.0), (5,), True),
    "multi-scale": (multi_scale, (2, 4, 4), False),
    "logit": (lambda: Logit(0.05), (5,), False),
    "marginal": (marginal, (5,), False),
    "glow": (lambda: whole(GLOW, IMAGE, False), (2, 4, 4), False),
    "glow of classes": (lambda: whole(GLOW, IMAGE, True), (2, 4, 4), True),
    "glow, one large squeeze": (
        lambda: whole(GlowConfig(levels=1, squeeze=4, steps=2, width=6), IMAGE, False),
        (2, 4, 4),
        False,
    ),
    "glow of vectors": (lambda: whole(GlowConfig(levels=1, steps=2, width=6), VECTOR, True), (5,), True),
    "realnvp": (lambda: whole(REALNVP, IMAGE, True), (2, 4, 4), True),
    "realnvp of vectors": (lambda: whole(RealNvpConfig(levels=1, steps=3, width=6), VECTOR, False), (5,), False),
}
EVERY_MAP = pytest.mark.parametrize("name", MAPS)


def case(name, rows=3):
    make, shape, told = MAPS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = stirred(make())
    x = normal(rows, *shape)
    if name in ("logit", "marginal"):
        x = x.sigmoid()
    return module, x, one_hot(rows) if told else None


@EVERY_MAP
def test_the_inverse_undoes_the_map(name):
    module, x, context = case(name)
    torch.testing.assert_close(module.inverse(module(x, context)[0], context), x, rtol=0, atol=1e-10)
    rounded = [None if value is None else value.float() for value in (x, context)]
    back = module.float().inverse(module(*rounded)[0], rounded[1])
    assert back.dtype == torch.float32
    torch.testing.assert_close(back.double(), x, rtol=0, atol=1e-4)


@EVERY_MAP
def test_log_det_is_that_of_the_jacobian(name):
    module, x, context = case(name)
    log_det = module(x, context)[1].expand(len(x))
    assert log_det.dtype == torch.float64
    for row in range(len(x)):
        told = None if context is None else context[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, told=told: module(flat.view(1, *x.shape[1:]), told)[0].flatten(), x[row].flatten()
        )
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-8)


@EVERY_MAP
def test_initialising_returns_what_the_initialised_map_makes_of_the_batch(name):
    module, x, context = case(name)
    z = module.initialise(x, context, lambda value: value)
    torch.testing.assert_close(z, module(x, context)[0], rtol=0, atol=1e-10)


def test_log_det_is_summed_in_float64():
    """A thousand equal elements, whose sum in float32 is off by more than this."""
    coupling = AffineCoupling(halves(2000), deep_network(False, 4), 0, 2.0)
    coupling.requires_grad_(False).network.layers[-1].bias.fill_(0.1)
    x = torch.zeros(1, 2000)
    one = float(coupling.bound * torch.tanh(torch.tensor(0.1) / coupling.bound))
    assert float(coupling(x)[1]) == pytest.approx(1000 * one, abs=1e-9)


def jacobian_of(module, shape):
    x = normal(1, *shape)
    return torch.autograd.functional.jacobian(lambda flat: module(flat.view(1, *shape))[0].flatten(), x.flatten())


@pytest.mark.parametrize("opposite", [False, True])
def test_a_checkerboard_keeps_every_other_pixel_and_moves_the_rest_by_them(opposite):
    """In the image's own coordinates: kept rows are those of the identity, moved pixels do not mix."""
    mask = ~checkerboard(4) if opposite else checkerboard(4)
    coupling = stirred(AffineCoupling(mask, deep_network(True, 6), 0, 2.0))
    squeeze = Squeeze(2)

    def image_to_image(x):
        return squeeze.inverse(coupling(squeeze(x)[0])[0]), None

    jacobian = jacobian_of(image_to_image, (1, 4, 4))
    row, column = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    kept = ((row + column) % 2 == (1 if opposite else 0)).flatten()
    assert torch.equal(jacobian[kept], torch.eye(16, dtype=torch.float64)[kept])
    inner = jacobian[~kept][:, ~kept]
    assert torch.equal(inner, inner.diagonal().diag())
    assert (inner.diagonal() != 1).all()
    assert (jacobian[~kept][:, kept] != 0).any(0).all()


@pytest.mark.parametrize("name", ["realnvp", "realnvp of vectors"])
def test_masks_take_turns_so_that_no_element_is_left_on_its_own(name):
    module, x, context = case(name, rows=1)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: module(flat.view(x.shape), context)[0].flatten(), x.flatten()
    )
    assert ((jacobian != 0).sum(1) > 1).all()


@pytest.mark.parametrize("mask", [halves(6), ~halves(6), every_other(5), ~every_other(5), halves(3)])
def test_a_coupling_keeps_what_its_mask_says(mask):
    jacobian = jacobian_of(stirred(AffineCoupling(mask, deep_network(False, 8), 0, 2.0)), mask.shape)
    assert torch.equal(jacobian[mask], torch.eye(len(mask), dtype=torch.float64)[mask])
    inner = jacobian[~mask][:, ~mask]
    assert torch.equal(inner, inner.diagonal().diag())
    assert (jacobian[~mask][:, mask] != 0).all()


def test_masks_are_of_half_the_channels():
    assert halves(4).tolist() == [True, True, False, False]
    assert every_other(3).tolist() == [True, False, True]
    assert checkerboard(8).tolist() == [True, False, False, True] * 2


def test_a_coupling_scales_within_its_bound_and_starts_as_the_identity():
    coupling = AffineCoupling(halves(4), deep_network(False, 8), 0, 0.5)
    x = normal(6, 4).float()
    assert torch.equal(coupling(x)[0], x)
    stirred(coupling, scale=30.0)
    kept = x.double()[:, :2]
    _, log_scale = coupling._move(kept, None)
    assert 0.49 < float(log_scale.abs().max()) <= 0.5


def test_the_bound_does_not_change_a_small_scale():
    coupling = AffineCoupling(halves(2), deep_network(False, 4), 0, 2.0)
    coupling.requires_grad_(False).network.layers[-1].bias.copy_(torch.tensor([0.3, 1e-3]))
    z, log_det = coupling(torch.zeros(1, 2))
    assert float(log_det) == pytest.approx(1e-3, rel=1e-4)
    assert float(z[0, 1]) == pytest.approx(0.3 * 1.001, rel=1e-4)


def test_a_new_1x1_convolution_is_a_rotation_by_its_factors():
    torch.manual_seed(3)
    layer = InvertibleLinear(6).requires_grad_(False)
    weight, log_det = layer(torch.eye(6))
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), rtol=0, atol=1e-5)
    assert float(log_det) == pytest.approx(0, abs=1e-5)
    lower, upper = layer.triangles()
    assert torch.equal(lower.triu(), torch.eye(6))
    assert torch.equal(upper.tril(-1), torch.zeros(6, 6))
    assert {name for name, _ in layer.named_buffers()} == {"order", "sign"}


def test_a_normalised_linear_map_is_an_actnorm_and_then_a_linear_map():
    for name in ("normalised 1x1 convolution", "normalised linear"):
        module, x, _ = case(name)
        apart = Sequence([module.norm, module.linear])
        for one, two in zip(module(x), apart(x), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("make", [InvertibleLinear, NormalisedLinear])
def test_a_linear_map_stays_in_float32_where_networks_are_in_bfloat16(make):
    torch.manual_seed(0)
    module = stirred(make(6)).float()
    x = normal(4, 6, 3, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        z = module(x)[0]
    assert torch.equal(z, module(x)[0])


def test_squeeze_puts_the_pixels_of_a_block_into_channels():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Squeeze(2)(x)[0][0, :, 0, 1].tolist() == [2, 3, 6, 7]


def test_marginal_makes_data_of_its_distribution_normal():
    """Of levels with unequal shares, spread evenly in their bins."""
    module = Marginal(4, smoothing=1e-9)
    level = torch.tensor([0] * 6 + [1] * 1 + [3] * 3).repeat(1000)
    x = ((level + (torch.arange(10_000) // 10 + 0.5) / 1000) / 4).view(-1, 1).double()
    z = module.initialise(x, None, lambda value: value).flatten().sort().values
    expected = torch.special.ndtri((torch.arange(10_000) + 0.5) / 10_000).double()
    assert (z - expected).abs()[100:-100].max() < 0.01


def test_marginal_leaves_levels_that_were_not_seen_their_share_of_the_smoothing():
    module = Marginal(4, smoothing=0.2)
    module.initialise(torch.full((1, 10), 0.3), None, lambda value: value)
    torch.testing.assert_close(module.cumulative.diff().float(), torch.tensor([0.05, 0.85, 0.05, 0.05]))


def layers_of(module, x, context):
    """What each ActNorm below ``module`` makes of ``x``; inside a NormalisedLinear, of that one's input."""
    seen, hooks = [], []
    for part in module.modules():
        if isinstance(part, ActNorm):
            hooks.append(part.register_forward_hook(lambda _, __, output: seen.append(output[0])))
        if isinstance(part, NormalisedLinear):
            hooks.append(part.register_forward_pre_hook(lambda part, inputs: part.norm(inputs[0]) and None))
    module(x, context)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("flow", "spec"),
    [(GLOW, IMAGE), (REALNVP, IMAGE), (RealNvpConfig(levels=1, steps=4, width=6), VECTOR)],
    ids=["glow", "realnvp", "realnvp-vector"],
)
def test_every_actnorm_makes_the_first_batch_zero_mean_and_unit_variance(flow, spec):
    module = stirred(whole(flow, spec, True))
    x, context = 3 + 5 * normal(64, *spec.shape), one_hot(64)
    module.initialise(x, context, lambda value: value)
    outputs = layers_of(module, x, context)
    assert len(outputs) == sum(isinstance(part, ActNorm) for part in module.modules()) > 2
    for z in outputs:
        values = z.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros_like(values[:, 0]), rtol=0, atol=1e-6)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones_like(values[:, 0]), rtol=0, atol=1e-6)


def summing(workers):
    """An all-reduce for threads: every one gets the sum of what all hand in."""
    barrier, given = threading.Barrier(workers, timeout=20), {}

    def all_reduce(value):
        given[threading.get_ident()] = value
        barrier.wait()
        total = sum(given[key] for key in sorted(given))
        barrier.wait()
        return total

    return all_reduce


def on_workers(parts, start):
    """``start(part, all_reduce)`` on a thread for each of ``parts``; what they return."""
    all_reduce, results = summing(len(parts)), [None] * len(parts)

    def work(index):
        with torch.no_grad():
            results[index] = start(parts[index], all_reduce)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_workers_initialise_as_one_does():
    """Shares of unequal statistics, and the counts of levels too."""
    x = torch.cat([normal(24, 2, 4, 4), 4 + 2 * normal(24, 2, 4, 4, seed=2)]).sigmoid()

    built = stirred(Sequence([Marginal(8, 0.1), whole(GLOW, IMAGE, False)]))

    def initialised(share, all_reduce):
        module = copy.deepcopy(built)
        module.initialise(share, None, all_reduce)
        return module.state_dict()

    alone = initialised(x, lambda value: value)
    first, second = on_workers([x[:24], x[24:]], initialised)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9)


def test_the_family_initialises_from_the_batches_of_all_workers():
    shares = [normal(24, *IMAGE.shape), 4 + 2 * normal(24, *IMAGE.shape, seed=2)]
    built = stirred(build(FAMILY, FlowConfig(flow=GLOW, dequantisation=NOTHING), IMAGE, seed=0).module)

    def initialised(share, all_reduce):
        module = copy.deepcopy(built)
        FAMILY.initialise(module, Batch(share), Progress(0, 0, generator(), all_reduce))
        return module.state_dict()

    alone = initialised(torch.cat(shares), lambda value: value)
    first, second = on_workers(shares, initialised)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9)


def test_a_constant_channel_stays_finite():
    layer = ActNorm(2).requires_grad_(False)
    x = torch.stack([torch.full((8,), 3.0), torch.arange(8.0)], 1)
    z = layer.initialise(x, None, lambda value: value)
    assert z.isfinite().all()
    assert torch.equal(z[:, 0], torch.zeros(8))


def test_channel_statistics_are_over_rows_and_pixels():
    x = normal(6, 3, 2, 5)
    mean, std = channel_statistics(x, lambda value: value)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(std, x.transpose(0, 1).flatten(1).std(1, correction=0))
