import pytest
from torch import nn

from kinfolk.errors import ConfigError
from kinfolk.metrics.speed import parameter_count, sampling_speed


class Bench:
    """A clock that stands still between draws, which take the seconds given."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.now = 100.0
        self.asked: list[int] = []

    def draw(self, samples: int) -> None:
        self.asked.append(samples)
        self.now += self.seconds.pop(0)

    def clock(self) -> float:
        return self.now


def test_median_of_the_measured_draws_alone() -> None:
    bench = Bench(50.0, 60.0, 4.0, 1.0, 2.0)
    speed = sampling_speed(bench.draw, 32, bench.clock, warmup=2, repeats=3)
    assert (speed.seconds, speed.samples_per_s) == (2.0, 16.0)
    assert (speed.samples, speed.repeats) == (32, 3)
    assert bench.asked == [32] * 5


@pytest.mark.parametrize(("samples", "warmup", "repeats"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_nothing_to_measure_is_refused_before_a_draw(samples: int, warmup: int, repeats: int) -> None:
    bench = Bench()
    with pytest.raises(ConfigError, match=f"samples={samples}, repeats={repeats}, warmup={warmup}"):
        sampling_speed(bench.draw, samples, bench.clock, warmup, repeats)
    assert bench.asked == []


def test_shared_parameters_count_once_and_frozen_ones_do_not_train() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)  # 9 weights and 3 biases each
    second.weight = first.weight
    frozen = nn.Linear(3, 2).requires_grad_(False)  # 8 parameters
    normalised = nn.BatchNorm1d(2, affine=False)  # buffers only
    count = parameter_count(nn.Sequential(first, second, frozen, normalised))
    assert (count.total, count.trainable) == (9 + 3 + 3 + 8, 9 + 3 + 3)
