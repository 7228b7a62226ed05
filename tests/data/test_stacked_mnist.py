import pytest
import torch

from kinfolk.data import mnist, stacked_mnist
from kinfolk.data.catalogue import entry, prepare
from kinfolk.data.source import Rows
from kinfolk.rng import generator

SIZES = {"train": 900, "test": 60}


def digits(split):
    """Pictures whose every pixel is 20 times their digit, and 10 brighter in the test split; each digit alike often."""
    label = torch.arange(50) % 10
    x = (20 * label + 10 * (split == "test")).to(torch.uint8)
    return Rows(x.view(-1, 1, 1, 1).expand(-1, 1, 28, 28), label)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mnist, "pictures", lambda request: {split: digits(split) for split in SIZES})
    monkeypatch.setattr(stacked_mnist, "_SIZES", SIZES)


@pytest.fixture
def prepared(small, tmp_path):
    return prepare("stacked-mnist", tmp_path / "out")


def test_each_channel_is_a_digit_of_its_split_and_the_label_reads_them_in_order(prepared):
    for split, shift in (("train", 0), ("test", 10)):
        rows = prepared.source(split).rows
        assert rows.x.shape == (SIZES[split], 3, 28, 28)
        assert (rows.x == rows.x[:, :, :1, :1]).all()
        red, green, blue = ((rows.x[:, :, 0, 0].long() - shift) / 20).unbind(1)
        assert torch.equal(rows.label, (100 * red + 10 * green + blue).long())
    assert prepared.record.class_names[42] == "042"


def test_channels_are_drawn_each_for_itself_and_evenly(prepared):
    label = prepared.source("train").rows.label
    drawn = torch.stack([label // 100, label // 10 % 10, label % 10])
    counts = torch.stack([channel.bincount(minlength=10) for channel in drawn]).double()
    assert ((counts - 90) ** 2 / 90).sum(1).max() < 9 + 5 * 18**0.5  # chi-square, 9 degrees of freedom
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert torch.corrcoef(drawn[[one, other]].double())[0, 1].abs() < 5 / 900**0.5


def test_the_draw_is_the_same_every_time_and_another_for_each_split(small, prepared, tmp_path):
    again = prepare("stacked-mnist", tmp_path / "again")
    assert [shard.sha256 for shard in again.record.shards] == [shard.sha256 for shard in prepared.record.shards]
    train, test = (prepared.source(split).rows.label[: SIZES["test"]] for split in SIZES)
    assert not torch.equal(train, test)


def test_chunks_join_to_one_draw(monkeypatch):
    whole = Rows.cat(list(stacked_mnist.stacked(digits("train"), 20, generator(0))))
    monkeypatch.setattr(stacked_mnist, "_CHUNK", 7)
    parts = list(stacked_mnist.stacked(digits("train"), 20, generator(0)))
    assert [len(part) for part in parts] == [7, 7, 6]
    assert torch.equal(Rows.cat(parts).x, whole.x)


def test_the_published_sizes_and_rule_are_the_default():
    assert stacked_mnist._SIZES == {"train": 128_000, "test": 26_000}
    known = entry("stacked-mnist").modes
    assert (known.kind, known.judge, known.samples) == ("stack", "mnist", 26_000)


def test_the_record_says_how_modes_are_counted(prepared):
    assert prepared.record.modes == entry("stacked-mnist").modes
