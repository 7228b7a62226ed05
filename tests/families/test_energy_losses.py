"""Laws of contrastive divergence and of the masks, and what stops a run that goes wrong."""

import math

import pytest
import torch
from torch import nn

from kinfolk.config import Training
from kinfolk.contract import Batch, DataSpec, OptimizerConfig, Progress
from kinfolk.data.source import TensorSource
from kinfolk.step import NonFiniteError, World, make_optimizer, turn
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_families.energy import FAMILY
from kinfolk_families.energy.config import (
    BufferConfig,
    ContrastiveConfig,
    EnergyConfig,
    LangevinConfig,
    MaskConfig,
    MlpConfig,
    NetworkConfig,
    TransformerConfig,
)
from kinfolk_families.energy.losses import completion_loss, contrastive_loss, guarded, hidden_patches
from kinfolk_families.energy.model import SpectralNorm

LINE = DataSpec(kind="vector", shape=(1,), data_std=1.0)
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
PLAIN = ContrastiveConfig(loss="difference", energy_l2=0.0)


def progress(seed=0):
    return Progress(0, 0, torch.Generator().manual_seed(seed))


def module_of(system, spec=IMAGE, **config):
    return build(FAMILY, EnergyConfig(system=system, **config), spec, seed=0).module


def loss_of(module, batch, seed=0):
    return FAMILY.phases(module)[0].loss(batch, progress(seed))


