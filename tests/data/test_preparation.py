import hashlib
from dataclasses import replace

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk.data import digits
from kinfolk.data.entry import Contents, Split
from kinfolk.data.preparation import Moments, check_destination, write
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import Rows
from kinfolk.errors import DataError

SPEC = DataSpec(kind="vector", shape=(2,), levels=256)


def quiet(what, done, total):
    pass


def contents(train, test=None):
    test = train if test is None else test
    return Contents(SPEC, {"train": Split(len(train), train.split(3)), "test": Split(len(test), test.split(3))})


def pixels(count, seed=0):
    x = torch.randint(256, (count, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return RowsBySplit(x)


class RowsBySplit:
    """Rows that are handed over a few at a time."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def split(self, size):
        return [Rows(part) for part in self.x.split(size)]


def failing(split):
    """A split that breaks off after its first chunk."""

    def chunks():
        yield next(iter(split.chunks))
        raise RuntimeError("cut off")

    return replace(split, chunks=chunks())


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def destination(tmp_path):
    write(tmp_path / "toy", "toy", digits.ENTRY, contents(pixels(10), pixels(4, seed=1)), quiet)
    return tmp_path / "toy"


def test_merged_moments_are_those_of_the_whole():
    values = 100 + 3 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for part in values.split(137):
        moments.add(part)
    assert moments.count == 1000
    assert moments.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert moments.std == pytest.approx(float(values.std(correction=0)), rel=1e-12)


def test_the_record_holds_the_deviation_of_the_train_split_on_the_scale_of_a_family(destination):
    expected = SPEC.from_levels(pixels(10).x).std(correction=0)
    assert Prepared.open(destination).spec.data_std == pytest.approx(float(expected), abs=1e-6)


def test_the_same_data_gives_the_same_bytes_however_it_arrives(destination):
    whole = Contents(SPEC, {"train": Split(10, [Rows(pixels(10).x)]), "test": Split(4, [Rows(pixels(4, seed=1).x)])})
    write(destination.with_name("again"), "toy", digits.ENTRY, whole, quiet)
    assert files(destination) == files(destination.with_name("again"))


def test_a_preparation_that_breaks_off_leaves_what_was_there(destination):
    before = files(destination)
    good = contents(pixels(10, seed=2))
    for split in ("train", "test"):
        broken = replace(good, splits={**good.splits, split: failing(good.splits[split])})
        with pytest.raises(RuntimeError, match="cut off"):
            write(destination, "toy", digits.ENTRY, broken, quiet)
        assert files(destination) == before
        assert [path.name for path in destination.parent.iterdir()] == ["toy"]


def test_a_refusal_at_the_end_leaves_what_was_there(destination):
    def refuse():
        raise DataError("bad files")

    before = files(destination)
    with pytest.raises(DataError, match="bad files"):
        write(destination, "toy", digits.ENTRY, replace(contents(pixels(10, seed=2)), skipped=refuse), quiet)
    assert files(destination) == before


def test_a_complete_preparation_replaces_what_was_there(destination):
    write(destination, "toy", digits.ENTRY, replace(contents(pixels(6, seed=2)), skipped=lambda: 5), quiet)
    prepared = Prepared.open(destination)
    assert prepared.record.splits == {"train": 6, "test": 6}
    assert prepared.record.skipped == 5
    assert torch.equal(prepared.source("train").rows.x, pixels(6, seed=2).x)
    assert [path.name for path in destination.parent.iterdir()] == ["toy"]


def test_what_was_there_comes_back_when_it_cannot_be_replaced(destination, monkeypatch):
    path_type = type(destination)
    rename = path_type.rename

    def refuse_new(self, target):
        if (
            target == destination
            and (self / "dataset.json").exists()
            and "marked" in (self / "dataset.json").read_text()
        ):
            raise OSError("no space left")
        return rename(self, target)

    before = files(destination)
    monkeypatch.setattr(path_type, "rename", refuse_new)
    with pytest.raises(OSError, match="no space"):
        write(destination, "marked", digits.ENTRY, contents(pixels(6)), quiet)
    assert files(destination) == before
    assert [path.name for path in destination.parent.iterdir()] == ["toy"]


def test_a_folder_that_holds_anything_else_is_not_replaced(destination, tmp_path):
    (destination / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"'thesis.tex', which is no part of a prepared data set"):
        check_destination(destination)
    with pytest.raises(DataError, match=r"thesis.tex"):
        check_destination(destination / "thesis.tex")


def test_new_empty_and_prepared_folders_may_be_written(destination, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty", destination):
        check_destination(path)


@pytest.mark.parametrize(("train", "test", "split"), [(0, 4, "train"), (4, 0, "test")])
def test_a_split_without_samples_is_refused(tmp_path, train, test, split):
    empty = Contents(
        SPEC, {"train": Split(0, pixels(train).split(3)[:train]), "test": Split(0, pixels(test).split(3)[:test])}
    )
    with pytest.raises(DataError, match=f"The {split} split would have no samples"):
        write(tmp_path / "toy", "toy", digits.ENTRY, empty, quiet)
    assert not list(tmp_path.iterdir())


def test_data_that_does_not_vary_is_refused(tmp_path):
    flat = RowsBySplit(torch.full((8, 2), 7, dtype=torch.uint8))
    with pytest.raises(DataError, match="nothing to learn"):
        write(tmp_path / "toy", "toy", digits.ENTRY, contents(flat), quiet)


def test_rows_that_are_not_what_the_specification_says_are_not_written(tmp_path):
    wrong = RowsBySplit(torch.rand(8, 2))
    with pytest.raises(DataError, match="float32"):
        write(tmp_path / "toy", "toy", digits.ENTRY, contents(wrong), quiet)
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_rows_of_each_split(tmp_path):
    told = []
    write(
        tmp_path / "toy", "toy", digits.ENTRY, contents(pixels(7), pixels(2)), lambda *told_now: told.append(told_now)
    )
    train = [("toy: train", done, 7) for done in (0, 3, 6, 7)]
    assert told == [*train, ("toy: test", 0, 2), ("toy: test", 2, 2)]


def test_a_link_to_a_prepared_folder_stays_a_link(destination):
    link = destination.with_name("link")
    link.symlink_to(destination)
    write(link, "toy", digits.ENTRY, contents(pixels(6, seed=2)), quiet)
    assert link.is_symlink()
    assert Prepared.open(destination).record.splits == {"train": 6, "test": 6}
    assert sorted(path.name for path in destination.parent.iterdir()) == ["link", "toy"]


def test_the_old_folder_is_kept_aside_when_it_cannot_be_put_back(destination, monkeypatch):
    path_type = type(destination)
    rename = path_type.rename

    def only_away(self, target):
        if target == destination:
            raise OSError("read-only")
        return rename(self, target)

    before = files(destination)
    monkeypatch.setattr(path_type, "rename", only_away)
    with pytest.raises(OSError, match="read-only"):
        write(destination, "toy", digits.ENTRY, contents(pixels(6)), quiet)
    (kept,) = destination.parent.iterdir()
    assert files(kept) == before
