import json

import pytest
import torch

from kinfolk.data.prepared import Prepared
from kinfolk.data.shards import write_shard
from kinfolk.data.source import Rows, TensorSource
from kinfolk.data.streaming import ShardSource
from kinfolk.errors import DataError, IntegrityError
from kinfolk.manifest import sha256_of


def write_record(folder, **changes):
    """A data set of six and two vectors, three to a shard, its record altered by ``changes``."""
    shards = []
    for split, number, x in (("train", 0, [0, 1, 2]), ("train", 1, [3, 4, 5]), ("test", 0, [6, 7])):
        path = folder / f"{split}-{number}.parquet"
        write_shard(path, Rows(torch.tensor(x, dtype=torch.uint8).view(-1, 1), torch.tensor(x) % 2))
        shards.append({"path": path.name, "split": split, "rows": len(x), "sha256": sha256_of(path)})
    record = {
        "format": 1,
        "name": "toy",
        "spec": {"kind": "vector", "shape": [1], "levels": 8, "classes": 2},
        "class_names": ["even", "odd"],
        "splits": {"train": 6, "test": 2},
        "source": "a test",
        "licence": "none",
        "shards": shards,
    }
    (folder / "dataset.json").write_text(json.dumps({**record, **changes}))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_record(tmp_path)


@pytest.mark.parametrize(("memory_bytes", "kind"), [(6, TensorSource), (5, ShardSource)])
def test_a_split_is_held_in_memory_up_to_the_limit_and_streamed_above(folder, memory_bytes, kind):
    prepared = Prepared.open(folder)
    source = prepared.source("train", memory_bytes)
    assert isinstance(source, kind)
    taken = source.take(0, 6)
    assert prepared.spec.to_levels(taken.x).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert taken.label.tolist() == [0, 1, 0, 1, 0, 1]


def test_the_limit_counts_decoded_bytes(tmp_path):
    x = torch.zeros(6, 1)
    write_shard(tmp_path / "a.parquet", Rows(x))
    shard = {"path": "a.parquet", "rows": 6, "sha256": sha256_of(tmp_path / "a.parquet")}
    write_record(
        tmp_path,
        spec={"kind": "vector", "shape": [1]},
        class_names=[],
        splits={"train": 6, "test": 6},
        shards=[{**shard, "split": split} for split in ("train", "test")],
    )
    prepared = Prepared.open(tmp_path)
    assert isinstance(prepared.source("train", 24), TensorSource)
    assert isinstance(prepared.source("train", 23), ShardSource)


def test_splits_are_kept_apart(folder):
    prepared = Prepared.open(folder)
    assert prepared.spec.to_levels(prepared.source("test").take(0, 2).x).flatten().tolist() == [6, 7]


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(DataError, match=r"no split 'valid'. It has train and test"):
        Prepared.open(folder).source("valid")


@pytest.mark.parametrize("name", ["train-0.parquet", "train-1.parquet", "test-0.parquet"])
def test_an_altered_shard_is_named_with_both_sums(folder, name):
    expected = sha256_of(folder / name)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    got = sha256_of(folder / name)
    with pytest.raises(IntegrityError, match=rf"{name}.*expects sha256 {expected}, got {got}.*data prepare toy"):
        Prepared.open(folder)


def test_a_shard_cut_short_or_missing_is_named(folder):
    path = folder / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"train-1.parquet was altered or cut short"):
        Prepared.open(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"train-1.parquet is missing.*data prepare toy"):
        Prepared.open(folder)


def test_where_there_is_no_data_set_the_command_that_makes_it_is_given(tmp_path):
    for path in (tmp_path / "digits", tmp_path):
        with pytest.raises(DataError, match=rf"No prepared data set at {path}.*data prepare {path.name}"):
            Prepared.open(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format"),
        ({"splits": {"train": 5, "test": 2}}, "splits"),
        ({"class_names": ["even"]}, "1 class_names but classes=2"),
        ({"colour": "red"}, "colour"),
        ({"shards": [{"path": "../x.parquet", "split": "train", "rows": 6, "sha256": "0" * 64}]}, "shards.0.path"),
    ],
)
def test_a_record_that_does_not_add_up_is_refused(tmp_path, changes, message):
    with pytest.raises(IntegrityError, match=f"dataset.json is not a record.*{message}"):
        Prepared.open(write_record(tmp_path, **changes))


def test_a_record_cut_short_is_refused(folder):
    path = folder / "dataset.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(IntegrityError, match=r"dataset.json is not a record"):
        Prepared.open(folder)
