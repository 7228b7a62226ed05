import pytest
import torch
from torch import Tensor

from kinfolk.data.mixtures import GRID_STD, draw, grid_modes
from kinfolk.errors import ConfigError, DataError
from kinfolk.metrics.collapse import (
    CollapseReference,
    collapse_measures,
    reference_of_clusters,
    reference_of_modes,
)
from kinfolk.rng import generator

CENTRES = grid_modes()


def grid(rows: int, seed: int, modes: int = 25, std: float = GRID_STD) -> Tensor:
    return draw(CENTRES[:modes], std, rows, generator("grid", seed)).x


def by_modes() -> CollapseReference:
    return reference_of_modes(grid(5000, 0), CENTRES, GRID_STD)


def by_clusters() -> CollapseReference:
    return reference_of_clusters(grid(5000, 0), generator("bins"))


BOTH = pytest.mark.parametrize("reference", [by_modes(), by_clusters()], ids=["modes", "clusters"])


@BOTH
def test_a_fresh_draw_of_the_data_looks_like_the_data(reference: CollapseReference) -> None:
    found = collapse_measures(reference, grid(2500, 1))
    assert found.samples == 2500
    assert found.missing == 0
    assert found.bins_different < 0.15
    assert found.js_divergence < 0.02
    assert found.effective_bins == pytest.approx(1, abs=0.03)
    assert found.distance_ratio == pytest.approx(1, abs=0.05)
    assert found.support > 10_000  # of 1,000: hardly a pair is as close as the closest of the data


@BOTH
def test_half_the_modes_lost_are_half_the_data(reference: CollapseReference) -> None:
    found = collapse_measures(reference, grid(2500, 1, modes=12))
    assert found.missing == pytest.approx(13 / 25, abs=0.03)
    assert found.bins_different > 0.45
    assert found.effective_bins == pytest.approx(12 / 25, abs=0.03)


@BOTH
def test_one_sample_again_and_again(reference: CollapseReference) -> None:
    found = collapse_measures(reference, grid(1, 1).expand(2500, 2))
    assert found.missing > 0.9
    assert found.distance_ratio == 0
    assert found.support == 1


@BOTH
def test_every_mode_as_one_point_is_seen_by_duplicates_alone(reference: CollapseReference) -> None:
    found = collapse_measures(reference, grid(2500, 1, std=1e-5))  # 0.00001: closer than any two of the data
    assert found.distance_ratio == pytest.approx(1, abs=0.05)
    assert found.support == pytest.approx(25, rel=0.1)


def test_samples_near_no_mode_keep_regions_and_no_modes() -> None:
    around = grid(2500, 1, std=0.5)
    found = collapse_measures(by_modes(), around)
    assert found.missing == 0
    assert found.high_quality == pytest.approx(1 - torch.tensor(-(0.3**2) / 2).exp().item(), abs=0.02)
    lost = collapse_measures(by_modes(), grid(2500, 1, modes=20))
    assert (lost.modes, lost.missing) == (0.8, pytest.approx(0.2, abs=0.02))


def test_clusters_know_no_modes() -> None:
    found = collapse_measures(by_clusters(), grid(500, 1))
    assert (found.modes, found.high_quality) == (None, None)


def test_duplicates_are_as_close_as_the_closest_of_so_many_real_samples() -> None:
    spacing = torch.tensor([[1.0], [2.0], [3.0]])[:, :, None]  # of three sets of 1,000; a fourth set is not whole
    rows = torch.cat([*(spacing * torch.arange(1000.0)[:, None]), torch.zeros(999, 1)])
    reference = reference_of_modes(rows, torch.tensor([[0.0], [1500.0]]), 1.0)
    assert reference.duplicate_distance == 2
    assert reference.pairwise_distance == pytest.approx(1001 / 3)
    halves = torch.arange(40.0)[:, None] * 1.5
    assert collapse_measures(reference, halves).support == pytest.approx(40 * 39 / (2 * 39))


def test_bins_are_one_for_fifty_rows_and_at_most_a_hundred() -> None:
    for rows, bins in ((1497, 29), (5000, 100), (6000, 100)):
        assert len(reference_of_clusters(grid(rows, 0), generator(0)).bins.centres) == bins


def test_too_few_rows_for_two_bins_are_refused() -> None:
    with pytest.raises(ConfigError, match="99 real rows make 1 of at most 100 bins"):
        reference_of_clusters(grid(99, 0), generator(0))
    with pytest.raises(ConfigError, match="0 of at most 0 bins"):
        reference_of_clusters(grid(99, 0), generator(0), most=0)


def test_diverged_samples_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 rows"):
        collapse_measures(by_modes(), torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
