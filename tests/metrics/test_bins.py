import math

import pytest
import torch
from torch import Tensor

from kinfolk.errors import DataError
from kinfolk.metrics import features
from kinfolk.metrics.bins import Bins, bin_scores, jensen_shannon, k_means, nearest_centre, two_proportion_z
from kinfolk.rng import generator

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])


def blobs(rows: int, seed: int, corners: int = 4) -> Tensor:
    chosen = torch.randint(corners, (rows,), generator=generator(seed, "corner"))
    return CORNERS[chosen] + torch.randn(rows, 2, generator=generator(seed, "noise"))


def plane(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 2, generator=generator(seed, "plane"), dtype=torch.float64)


def test_a_fresh_draw_of_the_data_differs_in_as_many_bins_as_the_level_says() -> None:
    bins = Bins.around(k_means(plane(5000, 0), 50, generator("means")), plane(5000, 1))
    different = [bin_scores(bins.counts, bins.count(plane(5000, 2 + draw))).different for draw in range(30)]
    assert sum(different) / 30 == pytest.approx(0.05, abs=0.02)  # they share the real draw: an error of about 0.008


def test_a_sampler_of_half_the_plane_differs_in_most_bins_and_misses_those_of_the_other_half() -> None:
    bins = Bins.around(k_means(plane(5000, 0), 50, generator("means")), plane(5000, 1))
    half = plane(5000, 2)
    half[:, 0] = half[:, 0].abs()
    found = bin_scores(bins.counts, bins.count(half))
    assert found.different > 0.8
    beyond = bins.count(-half[half[:, 0] > 0.4]).double() / len(half)  # the other half, less bins across the middle
    assert float(beyond.sum()) / 2 < found.missing < 0.5


def test_lost_modes_weigh_as_the_data_in_them() -> None:
    bins = Bins.around(CORNERS, blobs(4000, 0))
    assert bin_scores(bins.counts, bins.count(blobs(1000, 1))).missing == 0
    share = float(bins.counts[3]) / 4000
    assert bin_scores(bins.counts, bins.count(blobs(1000, 1, corners=3))).missing == pytest.approx(share)


def test_a_bin_is_missing_below_a_quarter_of_its_share_and_beyond_chance() -> None:
    real = torch.tensor([5000, 5000])
    assert bin_scores(real, torch.tensor([123, 877])).missing == 0.5  # 0.123 is less than a quarter of a half
    assert bin_scores(real, torch.tensor([127, 873])).missing == 0
    assert bin_scores(real, torch.tensor([0, 3])).missing == 0  # three samples in one bin of two are chance


def test_z_is_the_closed_form_of_two_proportions() -> None:
    real, samples = torch.tensor([30, 70, 0]), torch.tensor([90, 110, 0])
    pooled = 120 / 300
    expected = (90 / 200 - 30 / 100) / math.sqrt(pooled * (1 - pooled) * (1 / 100 + 1 / 200))
    z = two_proportion_z(real, samples)
    assert z.tolist() == pytest.approx([expected, -expected, 0.0])  # two shares that sum to one differ alike


def test_a_bin_differs_from_1_96_standard_errors_on() -> None:
    real = torch.tensor([5000, 5000])
    error = math.sqrt(0.25 * (1 / 10_000 + 1 / 10_000))
    for z, different in ((1.93, 0.0), (1.99, 1.0)):
        more = round(10_000 * z * error)
        assert bin_scores(real, torch.tensor([5000 + more, 5000 - more])).different == different


def test_divergence_runs_from_equal_to_disjoint() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(p, p.flip(0)) == pytest.approx(math.log(2))
    q = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    mean_entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert jensen_shannon(p, q) == pytest.approx(mean_entropy - math.log(2) / 2)


def test_means_of_separate_clusters_are_found() -> None:
    x = blobs(2000, 0)
    centres = k_means(x, 4, generator(3))
    for corner in CORNERS:
        inside = x[(x - corner).norm(dim=1) < 4.5].double().mean(0)
        assert torch.cdist(inside[None], centres).min() < 0.05


def test_no_centre_can_be_bettered_by_the_mean_of_its_cluster() -> None:
    x = plane(500, 0)
    centres = k_means(x, 7, generator(0), rounds=1000)
    cluster = nearest_centre(x, centres)
    means = torch.stack([x[cluster == index].mean(0) for index in range(7)])
    assert torch.allclose(means, centres, atol=1e-12)


def test_means_are_a_function_of_the_generator() -> None:
    one, same, other = (k_means(plane(300, 0), 5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest_centre(plane(50, 0), CORNERS.double())
    monkeypatch.setattr(features, "BLOCK_ELEMENTS", 7 * 4)
    assert torch.equal(nearest_centre(plane(50, 0), CORNERS.double()), whole)


def test_more_bins_than_different_rows_are_refused() -> None:
    assert len(k_means(torch.eye(3).repeat(4, 1), 3, generator(0))) == 3
    with pytest.raises(DataError, match="4 bins of data with 3 different rows"):
        k_means(torch.eye(3).repeat(4, 1), 4, generator(0))


def test_empty_counts_and_other_spaces_are_refused() -> None:
    with pytest.raises(DataError, match="4 real and 0 samples"):
        bin_scores(torch.tensor([4]), torch.tensor([0]))
    with pytest.raises(DataError, match="2 dimensions, sample features 3"):
        Bins.around(CORNERS, blobs(10, 0)).count(torch.zeros(2, 3))
