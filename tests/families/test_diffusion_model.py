"""The denoiser's networks and its loss."""

import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.training.state import build
from kinfolk_families._shared import networks
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig, UNetConfig
from kinfolk_families._shared.networks import NoiseEmbedding, PixelAttention
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.config import DdpmConfig, DiffusionConfig, EdmConfig, FlowConfig, Options
from kinfolk_families.diffusion.losses import denoising_loss, hidden, phases

IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
COLOUR = DataSpec(kind="image", shape=(3, 12, 8), levels=256, classes=3)
VECTOR = DataSpec(kind="vector", shape=(2,), classes=3)
NETWORKS = pytest.mark.parametrize(
    ("network", "spec"),
    [
        (TransformerConfig(width=16, depth=2, heads=2), IMAGE),
        (TransformerConfig(width=16, depth=1, heads=2, patch=4), COLOUR),
        (UNetConfig(channels=8, heads=2), IMAGE),
        (UNetConfig(channels=8, multipliers=(1, 2, 4), heads=2, attention=0), COLOUR),
        (UNetConfig(channels=8, multipliers=(1, 2), heads=2, patch=2), COLOUR),
        (MlpConfig(width=16, depth=2), VECTOR),
    ],
    ids=["transformer", "transformer-colour", "unet", "unet-colour", "unet-patches", "mlp"],
)


def denoiser(network, spec, stirred=True, **config):
    """A fresh model; ``stirred`` moves the weights that start at zero."""
    module = build(FAMILY, DiffusionConfig(network=network, conditional=True, **config), spec, seed=0).module
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters() if stirred else ():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.double()


def noised(spec, rows=4):
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(rows, *spec.shape, generator=generator)
    return x_t, torch.linspace(0.1, 3, rows), torch.arange(rows) % 3


@NETWORKS
def test_a_fresh_denoiser_is_the_best_linear_estimate(network, spec):
    x_t, sigma, label = noised(spec)
    share = spec.data_std**2 / (spec.data_std**2 + sigma**2)
    linear = share.view(-1, *[1] * len(spec.shape)) * x_t
    assert torch.allclose(denoiser(network, spec, stirred=False).float()(x_t, sigma, label), linear)


@NETWORKS
def test_a_row_does_not_see_the_others(network, spec):
    module = denoiser(network, spec).float()
    x_t, sigma, label = noised(spec)
    together = module(x_t, sigma, label)
    for row in range(4):
        assert torch.allclose(
            module(x_t[row : row + 1], sigma[row : row + 1], label[row : row + 1])[0], together[row], atol=1e-5
        )


def test_many_rows_of_a_unet_go_in_parts_and_do_not_notice(monkeypatch):
    module = denoiser(UNetConfig(channels=8, heads=2), IMAGE).float()
    x_t, sigma, label = noised(IMAGE, 7)
    whole, rows = module(x_t, sigma, label), []
    stem = module.network.stem
    stem.register_forward_hook(lambda layer, arguments, output: rows.append(len(output)))
    monkeypatch.setattr(networks, "PART_BYTES", 3 * 4 * 8 * 8 * 8)
    with torch.no_grad():
        assert torch.allclose(module(x_t, sigma, label), whole, atol=1e-5)
    assert rows == [3, 3, 1]


@NETWORKS
def test_every_element_hears_every_other_the_noise_level_and_the_class(network, spec):
    module = denoiser(network, spec).float()
    x_t, sigma, label = noised(spec, 1)
    x_t.requires_grad_()
    for element in (0, -1):
        (grad,) = torch.autograd.grad(module(x_t, sigma, label).flatten()[element], x_t)
        assert (grad != 0).all()
    with torch.no_grad():
        output = predicted(module, x_t, sigma, label)
        assert not torch.allclose(predicted(module, x_t, sigma, label + 1), output, atol=1e-4)
        loud = predicted(module, x_t * module.preconditioner.scales(sigma).into, 2 * sigma, label)
        same_input = predicted(module, x_t * module.preconditioner.scales(2 * sigma).into, sigma, label)
        assert not torch.allclose(loud, same_input, atol=1e-4)


@NETWORKS
def test_every_weight_moves_the_estimate(network, spec):
    module = denoiser(network, spec).float()
    x_t, sigma, _ = noised(spec)
    module(x_t, sigma, torch.arange(4)).square().sum().backward()
    silent = [name for name, weight in module.named_parameters() if not (weight.grad != 0).any()]
    assert silent == []


