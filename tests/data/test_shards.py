import hashlib

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk.data.shards import read_shard, sharded, write_shard
from kinfolk.data.source import Rows
from kinfolk.errors import DataError

SPEC = DataSpec(kind="image", shape=(3, 4, 5), levels=256, classes=10)


def rows(count=50):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return Rows(x, torch.arange(count) % 10)


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "a.parquet", rows())
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    ("spec", "x"),
    [
        (SPEC, rows().x),
        (DataSpec(kind="tokens", shape=(7,), levels=70_000), torch.arange(70).view(10, 7).int() * 999),
        (DataSpec(kind="vector", shape=(2,)), torch.linspace(-3, 3, 20).view(10, 2)),
        (DataSpec(kind="image", shape=(1, 2, 2)), torch.rand(4, 2, 2, 1).permute(0, 3, 1, 2)),
    ],
)
def test_what_is_written_is_read(tmp_path, spec, x):
    label = torch.arange(len(x)) % 10 if spec.classes else None
    write_shard(tmp_path / "a.parquet", Rows(x, label))
    read = read_shard(tmp_path / "a.parquet", spec, len(x))
    assert read.x.dtype == x.dtype
    assert torch.equal(read.x, x)
    assert (label is None and read.label is None) or torch.equal(read.label, label)


def test_the_same_rows_give_the_same_bytes(tmp_path, shard):
    write_shard(tmp_path / "b.parquet", rows())
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert len(digests) == 1


def test_pyarrow_reads_whole_tensors_without_our_code(shard):
    table = pyarrow.parquet.read_table(shard)
    assert np.array_equal(table["x"].combine_chunks().to_numpy_ndarray(), rows().x.numpy())
    assert table["label"].to_pylist() == rows().label.tolist()


def test_pandas_reads_flat_arrays_without_our_code(shard):
    frame = pandas.read_parquet(shard)
    assert np.array_equal(np.stack(frame["x"]).reshape(-1, 3, 4, 5), rows().x.numpy())
    assert frame["label"].dtype == np.int64


def test_ray_data_reads_whole_tensors_without_our_code(ray_cluster, shard):
    import ray.data

    batch = ray.data.read_parquet(str(shard)).take_batch(50)
    order = np.argsort(batch["label"], kind="stable")
    expected = np.argsort(rows().label.numpy(), kind="stable")
    assert batch["x"].dtype == np.uint8
    assert np.array_equal(batch["x"][order], rows().x.numpy()[expected])


def test_a_file_that_is_no_shard_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as a shard"):
        read_shard(path, SPEC, 50)


def test_a_table_without_tensors_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    for columns in ({"y": [1]}, {"x": [1]}):
        pandas.DataFrame(columns).to_parquet(path)
        with pytest.raises(DataError, match=r"a.parquet cannot be read as a shard"):
            read_shard(path, SPEC, 1)


def test_another_number_of_rows_or_another_shape_is_refused(shard):
    with pytest.raises(DataError, match=r"a.parquet holds 50 rows, the record says 49"):
        read_shard(shard, SPEC, 49)
    with pytest.raises(DataError, match=r"a.parquet: a sample has shape \(3, 4, 5\)"):
        read_shard(shard, SPEC.model_copy(update={"shape": (3, 5, 4)}), 50)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_sharding_keeps_every_row_in_order_and_full_shards(chunk):
    stored = rows()
    pieces = [stored[start : start + chunk] for start in range(0, 50, chunk)]
    shards = list(sharded(pieces, shard_bytes=12 * SPEC.dims))
    assert [len(part) for part in shards] == [12, 12, 12, 12, 2]
    assert torch.equal(Rows.cat(shards).x, stored.x)
    assert torch.equal(Rows.cat(shards).label, stored.label)


def test_a_shard_holds_one_sample_however_large():
    assert [len(part) for part in sharded([rows(3)], shard_bytes=1)] == [1, 1, 1]
