import threading

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk.data import streaming
from kinfolk.data.shards import write_shard
from kinfolk.data.source import Rows, TensorSource
from kinfolk.data.streaming import ShardSource, TwoShards
from kinfolk.errors import DataError

SPEC = DataSpec(kind="vector", shape=(1,), levels=256, classes=256)
SIZES = (5, 8, 3, 8)
TOTAL = sum(SIZES)


@pytest.fixture
def files(tmp_path):
    x = torch.arange(TOTAL, dtype=torch.uint8).view(-1, 1)
    files = []
    for number, part in enumerate(x.split(SIZES)):
        files.append((tmp_path / f"{number}.parquet", len(part)))
        write_shard(files[-1][0], Rows(part, part.flatten().long()))
    return files


@pytest.fixture
def source(files):
    return ShardSource(SPEC, files)


def samples(batch):
    """Which stored samples a batch holds, after checking that their labels came along."""
    levels = SPEC.to_levels(batch.x).flatten()
    assert torch.equal(levels, batch.label)
    return levels.tolist()


def test_every_epoch_holds_each_sample_once_in_another_order(source):
    orders = [samples(source.batch(2, epoch * TOTAL, (epoch + 1) * TOTAL)) for epoch in range(3)]
    assert all(sorted(order) == list(range(TOTAL)) for order in orders)
    assert len({tuple(order) for order in (*orders, samples(source.batch(3, 0, TOTAL)))}) == 4


def test_shards_and_rows_within_them_are_shuffled(source):
    shard_of = [number for number, size in enumerate(SIZES) for _ in range(size)]
    order = samples(source.batch(2, 0, TOTAL))
    visited = list(dict.fromkeys(shard_of[sample] for sample in order))
    assert sorted(visited) == [0, 1, 2, 3]
    assert visited != [0, 1, 2, 3]
    first = order[: SIZES[visited[0]]]
    assert first != sorted(first)


@pytest.mark.parametrize("step", [1, 4, 7, TOTAL, TOTAL + 5])
def test_the_stream_does_not_depend_on_how_it_is_cut_or_where_it_starts(source, files, step):
    whole = samples(source.batch(2, 0, 3 * TOTAL))
    for start in reversed(range(0, 2 * TOTAL, step)):
        fresh = ShardSource(SPEC, files)
        assert samples(fresh.batch(2, start, start + step)) == whole[start : start + step]
        assert samples(source.batch(2, start, start + step)) == whole[start : start + step]


def test_stored_order_is_that_of_the_same_data_in_memory(source):
    x = torch.arange(TOTAL, dtype=torch.uint8).view(-1, 1)
    held = TensorSource(SPEC, x, x.flatten().long())
    assert len(source) == len(held)
    for start, stop in ((0, TOTAL), (4, 6), (13, 16), (23, 24)):
        assert torch.equal(source.take(start, stop).x, held.take(start, stop).x)


def test_ranges_are_checked_as_in_memory(source):
    with pytest.raises(DataError, match="24, the size of the split"):
        source.take(0, 25)
    with pytest.raises(DataError, match="0 <= start < stop"):
        source.batch(0, 5, 5)


def test_at_most_two_shards_are_held(source):
    for start in range(0, 3 * TOTAL, 4):
        source.batch(2, start, start + 4)
        assert len(source._shards._held) <= 2


def test_each_shard_is_read_once_an_epoch_by_the_thread(source, monkeypatch):
    read, reads = streaming.read_shard, []

    def counted(path, spec, count):
        reads.append((path.stem, threading.current_thread().name))
        return read(path, spec, count)

    monkeypatch.setattr(streaming, "read_shard", counted)
    for start in range(TOTAL):
        source.batch(2, start, start + 1)
    source._shards._thread.shutdown()
    assert sorted(name for name, _ in reads[:4]) == ["0", "1", "2", "3"]
    assert len(reads) <= 5  # the fifth is the first of the next epoch, unless it is held already
    assert all(thread.startswith("shards") for _, thread in reads)


def test_the_following_shard_is_loaded_before_it_is_asked_for():
    loaded = {shard: threading.Event() for shard in range(3)}

    def load(shard):
        loaded[shard].set()
        return Rows(torch.tensor([shard]))

    shards = TwoShards(load)
    assert shards.get(0, 1).x.tolist() == [0]
    assert loaded[1].wait(10)
    assert not loaded[2].is_set()


def test_a_damaged_shard_is_named_where_it_is_read(source, files):
    files[2][0].write_bytes(b"torn")
    with pytest.raises(DataError, match=r"2.parquet cannot be read"):
        source.batch(2, 0, TOTAL)