@pytest.mark.parametrize(("attention", "blocks"), [(8, 6), (4, 4), (0, 2)])
def test_attention_stands_where_the_image_is_small(attention, blocks):
    """Two blocks at each of the heights 8, 4 and 2; the lowest always attends."""
    module = denoiser(UNetConfig(channels=8, multipliers=(1, 1, 1), heads=2, attention=attention), IMAGE)
    assert sum(isinstance(part, PixelAttention) for part in module.modules()) == blocks


def test_attention_treats_pixels_as_a_set():
    attention = PixelAttention(8, heads=2)
    attention.attention.out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 8, 3, 4, generator=torch.Generator().manual_seed(1))
    flipped = attention(x.flip(3)).flip(3)
    assert torch.allclose(attention(x), flipped, atol=1e-5)
    assert not torch.allclose(attention(x)[..., 0], attention(x * (torch.arange(4) < 2))[..., 0], atol=1e-3)


def predicted(module, x_t, sigma, label):
    """What the network itself says, taken out of the estimate."""
    scale = module.preconditioner.scales(sigma)
    return (module(x_t, sigma, label) - scale.skip * x_t) / scale.out


def test_no_label_is_the_unknown_class():
    module = denoiser(TransformerConfig(width=16, depth=1, heads=2), IMAGE).float()
    x_t, sigma, label = noised(IMAGE)
    assert torch.equal(module(x_t, sigma), module(x_t, sigma, torch.full_like(label, 3)))
    assert not torch.allclose(module(x_t, sigma), module(x_t, sigma, label), atol=1e-4)


def test_the_noise_embedding_is_smooth():
    """No input of its layers changes faster than max_frequency."""
    embedding = NoiseEmbedding(32, max_frequency=8.0)
    embedding.layers = torch.nn.Identity()
    noise = torch.linspace(-2, 2, 50).requires_grad_()
    for column in range(32):
        (slope,) = torch.autograd.grad(embedding(noise)[:, column].sum(), noise)
        assert 0.5 < float(slope.abs().max()) <= 8.0001


@pytest.mark.parametrize(
    ("config", "spec", "named"),
    [
        ({"network": TransformerConfig(patch=3)}, IMAGE, "Use one of 1, 2, 4, 8"),
        ({"network": UNetConfig(multipliers=(1,) * 4)}, DataSpec(kind="image", shape=(1, 12, 24)), "at most 3 levels"),
        ({"network": UNetConfig(patch=5)}, IMAGE, "Use one of 1, 2, 4, 8"),
        ({"network": UNetConfig(patch=4, multipliers=(1, 1, 1))}, IMAGE, "2 x 2 positions can be halved only 1 times"),
        ({"network": MlpConfig()}, IMAGE, "Use transformer or unet"),
        ({"network": UNetConfig()}, VECTOR, "Use mlp"),
        ({"conditional": True}, DataSpec(kind="image", shape=(1, 8, 8)), "model.conditional=false"),
        ({"network": MlpConfig(), "sampler": Options(clamp=True)}, VECTOR, "no range"),
        ({}, DataSpec(kind="tokens", shape=(8,), levels=4), "learns image, vector data"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_is_refused(config, spec, named):
    with pytest.raises(ConfigError, match=named):
        build(FAMILY, DiffusionConfig(**config), spec, seed=0)


def test_hiding_labels_from_a_model_that_knows_none_is_refused():
    with pytest.raises(ValidationError, match=r"label_dropout=0\.3 would have no effect: it is for conditional=true"):
        DiffusionConfig(label_dropout=0.3)


def test_a_parent_in_a_role_there_is_not_is_refused():
    parent = build(FAMILY, DiffusionConfig(), IMAGE, seed=0)
    with pytest.raises(ConfigError, match=r"role 'teacher'. Its roles: base, first_stage"):
        build(FAMILY, DiffusionConfig(), IMAGE, seed=0, parents={"teacher": parent})


def test_the_loss_is_a_weighted_mean_over_samples_and_elements():
    x, denoised = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 0.0]])
    assert denoising_loss(denoised, x, torch.tensor([2.0, 4.0])) == pytest.approx((2 * 9 + 4 * 9) / 6)