class Parabola(nn.Module):
    """E = exp(log_precision) / 2 (x - mean)^2, a Gaussian."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_precision = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.log_precision.exp() / 2 * (x - self.mean).square()


def test_contrastive_divergence_on_a_gaussian_energy_finds_the_datas_moments():
    """At step h the chains' variance is 1 / (p (1 - p h/2)), which learning makes the data's."""
    h, mean, std = 0.05, 1.5, 0.7
    data = mean + std * torch.randn(2048, 1, generator=torch.Generator().manual_seed(1))
    system = NetworkConfig(
        loss="difference",
        energy_l2=0.0,
        input_noise=0.0,
        energy_limit=1e6,
        gap_limit=1e6,
        langevin=LangevinConfig(steps=4, step_size=h, noise=math.sqrt(2 * h), gradient_limit=None),
        buffer=BufferConfig(size=512, fresh_share=0.0),
        network=MlpConfig(width=1, depth=1),
    )
    plan = Training(
        samples=512 * 240, batch_size=512, ema_halflife_samples=12_000, ema_ramp=1.0, checkpoint_every_samples=10**6
    )
    model = build(FAMILY, EnergyConfig(system=system, optimizer=OptimizerConfig(kind="adam", lr=0.05)), LINE, seed=0)
    model.module.network = Parabola()
    state = prepare(model, plan)
    for _ in train(state, TensorSource(LINE, data), plan, seed=0):
        pass
    learned = state.served().module.network
    precision = float(learned.log_precision.exp())
    assert float(learned.mean) == pytest.approx(float(data.mean()), abs=0.05)
    assert 1 / (precision * (1 - precision * h / 2)) == pytest.approx(float(data.var()), rel=0.08)


def test_the_difference_pulls_data_down_and_pushes_chains_up():
    data, chains = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 8.0])
    assert contrastive_loss(data, chains, PLAIN).item() == pytest.approx(2 - 6)
    kept = contrastive_loss(data, chains, PLAIN.model_copy(update={"energy_l2": 0.1}))
    assert kept.item() == pytest.approx(2 - 6 + 0.1 * (5 + 40))


def test_softplus_is_of_each_pairs_difference():
    data, chains = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 2.0])
    found = contrastive_loss(data, chains, PLAIN.model_copy(update={"loss": "softplus"}))
    assert found.item() == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(1))) / 2)


@pytest.mark.parametrize(
    ("data", "chains", "sound"),
    [
        ([0.0, 5.0], [1.0, 6.0], True),
        ([0.0, 101.0], [1.0, 99.0], False),
        ([0.0, 0.0], [-101.0, 101.0], False),
        ([0.0, 0.0], [11.0, 11.0], False),
        ([11.0, 11.0], [0.0, 0.0], False),
        ([math.nan, 0.0], [0.0, 0.0], False),
        ([math.inf, 0.0], [0.0, 0.0], False),
    ],
)
def test_an_energy_or_a_gap_beyond_its_limit_makes_the_loss_nan(data, chains, sound):
    value = guarded(torch.tensor(1.0), torch.tensor(data), torch.tensor(chains), PLAIN)
    assert bool(value.isfinite()) == sound


def test_a_run_away_energy_makes_the_platform_stop_before_it_moves_a_weight():
    module = module_of(NetworkConfig(buffer=BufferConfig(size=32), langevin=LangevinConfig(steps=1), energy_limit=1e-6))
    (phase,) = FAMILY.phases(module)
    before = [p.detach().clone() for p in module.parameters()]
    batch = Batch(torch.rand(8, *IMAGE.shape))
    with pytest.raises(NonFiniteError):
        turn(phase, make_optimizer(module, phase.optimizer), [batch], [progress()], World())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


class BrokenOnce:
    """Data of which one batch, the ``broken``-th that is asked for, is NaN."""

    def __init__(self, broken):
        self.source, self.asked, self.broken = TensorSource(LINE, torch.randn(64, 1)), 0, broken

    def batch(self, seed, start, stop):
        batch, self.asked = self.source.batch(seed, start, stop), self.asked + 1
        return batch.map(lambda x: x * math.nan) if self.asked == self.broken else batch


def test_a_roll_back_takes_the_chains_along_and_training_goes_on_from_there():
    """Of steps of 8 samples the seventh fails, after it moved its chains; the last checkpoint is of the fourth."""
    system = NetworkConfig(buffer=BufferConfig(size=16), langevin=LangevinConfig(steps=2, noise=0.1))
    model = build(FAMILY, EnergyConfig(system=system), LINE, seed=0)
    plan = Training(samples=80, batch_size=8, checkpoint_every_samples=32, log_every_samples=8)
    state, buffer, chains = prepare(model, plan), model.module.buffer, {}
    for report in train(state, BrokenOnce(7), plan, seed=0):
        if report.kind == "rollback":
            assert report.samples_seen == 32
            assert torch.equal(buffer.chains, chains[32])
            assert not torch.equal(buffer.chains, chains[48])
            assert not buffer.written.any()
        chains[report.samples_seen] = buffer.chains.clone()
    assert state.rollbacks == 1
    assert state.samples_seen == 80
    assert chains[80].isfinite().all()


def test_the_loss_moves_as_many_chains_as_the_batch_and_tells_the_energies():
    torch.manual_seed(0)
    module = module_of(NetworkConfig(buffer=BufferConfig(size=64), langevin=LangevinConfig(steps=3, noise=0.1)))
    before = module.buffer.chains.clone()
    loss = loss_of(module, Batch(torch.rand(8, *IMAGE.shape)))
    assert int((module.buffer.chains != before).flatten(1).any(1).sum()) == 8
    assert int(module.buffer.written.sum()) == 8
    assert set(loss.logs) == {"energy_data", "energy_chains", "energy_gap"}
    assert loss.logs["energy_gap"] == loss.logs["energy_data"] - loss.logs["energy_chains"] != 0


def test_the_gradient_is_that_of_the_energies_at_fixed_chains():
    """Chains are detached: the loss's gradient is that of its value as a function of the weights alone."""
    system = NetworkConfig(
        buffer=BufferConfig(size=16, fresh_share=0.0), langevin=LangevinConfig(steps=4), input_noise=0.0, energy_l2=0.3
    )
    module = module_of(system)
    x = torch.rand(16, *IMAGE.shape)
    loss = loss_of(module, Batch(x))
    assert all(p.grad is None for p in module.parameters())
    found = torch.autograd.grad(loss.value, list(module.parameters()))
    both = torch.cat([x, module.buffer.chains])  # as many chains as there are: the whole buffer, in some order
    order = progress().generator
    index = torch.randperm(16, generator=order)
    data, chains = module(torch.cat([x, both[16:][index]])).chunk(2)
    expected = torch.autograd.grad(contrastive_loss(data, chains, system), list(module.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_data_is_seen_with_the_input_noise_asked_for():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            seen.append(x.detach())
            return self.weight * x.flatten(1).sum(1, keepdim=True)

    module = module_of(
        NetworkConfig(
            buffer=BufferConfig(size=400), langevin=LangevinConfig(steps=1), input_noise=0.2, energy_limit=1e3
        )
    )
    module.network = Watching()
    loss_of(module, Batch(torch.zeros(400, *IMAGE.shape)))
    assert float(seen[-1][:400].std()) == pytest.approx(0.2, rel=0.02)


def test_a_class_conditional_loss_takes_chains_of_the_samples_own_classes():
    module = module_of(NetworkConfig(buffer=BufferConfig(size=30), langevin=LangevinConfig(steps=1), conditional=True))
    label = torch.tensor([2, 2, 0, 1])
    loss_of(module, Batch(torch.rand(4, *IMAGE.shape), label))
    written = module.buffer.written.nonzero().flatten() % 3
    assert written.sort().values.tolist() == [0, 1, 2, 2]


class Wells(nn.Module):
    """E(x, c) = (x - c)^2 / 2. (B, 1) -> (B, 3)"""

    def forward(self, x):
        return (x - torch.arange(3.0)).square() / 2


def test_data_and_chains_have_the_energy_of_their_own_class_and_chains_go_down_it():
    """A step of 1 takes a chain to the bottom of its well."""
    langevin = LangevinConfig(steps=1, step_size=1.0, noise=0.0, gradient_limit=None)
    system = NetworkConfig(buffer=BufferConfig(size=30), langevin=langevin, input_noise=0.0, conditional=True)
    module = module_of(system, LINE.model_copy(update={"classes": 3}))
    module.network = Wells()
    label = torch.tensor([2, 0, 1, 2, 0])
    loss = loss_of(module, Batch(label[:, None] + 1.0, label))
    assert float(loss.logs["energy_chains"]) == pytest.approx(0, abs=1e-10)
    assert float(loss.logs["energy_data"]) == pytest.approx(0.5)


def test_turns_keep_the_spectral_norm_up_with_the_weights():
    torch.manual_seed(0)
    module = module_of(NetworkConfig(buffer=BufferConfig(size=16), spectral_norm=True))
    normalised = [each for each in module.modules() if isinstance(each, SpectralNorm)]
    for each in normalised:
        nn.init.normal_(each.layer.weight)
    (phase,) = FAMILY.phases(module)
    with torch.no_grad():
        for _ in range(300):
            phase.after(progress())
        for each in normalised:
            largest = torch.linalg.matrix_norm(each.layer.weight.flatten(1), 2)
            torch.testing.assert_close(each.singular_value(), largest, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("least", "most", "replaced"), [(0.5, 0.5, 0.9), (0.25, 1.0, 1.0), (1.0, 1.0, 0.5)])
def test_masks_hold_the_share_of_patches_asked_for_and_hide_a_share_of_those(least, most, replaced):
    config = MaskConfig(least=least, most=most, replaced=replaced)
    masked, hidden = hidden_patches(3000, 16, config, torch.Generator().manual_seed(0))
    counts = masked.sum(1)
    assert int(counts.min()) == round(least * 16)
    assert int(counts.max()) == round(most * 16)
    assert float(counts.float().mean()) == pytest.approx((least + most) / 2 * 16, rel=0.03)
    assert not (hidden & ~masked).any()
    assert float(hidden.sum() / masked.sum()) == pytest.approx(replaced, abs=0.02)
    assert masked.float().mean(0).std() < 0.02  # every patch is as likely


def test_completion_is_scored_on_masked_patches_alone_and_each_sample_counts_the_same():
    system = TransformerConfig(
        patch=4, width=8, heads=1, memories=8, mask=MaskConfig(least=0.25, most=1.0, replaced=1.0)
    )
    module = module_of(system)
    x = torch.randn(64, *IMAGE.shape)
    masked, hidden = hidden_patches(64, 4, system.mask, progress(3).generator)
    squared = (module(x, hidden) - x).square()
    each = [squared[row][module.pixels(masked)[row]].mean() for row in range(64)]
    found = completion_loss(module, Batch(x), progress(3)).value
    assert float(found.detach()) == pytest.approx(float(torch.stack(each).detach().mean()), rel=1e-5)
