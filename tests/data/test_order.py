import torch

from kinfolk.data.order import epochs, permutation, positions

SIZE = 37


def test_every_epoch_holds_each_sample_once():
    for epoch in range(3):
        seen = positions(5, epoch * SIZE, (epoch + 1) * SIZE, SIZE)
        assert sorted(seen.tolist()) == list(range(SIZE))


def test_the_stream_does_not_depend_on_how_it_is_cut():
    whole = positions(5, 0, 3 * SIZE, SIZE)
    for step in (1, 4, SIZE, 2 * SIZE + 1):
        parts = [positions(5, at, min(at + step, 3 * SIZE), SIZE) for at in range(0, 3 * SIZE, step)]
        assert torch.equal(torch.cat(parts), whole)


def test_seeds_and_epochs_are_shuffled_apart():
    first = positions(5, 0, SIZE, SIZE)
    assert not torch.equal(first, torch.arange(SIZE))
    assert not torch.equal(first, positions(5, SIZE, 2 * SIZE, SIZE))
    assert not torch.equal(first, positions(6, 0, SIZE, SIZE))


def test_a_permutation_is_the_same_after_it_fell_out_of_the_cache():
    before = permutation(SIZE, 5, 0).clone()
    permutation.cache_clear()
    assert torch.equal(permutation(SIZE, 5, 0), before)


def test_the_global_generator_neither_matters_nor_moves():
    permutation.cache_clear()
    before = torch.random.get_rng_state()
    first = positions(5, 0, SIZE, SIZE)
    assert torch.equal(torch.random.get_rng_state(), before)
    permutation.cache_clear()
    torch.rand(3)
    assert torch.equal(positions(5, 0, SIZE, SIZE), first)


def test_epoch_borders_cut_a_range_without_gap_or_overlap():
    pieces = list(epochs(30, 100, SIZE))
    assert pieces == [(0, 30, 37), (1, 0, 37), (2, 0, 26)]
