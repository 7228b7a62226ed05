import pytest
import torch
from sklearn.datasets import load_sample_image

from kinfolk.data.catalogue import prepare
from kinfolk.data.patches import cut, halves


def test_a_patch_is_a_window_of_the_picture_at_half_steps():
    picture = torch.arange(2 * 8 * 12).remainder(251).reshape(2, 8, 12).to(torch.uint8)
    patches = cut(picture, 4)
    assert patches.shape == (3 * 5, 2, 4, 4)
    assert torch.equal(patches[6], picture[:, 2:6, 2:6])
    assert torch.equal(patches[14], picture[:, 4:8, 8:12])


def test_no_pixel_is_in_both_splits():
    left, right = halves(torch.arange(10).reshape(1, 1, 10))
    assert left.flatten().tolist() == [0, 1, 2, 3, 4]
    assert right.flatten().tolist() == [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return prepare("patches", tmp_path_factory.mktemp("grey") / "patches")


def test_a_grey_patch_has_the_luma_of_the_photograph(grey):
    photograph = load_sample_image("china.jpg")[:28, :28].astype(float)
    luma = (photograph @ [0.299, 0.587, 0.114]).round()
    got = (grey.source("train").take(0, 1).x[0, 0] + 1) * 127.5
    assert torch.allclose(got, torch.tensor(luma).float(), atol=1e-3)


def test_both_photographs_are_in_both_splits(grey):
    for split in ("train", "test"):
        assert set(grey.source(split).rows.label.tolist()) == {0, 1}
        assert len(grey.source(split)) == 2 * 29 * 21  # (427 - 28) // 14 + 1 rows, (320 - 28) // 14 + 1 columns


def test_colour_and_size_are_as_asked(tmp_path):
    colour = prepare("patches", tmp_path / "patches", options={"size": 64, "channels": 3})
    assert colour.spec.shape == (3, 64, 64)
    first = colour.source("test").take(0, 1).x[0]
    expected = torch.tensor(load_sample_image("china.jpg")[:64, 320:384]).permute(2, 0, 1)
    assert torch.equal(colour.spec.to_levels(first), expected.long())