def test_labels_are_hidden_at_the_rate_asked_for():
    label = torch.arange(20_000) % 3
    found = hidden(label, 3, 0.1, torch.Generator().manual_seed(0))
    assert float((found == 3).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(found[found != 3], label[found != 3])
    assert torch.equal(hidden(label, 3, 0.0, torch.Generator().manual_seed(0)), label)


def loss_of(module, batch, seed):
    (phase,) = phases(module)
    return phase.loss(batch, Progress(0, 0, torch.Generator().manual_seed(seed))).value


@NETWORKS
def test_training_drops_by_its_generator_alone(network, spec):
    """The same step twice is bit-equal; in eval mode, and with a share of zero, it is that of a network without."""
    dropping, plain = (denoiser(network.model_copy(update={"dropout": share}), spec).float() for share in (0.4, 0.0))
    batch, before = Batch(noised(spec)[0], torch.arange(4) % 3), torch.get_rng_state()
    first, again, without = (loss_of(module, batch, 0) for module in (dropping, dropping, plain))
    assert torch.equal(first, again)
    assert not torch.allclose(first, without, rtol=1e-3)
    assert torch.equal(loss_of(dropping.eval(), batch, 0), without)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_after_all_else_and_not_at_all_where_its_share_is_zero():
    """Noise levels, noise and hidden labels of a step do not depend on dropout."""
    after, batch = {}, Batch(torch.zeros(4, 2), torch.arange(4) % 3)
    for share in (0.0, 0.4):
        generator = torch.Generator().manual_seed(0)
        module = denoiser(MlpConfig(width=8, depth=1, dropout=share), VECTOR).float()
        heard = []
        module.network.embed.register_forward_hook(lambda _, given, __, heard=heard: heard.append(given[0]))
        phases(module)[0].loss(batch, Progress(0, 0, generator))
        after[share] = (generator, heard[0])
    generator = torch.Generator().manual_seed(0)
    module.preconditioner.draw(4, generator)
    torch.randn(4, 2, generator=generator)
    torch.rand(4, generator=generator)
    assert torch.equal(after[0.0][0].get_state(), generator.get_state())
    torch.rand(4, 8, generator=generator)
    assert torch.equal(after[0.4][0].get_state(), generator.get_state())
    assert torch.equal(after[0.0][1], after[0.4][1])


def test_the_loss_of_ddpm_is_the_squared_error_of_the_noise():
    """With the network taken out to predict zero, that is the mean square of the noise."""
    module = denoiser(MlpConfig(width=8, depth=1), VECTOR, stirred=False, preconditioning=DdpmConfig()).float()
    batch = Batch(3 * torch.ones(4000, 2), torch.zeros(4000, dtype=torch.int64))
    assert loss_of(module, batch, 0).item() == pytest.approx(1, abs=0.06)


def test_the_loss_of_edm_starts_at_one_for_gaussian_data():
    """Best linear estimate, unit variance of the target: the loss of a silent network is 1."""
    module = denoiser(MlpConfig(width=8, depth=1), VECTOR, stirred=False, preconditioning=EdmConfig(sigma_data=0.4))
    x = 0.4 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(3))
    batch = Batch(x, torch.zeros(4000, dtype=torch.int64))
    assert loss_of(module.float(), batch, 0).item() == pytest.approx(1, abs=0.06)


def test_the_loss_of_flow_matching_starts_at_one():
    """A velocity predicted as zero is off by x - noise, whose variance is what the loss is divided by."""
    module = denoiser(MlpConfig(width=8, depth=1), VECTOR, stirred=False, preconditioning=FlowConfig())
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(3))
    batch = Batch(x, torch.zeros(4000, dtype=torch.int64))
    assert loss_of(module.float(), batch, 0).item() == pytest.approx(1, abs=0.06)


@pytest.fixture
def one_thread():
    """Networks this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def taught(module, x, steps, lr=3e-3):
    """``module`` after ``steps`` of Adam on ``x``, with a cosine decay to 0."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(module, Batch(x), step).backward()
        optimizer.step()
        schedule.step()
    return module


PRECONDITIONINGS = pytest.mark.parametrize(
    "preconditioning", [EdmConfig(), DdpmConfig(), FlowConfig()], ids=["edm", "ddpm", "flow"]
)


@PRECONDITIONINGS
def test_two_points_teach_the_denoiser_that_is_known_for_them(preconditioning, one_thread):
    """E[x | x_t] = 0.5 tanh(0.5 x_t / sigma^2) for data that is -0.5 or 0.5, learnt from samples alone."""
    config = DiffusionConfig(network=MlpConfig(width=32, depth=2), preconditioning=preconditioning)
    module = build(FAMILY, config, DataSpec(kind="vector", shape=(1,), data_std=0.5), seed=0).module
    taught(module, 0.5 * (torch.arange(128) % 2 * 2 - 1).float()[:, None], steps=400)
    sigma = torch.tensor([0.1, 0.3, 0.6, 1.0]).repeat_interleave(21)
    x_t = 0.5 + sigma[:, None] * torch.linspace(-2, 2, 21).repeat(4)[:, None]
    known = 0.5 * (0.5 * x_t / sigma[:, None] ** 2).tanh()
    with torch.no_grad():
        assert (module(x_t, sigma) - known).abs().max() < 0.1
