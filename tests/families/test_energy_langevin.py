"""Laws of Langevin dynamics and of the buffer its chains live in."""

import math

import pytest
import torch

from kinfolk.contract import ConfigError, DataSpec, Progress
from kinfolk_families.energy.config import BufferConfig, LangevinConfig
from kinfolk_families.energy.langevin import (
    ReplayBuffer,
    energy_gradient,
    fresh_chains,
    langevin,
    langevin_step,
    limited,
)

IMAGE = DataSpec(kind="image", shape=(1, 4, 4), levels=17, classes=4, data_std=0.7)
VECTOR = DataSpec(kind="vector", shape=(2,), data_std=3.0)


def quadratic(x, label):
    return 0.5 * x.square().flatten(1).sum(1)


def progress(seed=0, rank=0, workers=1, all_reduce=lambda value: value):
    return Progress(0, 0, torch.Generator().manual_seed(seed), all_reduce, rank, workers)


@pytest.mark.parametrize("h", [0.1, 0.5, 1.2])
def test_langevin_on_a_parabola_has_its_discrete_variance(h):
    """x' = (1 - h) x + sqrt(2h) n is stationary at 2h / (1 - (1 - h)^2) = 1 / (1 - h/2)."""
    config = LangevinConfig(steps=60, step_size=h, noise=math.sqrt(2 * h), gradient_limit=None)
    assert config.temperature == pytest.approx(1.0)
    x = langevin(quadratic, torch.zeros(20_000, 1), None, config, bounded=False, generator=progress().generator)
    assert float(x.var()) == pytest.approx(1 / (1 - h / 2), rel=0.04)
    assert float(x.mean()) == pytest.approx(0, abs=0.04)


def test_small_steps_sample_at_the_stated_temperature():
    config = LangevinConfig(steps=200, step_size=0.05, noise=0.1, gradient_limit=None)
    x = langevin(quadratic, torch.zeros(20_000, 1), None, config, bounded=False, generator=progress().generator)
    assert float(x.var()) == pytest.approx(config.temperature / (1 - 0.05 / 2), rel=0.04)


def test_a_step_goes_down_and_adds_noise():
    x, gradient, noise = (torch.full((1,), value) for value in (1.0, 2.0, 3.0))
    assert langevin_step(x, gradient, noise, 0.5, 0.1).item() == pytest.approx(1 - 0.5 * 2 + 0.1 * 3)


def test_bounded_chains_stay_in_the_datas_range_and_gradients_within_their_limit():
    config = LangevinConfig(steps=5, step_size=1.0, noise=2.0)
    x = langevin(quadratic, torch.zeros(500, 2), None, config, bounded=True, generator=progress().generator)
    assert float(x.abs().max()) == 1
    assert limited(torch.tensor([-3.0, 0.02, 3.0]), 0.1).tolist() == pytest.approx([-0.1, 0.02, 0.1])
    far = LangevinConfig(steps=1, step_size=1.0, noise=0.0, gradient_limit=0.1)
    moved = langevin(quadratic, torch.full((1, 1), 5.0), None, far, bounded=False, generator=progress().generator)
    assert moved.item() == pytest.approx(4.9)


def test_the_gradient_leaves_parameters_and_the_callers_graph_alone():
    layer = torch.nn.Linear(2, 1)
    x = torch.randn(3, 2)
    with torch.no_grad():
        gradient = energy_gradient(lambda at, _: layer(at)[:, 0], x, None)
    assert torch.equal(gradient, layer.weight.expand(3, 2).detach())
    assert not gradient.requires_grad
    assert layer.weight.grad is None
    assert not x.requires_grad


def test_fresh_chains_fill_the_range_of_images_and_have_the_deviation_of_vectors():
    generator = torch.Generator().manual_seed(0)
    uniform = fresh_chains(2000, IMAGE, generator)
    assert float(uniform.abs().max()) <= 1
    assert float(uniform.var()) == pytest.approx(1 / 3, rel=0.03)
    assert float(fresh_chains(20_000, VECTOR, generator).std()) == pytest.approx(3.0, rel=0.03)


