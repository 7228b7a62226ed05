import base64
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from kinfolk.contract import DataSpec, RequestError
from kinfolk.serving.uploads import read_mask, read_samples

GREY = DataSpec(kind="image", shape=(1, 3, 4), levels=256)
COLOUR = DataSpec(kind="image", shape=(3, 3, 4), levels=256)
INK = DataSpec(kind="image", shape=(1, 3, 4), levels=17)
PLANE = DataSpec(kind="vector", shape=(2,))
WORDS = DataSpec(kind="tokens", shape=(5,), levels=7)
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def file(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def text(content):
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_is_the_same_whatever_file_it_comes_in(mode, kind):
    if kind == "WEBP" and mode in ("LA", "P"):
        pytest.skip("WebP has no such mode")
    content = file(Image.fromarray(PIXELS).convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = torch.from_numpy(PIXELS).float()[None, None] / 127.5 - 1
    for value in (content, text(content), f"data:image/png;base64,{text(content)}", [content], PIXELS[None].tolist()):
        assert torch.allclose(read_samples("x", value, GREY, 4), expected, atol=1e-6)
    assert torch.allclose(read_samples("x", content, COLOUR, 4), expected.expand(1, 3, 3, 4), atol=1e-6)


def test_a_jpeg_is_read():
    picture = Image.new("L", (4, 3), 100)
    x = read_samples("x", file(picture, "JPEG", quality=95), GREY, 4)
    assert (x - (100 / 127.5 - 1)).abs().max() < 0.02


def test_levels_of_the_screen_become_the_nearest_of_the_data():
    x = torch.rand(5, 1, 3, 4) * 2 - 1
    x = INK.from_levels(INK.to_levels(x))
    assert torch.equal(read_samples("x", INK.to_uint8(x).tolist(), INK, 5), x)


def test_several_files_are_so_many_samples_and_one_may_go_without_a_row():
    files = [text(file(Image.new("L", (4, 3), level))) for level in (0, 255)]
    assert read_samples("x", files, GREY, 2)[:, 0, 0, 0].tolist() == [-1, 1]
    assert read_samples("x", [1.5, 2], PLANE, 3).tolist() == [[1.5, 2]]
    assert read_samples("x", npy(np.array([[1.5, 2], [3, 4]])), PLANE, 3).dtype == torch.float32
    assert read_samples("x", [[0, 1, 2, 3, 6]], WORDS, 3).dtype == torch.int64


def bomb(side=20_000):
    """A PNG of a few kilobytes that says it holds so many pixels."""

    def chunk(name, content):
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side + 1) * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Bad:
    def __reduce__(self):
        raise AssertionError("a pickle was made or read")


def objects():
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"cos\nsystem\n"


def header(told):
    """A .npy file of which the header says what it likes."""
    return b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told


MISTAKES = [
    (b"", GREY, "readable"),
    ("", GREY, "readable"),
    (b"\x89PNG\r\n\x1a\n", GREY, "readable"),
    (file(Image.fromarray(PIXELS))[:40], GREY, "readable"),
    (file(Image.fromarray(PIXELS), "GIF"), GREY, "readable"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", GREY, "readable"),
    ("!!!", GREY, "base64"),
    ("data:nothing", GREY, "readable"),
    (bomb(), GREY, "far too many"),
    (bomb(9000), GREY, "9000x9000"),
    (file(Image.new("L", (3, 4))), GREY, "4x3"),
    (file(Image.new("I;16", (4, 3))), GREY, "8-bit"),
    (file(Image.new("CMYK", (4, 3)), "JPEG"), GREY, "8-bit"),
    (file(Image.new("RGB", (4, 3), (1, 2, 3))), GREY, "grey"),
    (file(Image.new("RGBA", (4, 3), (1, 1, 1, 90))), GREY, "transparent"),
    ([text(file(Image.fromarray(PIXELS)))] * 5, GREY, "at most 4"),
    (PIXELS.astype(float).tolist(), GREY, "0 to 255"),
    ((PIXELS + 100.0).tolist(), GREY, "0 to 255"),
    ([[[0, 1], [2]]], GREY, "equal length"),
    ([[[256] * 4] * 3], GREY, "outside 0 to 255"),
    ([[[-1] * 4] * 3], GREY, "outside 0 to 255"),
    ([[[2**70] * 4] * 3], GREY, "0 to 255"),
    ([[[True] * 4] * 3], GREY, "0 to 255"),
    (None, GREY, "base64"),
    ({"a": 1}, GREY, "base64"),
    ([], PLANE, "shape"),
    ([[[1.0, 2.0]]], PLANE, "shape"),
    ([[1.0, 2.0]] * 5, PLANE, "shape"),
    ([1.0, float("inf")], PLANE, "finite"),
    ([1.0, 1e300], PLANE, "finite"),
    (npy(np.zeros((5, 2))), PLANE, "shape"),
    (npy(np.zeros(2, dtype=complex)), PLANE, "complex128"),
    (npy(np.zeros(2, dtype="U9")), PLANE, "<U9"),
    (objects(), PLANE, "object"),
    (npy(np.zeros(2))[:-1], PLANE, "length"),
    (npy(np.zeros(2)) + b"more", PLANE, "length"),
    (b"\x93NUMPY\x09\x00", PLANE, "readable"),
    (header(b"("), PLANE, "readable"),
    (header(b"'''"), PLANE, "readable"),
    (header(b"{'descr': (), 'fortran_order': False, 'shape': (2,)}"), PLANE, "readable"),
    (header(b"-" * 9000), PLANE, "readable"),
    (header(b"(" * 3000), PLANE, "readable"),
    (file(Image.fromarray(PIXELS)), PLANE, "npy"),
    ([0, 1, 2, 3, 7], WORDS, "0 to 6"),
    ([0, 1, 2, 3, 1.5], WORDS, "whole"),
]


@pytest.mark.parametrize(("value", "spec", "said"), MISTAKES)
def test_what_is_no_sample_is_refused_and_its_field_named(value, spec, said):
    with pytest.raises(RequestError, match=said) as caught:
        read_samples("x", value, spec, 4)
    assert caught.value.field == "x"
    assert len(str(caught.value)) < 300


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)
    for side in (9000, 20_000):
        with pytest.raises(RequestError, match="pixels"):
            read_samples("x", bomb(side), GREY, 4)


def test_a_mask_is_white_where_samples_are_given():
    half = np.zeros((3, 4), dtype=np.uint8)
    half[:, :2] = 255
    mask = read_mask("mask", file(Image.fromarray(half)), COLOUR, 4)
    assert mask.shape == (1, 3, 3, 4)
    assert mask[0, :, :, :2].eq(1).all()
    assert mask[0, :, :, 2:].eq(0).all()
    assert read_mask("mask", [0, 1], PLANE, 4).tolist() == [[0, 1]]
    with pytest.raises(RequestError, match="white"):
        read_mask("mask", file(Image.fromarray(half // 2)), COLOUR, 4)
