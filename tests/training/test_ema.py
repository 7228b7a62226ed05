import copy

import pytest
import torch
from torch import nn

from kinfolk.ema import Ema, decay


def test_half_of_the_average_is_left_after_a_half_life():
    assert decay(100, 10**9, 100, 0.05) == pytest.approx(0.5)
    assert decay(25, 10**9, 100, 0.05) ** 4 == pytest.approx(0.5)


def test_early_in_training_the_half_life_is_a_share_of_the_samples_seen():
    assert decay(10, 200, 10_000, 0.05) == pytest.approx(0.5)
    assert decay(10, 0, 10_000, 0.05) == 0


def test_the_average_is_the_weighted_sum_of_what_it_saw():
    module = nn.Linear(3, 2)
    ema = Ema(module, halflife_samples=4, ramp=1.0)  # a batch is two half-lives: a quarter is kept
    start = module.weight.detach().clone()
    seen = []
    for step in range(1, 4):
        with torch.no_grad():
            module.weight.add_(step)
        seen.append(module.weight.detach().clone())
        ema.update(8, samples_seen=1000)
    expected = start / 64 + 0.75 * (seen[0] / 16 + seen[1] / 4 + seen[2])
    assert torch.allclose(ema.average["weight"], expected)


def test_the_averaged_module_has_the_average_and_the_live_buffers():
    module = nn.BatchNorm1d(2)
    ema = Ema(module, halflife_samples=1, ramp=1.0)
    average = copy.deepcopy(ema.average)
    with torch.no_grad():
        module.weight.add_(1)
        module.running_mean.add_(3)
    twin = ema.averaged(module)
    assert torch.equal(twin.weight, average["weight"])
    assert torch.equal(twin.running_mean, module.running_mean)
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_what_follows_from_the_weights_follows_from_their_average():
    class Summed(nn.Linear):
        def derive(self):
            self.total = self.weight.sum().detach()

    module = nn.Sequential(Summed(3, 2))
    module[0].derive()
    live, ema = module[0].total, Ema(module, halflife_samples=1, ramp=1.0)
    with torch.no_grad():
        ema.average["0.weight"].fill_(2)
    assert float(ema.averaged(module)[0].total) == 12
    assert module[0].total is live