@pytest.mark.parametrize(("size", "classes", "workers"), [(40, 0, 1), (41, 0, 3), (40, 4, 3), (44, 4, 2)])
def test_slices_of_workers_are_disjoint_and_cover_the_buffer(size, classes, workers):
    buffer = ReplayBuffer(BufferConfig(size=size), IMAGE, classes)
    groups = [n for rank in range(workers) for n in buffer.slots(progress(rank=rank, workers=workers))]
    assert groups == list(range(size // max(classes, 1)))


def test_a_worker_draws_different_chains_of_its_own_slice_and_of_the_classes_asked_for():
    buffer = ReplayBuffer(BufferConfig(size=80), IMAGE, 4)
    label = torch.arange(8) % 4
    drawn = [buffer.draw(8, label, progress(seed, rank, 2)) for seed in range(5) for rank in range(2)]
    for part in drawn:
        assert torch.equal(part % 4, label)
        assert len(part.unique()) == 8
    own = [torch.cat(drawn[rank::2]) for rank in range(2)]
    assert int(own[0].max()) < 40 <= int(own[1].min())


@pytest.mark.parametrize("classes", [0, 4])
def test_microbatches_of_a_step_take_different_chains_and_the_next_step_any(classes):
    size, label = 16 * max(classes, 1), torch.arange(8) % classes if classes else None
    buffer = ReplayBuffer(BufferConfig(size=size), IMAGE, classes)
    for step in range(3):
        taken = []
        for part in range(2):
            index = buffer.draw(8, label, progress(10 * step + part))
            buffer.write(index, torch.zeros(8, *IMAGE.shape))
            taken.append(index // max(classes, 1))
        assert torch.cat(taken).sort().values.tolist() == list(range(16))
        buffer.exchange(progress())


def test_a_step_of_one_microbatch_draws_by_one_permutation_of_the_workers_slice():
    buffer = ReplayBuffer(BufferConfig(size=80), IMAGE, 4)
    buffer.written[:40] = 1  # by another worker
    drawn = buffer.draw(8, torch.arange(8) % 4, progress(3, 1, 2))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))[:8]
    assert torch.equal(drawn, (10 + order) * 4 + torch.arange(8) % 4)


def test_the_fresh_share_begins_anew_and_the_rest_goes_on():
    buffer = ReplayBuffer(BufferConfig(size=4000, fresh_share=0.05), VECTOR)
    index = torch.arange(4000)
    read = buffer.read(index, progress().generator)
    changed = (read != buffer.at(index)).any(1)
    assert float(changed.float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float(read[changed].std()) == pytest.approx(3.0, rel=0.15)


class Together:
    """Workers whose sums are simulated: each call of theirs gives way until all have spoken."""

    def __init__(self, buffers):
        self.buffers = buffers

    def exchange(self):
        written = sum(buffer.written for buffer in self.buffers)
        (index,) = written.nonzero(as_tuple=True)
        own = [b.chains[index].float() * b.written[index].view(-1, *[1] * (b.chains.ndim - 1)) for b in self.buffers]
        for buffer in self.buffers:
            answers = iter([written, sum(own)])
            buffer.exchange(progress(all_reduce=lambda value, answers=answers: next(answers).to(value.dtype)))


@pytest.mark.parametrize("storage", ["uint8", "float32"])
def test_workers_are_equal_again_after_the_exchange_and_hold_what_each_wrote(storage):
    torch.manual_seed(0)
    first = ReplayBuffer(BufferConfig(size=30, storage=storage), IMAGE)
    workers = [first, *(ReplayBuffer(BufferConfig(size=30, storage=storage), IMAGE) for _ in range(2))]
    for buffer in workers[1:]:
        buffer.load_state_dict(first.state_dict())
    before, wrote = first.at(torch.arange(30)), {}
    for rank, buffer in enumerate(workers):
        index, x = buffer.draw(4, None, progress(rank, rank, 3)), torch.rand(4, 1, 4, 4) * 2 - 1
        buffer.write(index, x)
        wrote |= dict(zip(index.tolist(), x, strict=True))
    Together(workers).exchange()
    half_a_level = 1 / 255 if storage == "uint8" else 0
    for buffer in workers:
        assert torch.equal(buffer.chains, first.chains)
        assert not buffer.written.any()
    for n in range(30):
        expected = wrote.get(n, before[n])
        assert torch.allclose(first.at(torch.tensor([n]))[0], expected, atol=half_a_level + 1e-6)
    assert len(wrote) == 12


def test_one_worker_keeps_what_it_wrote():
    buffer = ReplayBuffer(BufferConfig(size=10), VECTOR)
    buffer.write(torch.tensor([3, 7]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    buffer.exchange(progress())
    assert buffer.at(torch.tensor([7, 3])).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("config", "spec", "classes", "named"),
    [
        (BufferConfig(size=42), IMAGE, 4, "does not divide over 4 classes. Use a multiple, e.g. 44"),
        (BufferConfig(storage="uint8"), VECTOR, 0, "Use float32"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(config, spec, classes, named):
    with pytest.raises(ConfigError, match=named):
        ReplayBuffer(config, spec, classes)


@pytest.mark.parametrize(("size", "classes", "least"), [(60, 4, 64), (15, 0, 16)])
def test_a_buffer_smaller_than_the_batch_is_refused_with_both_sizes_and_what_to_set(size, classes, least):
    named = rf"system\.buffer\.size={size} .* batches of 16: .* at least {least}, .*lower training\.batch_size"
    for rank in range(2):  # both, or one would wait for the other
        with pytest.raises(ConfigError, match=named):
            ReplayBuffer(BufferConfig(size=size), IMAGE, classes).draw(8, None, progress(rank=rank, workers=2))
        ReplayBuffer(BufferConfig(size=least), IMAGE, classes).draw(8, None, progress(rank=rank, workers=2))


def test_microbatches_that_need_more_chains_than_the_smallest_slice_has_are_refused_by_all_workers():
    named = r"system\.buffer\.size=31 .* batches of 32 or more: .* at least 32, 1 for each sample"
    for rank, slots in enumerate((15, 16)):
        where, buffer = progress(rank=rank, workers=2), ReplayBuffer(BufferConfig(size=31), IMAGE)
        assert len(buffer.slots(where)) == slots
        buffer.write(buffer.draw(8, None, where), torch.zeros(8, *IMAGE.shape))
        with pytest.raises(ConfigError, match=named):
            buffer.draw(8, None, where)
