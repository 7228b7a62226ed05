import numpy as np
import pytest
import torch
from PIL import Image

from kinfolk.data import images
from kinfolk.data.images import UnreadableError, read_square


def save(path, pixels, mode=None, **options):
    picture = Image.fromarray(np.asarray(pixels))
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def flat(colour, height=6, width=6):
    return np.full((height, width, len(colour)), colour, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 8), (1, 1), (3, 500)])
def test_any_shape_becomes_a_square_of_the_size_asked(tmp_path, shape):
    path = save(tmp_path / "a.png", flat((10, 20, 30), *shape))
    x = read_square(path, 16, 3)
    assert x.dtype == torch.uint8
    assert torch.equal(x, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    x = read_square(save(tmp_path / "a.png", pixels), 8, 3)
    assert np.array_equal(x.permute(1, 2, 0).numpy(), pixels)


def test_the_central_square_is_kept(tmp_path):
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200
    assert (read_square(save(tmp_path / "a.png", pixels), 4, 3) == 200).all()
    assert (read_square(save(tmp_path / "b.png", pixels.transpose(1, 0, 2)), 4, 3) == 200).all()


def test_fine_detail_averages_out_instead_of_aliasing(tmp_path):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    x = read_square(save(tmp_path / "a.png", checkers), 8, 1).float()
    assert (x - 127.5).abs().max() < 4


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGB", "bmp"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "tif")]
)
def test_every_mode_gives_the_same_grey(tmp_path, mode, suffix):
    path = save(tmp_path / f"a.{suffix}", flat((102, 102, 102)), mode)  # a grey that the standard palette holds
    for channels in (1, 3):
        x = read_square(path, 6, channels)
        assert torch.equal(x, torch.full((channels, 6, 6), 102, dtype=torch.uint8))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    pixels = np.array([[0, 257, 32768, 65535]] * 4, dtype=np.uint16)
    x = read_square(save(tmp_path / f"a.{suffix}", pixels), 4, 1)
    assert x[0, 0].tolist() == [0, 1, 128, 255]
    assert torch.equal(read_square(tmp_path / f"a.{suffix}", 4, 3), x.expand(3, 4, 4))


def test_transparent_parts_are_white(tmp_path):
    clear, half = save(tmp_path / "a.png", flat((255, 0, 0, 0))), save(tmp_path / "b.png", flat((0, 0, 0, 128)))
    assert (read_square(clear, 6, 3) == 255).all()
    assert (read_square(half, 6, 1).int() - 127).abs().max() <= 1


def test_a_palette_with_a_transparent_entry_is_laid_on_white(tmp_path):
    picture = Image.new("P", (6, 6), 0)
    picture.putpalette([0, 0, 0])
    picture.save(tmp_path / "a.png", transparency=0)
    assert (read_square(tmp_path / "a.png", 6, 3) == 255).all()


def test_a_picture_taken_sideways_is_turned_upright(tmp_path):
    pixels = np.zeros((6, 6, 3), dtype=np.uint8)
    pixels[:3] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    x = read_square(save(tmp_path / "a.png", pixels, exif=exif), 6, 1)[0]
    assert (x[:, 3:] == 255).all()
    assert (x[:, :3] == 0).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda good: b"", "0 bytes"),
        (lambda good: b"not a picture at all", "no image of a known format"),
        (lambda good: good[: len(good) // 2], "truncated|Truncated|broken"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_files_that_are_no_whole_picture_are_refused_with_the_reason(tmp_path, content, reason, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", pixels)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UnreadableError, match=reason):
        read_square(path, 8, 3)


def test_a_picture_beyond_the_pixel_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", flat((1, 2, 3), 20, 30))
    monkeypatch.setattr(images, "LARGEST_PIXELS", 600)
    read_square(path, 8, 3)
    monkeypatch.setattr(images, "LARGEST_PIXELS", 599)
    path.write_bytes(path.read_bytes()[:60])  # decoding it would fail with another reason
    with pytest.raises(UnreadableError, match="30x20 pixels, at most 599"):
        read_square(path, 8, 3)


def test_pillows_own_bomb_error_is_a_reason_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="decompression bomb"):
        read_square(save(tmp_path / "a.png", flat((1, 2, 3), 20, 30)), 8, 3)


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -3, np.int32)])
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels):
    with pytest.raises(UnreadableError, match=r"floating-point|pixels from -3"):
        read_square(save(tmp_path / "a.tif", pixels), 4, 1)


def test_a_file_that_would_start_another_program_is_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(UnreadableError, match="no image of a known format"):
        read_square(tmp_path / "a.png", 4, 1)
