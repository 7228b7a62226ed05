import math

import pytest
import torch

from kinfolk.data.catalogue import prepare
from kinfolk.data.mixtures import draw, grid_modes, ring_modes

RING_STD, GRID_STD = 0.01, 0.05  # PacGAN's configuration


def prepared(tmp_path, name):
    data = prepare(name, tmp_path / name)
    rows = data.source("train").rows
    return data, rows.x, rows.label


def test_ring_modes_lie_on_the_unit_circle_an_eighth_apart():
    modes = ring_modes()
    assert torch.allclose(modes.norm(dim=1), torch.ones(8, dtype=torch.float64))
    neighbours = (modes - modes.roll(1, dims=0)).norm(dim=1)
    assert torch.allclose(neighbours, torch.full((8,), 2 * math.sin(math.pi / 8), dtype=torch.float64))


def test_grid_modes_are_every_pair_of_the_five_coordinates():
    expected = {(float(a), float(b)) for a in (-4, -2, 0, 2, 4) for b in (-4, -2, 0, 2, 4)}
    assert len(grid_modes()) == 25
    assert {tuple(mode) for mode in grid_modes().tolist()} == expected


@pytest.mark.parametrize(("name", "modes", "std"), [("ring", ring_modes(), RING_STD), ("grid", grid_modes(), GRID_STD)])
def test_samples_scatter_about_the_mode_of_their_label_as_configured(tmp_path, name, modes, std):
    data, x, label = prepared(tmp_path, name)
    assert data.record.splits == {"train": 100_000, "test": 10_000}
    noise = (x.double() - modes[label]) / std
    # mean and variance of 200,000 standard normal numbers, five standard errors wide
    assert abs(float(noise.mean())) < 5 / math.sqrt(200_000)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / 200_000)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 5 / math.sqrt(100_000)
    expected = len(x) / len(modes)
    chi_square = float(((label.bincount() - expected) ** 2 / expected).sum())
    assert abs(chi_square - (len(modes) - 1)) < 5 * math.sqrt(2 * (len(modes) - 1))


@pytest.mark.parametrize(("name", "variance"), [("ring", 0.5 + RING_STD**2), ("grid", 8 + GRID_STD**2)])
def test_the_measured_deviation_is_that_of_the_mixture(tmp_path, name, variance):
    data, _, _ = prepared(tmp_path, name)
    assert data.spec.data_std == pytest.approx(math.sqrt(variance), rel=5e-3)


def test_the_splits_are_drawn_apart(tmp_path):
    data, _, label = prepared(tmp_path, "ring")
    assert not torch.equal(label[:10_000], data.source("test").rows.label)


def test_a_class_is_named_by_its_centre(tmp_path):
    names = prepare("ring", tmp_path / "ring").record.class_names
    assert names[:3] == ("(1.00, 0.00)", "(0.71, 0.71)", "(0.00, 1.00)")
    assert not any("-0.00" in name for name in names)


def test_a_draw_is_a_function_of_its_generator():
    first, second = (draw(ring_modes(), RING_STD, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.x, second.x)


@pytest.mark.parametrize(("name", "modes", "std"), [("ring", ring_modes(), RING_STD), ("grid", grid_modes(), GRID_STD)])
def test_the_record_holds_what_modes_are_counted_by(tmp_path, name, modes, std):
    data, _, _ = prepared(tmp_path, name)
    known = data.record.modes
    assert (known.kind, known.std, known.samples) == ("mixture", std, 2500)
    assert torch.allclose(torch.tensor(known.centres, dtype=torch.float64), modes, atol=1e-12)


def test_data_whose_modes_are_not_known_says_nothing_of_them(digits):
    assert digits.record.modes is None
    assert "modes" not in (digits.path / "dataset.json").read_text()
