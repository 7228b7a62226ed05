import hashlib
import os
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from kinfolk.data.catalogue import prepare
from kinfolk.data.folder import find, split
from kinfolk.errors import ConfigError, DataError

SMALL = {"size": 8, "channels": 1}


def picture(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)


@pytest.fixture
def classes(tmp_path):
    """Two classes of 20: dogs are below 100, cats above."""
    for number in range(20):
        picture(tmp_path / "own" / "dog" / f"{number}.png", number)
        picture(tmp_path / "own" / "cat" / "deeper" / f"{number}.PNG", 100 + number)
    (tmp_path / "own" / "notes.txt").write_text("not an image")
    (tmp_path / "own" / "cat" / ".hidden.png").write_text("not an image")
    return tmp_path / "own"


def greys(prepared, part):
    return prepared.source(part).rows.x[:, 0, 0, 0].tolist()


def test_class_folders_become_labels_in_the_order_of_their_names(tmp_path, classes):
    prepared = prepare("folder", tmp_path / "out", source=classes, options=SMALL, name="pets")
    assert prepared.record.name == "pets"
    assert prepared.record.class_names == ("cat", "dog")
    assert sorted(greys(prepared, "train") + greys(prepared, "test")) == [*range(20), *range(100, 120)]
    for part in ("train", "test"):
        assert prepared.source(part).rows.label.tolist() == [int(grey < 100) for grey in greys(prepared, part)]


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(10):
        picture(tmp_path / "own" / f"{number}.png", number)
    prepared = prepare("folder", tmp_path / "out", source=tmp_path / "own", options=SMALL)
    assert prepared.spec.classes is None
    assert prepared.record.class_names == ()
    assert sorted(greys(prepared, "train") + greys(prepared, "test")) == list(range(10))


def test_a_class_whose_name_is_no_text_is_shown_with_a_mark(tmp_path):
    for number in range(10):
        picture(tmp_path / "own" / os.fsdecode((b"caf\xe9", b"tea")[number % 2]) / f"{number}.png", number)
    prepared = prepare("folder", tmp_path / "out", source=tmp_path / "own", options=SMALL)
    assert prepared.record.class_names == ("caf\N{REPLACEMENT CHARACTER}", "tea")


@pytest.mark.parametrize(("size", "channels"), [(4, 1), (16, 3)])
def test_size_and_channels_are_the_options(tmp_path, classes, size, channels):
    options = {"size": size, "channels": channels}
    prepared = prepare("folder", tmp_path / "out", source=classes, options=options)
    assert prepared.spec.shape == (channels, size, size)
    assert prepared.source("train").take(0, 1).x.shape == (1, channels, size, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 8}, "sise is not a key. Did you mean 'size'"),
        ({"size": 0}, "size.*got 0"),
        ({"channels": 2}, "channels"),
        ({"test_share": 1}, "test_share"),
    ],
)
def test_options_that_are_not_allowed_are_refused_before_anything_is_written(tmp_path, classes, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare("folder", tmp_path / "out", source=classes, options=options)
    assert not (tmp_path / "out").exists()


def test_the_split_is_close_to_the_share_asked_and_does_not_depend_on_the_order(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.png").touch()
    found, _ = find(tmp_path)
    train, test = split(found, 0.25)
    assert len(train) + len(test) == len({image.name for image in (*train, *test)}) == 400
    assert abs(len(test) - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
    assert split(found[::-1], 0.25) == (train, test)
    assert [image.name for image in train] != sorted(image.name for image in train)


def test_an_image_stays_in_its_split_when_others_come(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.png").touch()
    found, _ = find(tmp_path)
    tests = [{image.name for image in split(found[:count], 0.25)[1]} for count in range(20, 201)]
    assert all(before <= after for before, after in pairwise(tests))


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_split_has_at_least_one_image(tmp_path, share):
    for number in range(2):
        (tmp_path / f"{number}.png").touch()
    train, test = split(find(tmp_path)[0], share)
    assert len(train) == len(test) == 1


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(tmp_path, classes):
    first = prepare("folder", tmp_path / "a", source=classes, options=SMALL)
    moved = classes.rename(tmp_path / "elsewhere")
    second = prepare("folder", tmp_path / "b", source=moved, options=SMALL)
    for path in first.path.iterdir():
        sums = {hashlib.sha256((folder / path.name).read_bytes()).digest() for folder in (first.path, second.path)}
        assert len(sums) == 1


@pytest.fixture
def damaged(classes):
    """The same folder with seven files that cannot be used, of four kinds."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(classes / "dog" / "whole.png")
    whole = (classes / "dog" / "whole.png").read_bytes()
    (classes / "dog" / "whole.png").unlink()
    (classes / "cat" / "a_truncated.png").write_bytes(whole[: len(whole) // 2])
    (classes / "cat" / "b_empty.png").touch()
    (classes / "cat" / "c_text.jpg").write_text("hello")
    (classes / "cat" / "d_gone.png").symlink_to(classes / "nowhere.png")
    for number in range(3):
        (classes / "dog" / f"e_empty{number}.png").touch()
    return classes


def test_bad_files_are_all_counted_the_first_named_and_nothing_is_written(tmp_path, damaged):
    with pytest.raises(DataError) as caught:
        prepare("folder", tmp_path / "out", source=damaged, options=SMALL)
    message = str(caught.value)
    assert message.startswith(f"7 of 47 images in {damaged} cannot be used: cat/a_truncated.png (")
    assert "cat/b_empty.png (empty, 0 bytes); cat/c_text.jpg (no image of a known format); cat/d_gone.png (" in message
    assert "dog/e_empty0.png (empty, 0 bytes) and 2 more." in message
    assert "--skip-bad" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_bad_files_are_left_out_on_request_and_counted(tmp_path, damaged):
    prepared = prepare("folder", tmp_path / "out", source=damaged, options=SMALL, skip_bad=True)
    assert prepared.record.skipped == 7
    assert sorted(greys(prepared, "train") + greys(prepared, "test")) == [*range(20), *range(100, 120)]


def test_bad_files_left_out_still_leave_both_splits_filled_or_are_refused(tmp_path):
    picture(tmp_path / "own" / "good.png", 5)
    (tmp_path / "own" / "bad.png").touch()
    with pytest.raises(DataError, match="split would have no samples"):
        prepare("folder", tmp_path / "out", source=tmp_path / "own", options=SMALL, skip_bad=True)


def test_images_both_flat_and_in_subfolders_are_refused(classes):
    picture(classes / "stray.png", 0)
    with pytest.raises(DataError, match=r"both directly \(stray.png, 1 in all\) and in subfolders"):
        find(classes)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "readme.md").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="holds 0 images, at least two"):
        find(tmp_path)


def test_images_larger_than_a_chunk_of_reading_come_in_order(tmp_path):
    for number in range(150):
        picture(tmp_path / "own" / f"{number}.png", number)
    prepared = prepare("folder", tmp_path / "out", source=tmp_path / "own", options=SMALL)
    train, test = split(find(tmp_path / "own")[0], 0.1)
    assert greys(prepared, "train") == [int(image.path.stem) for image in train]
    assert greys(prepared, "test") == [int(image.path.stem) for image in test]
