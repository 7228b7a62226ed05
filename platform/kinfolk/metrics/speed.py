"""What a model costs: samples per second, and parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from torch import nn

from kinfolk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Speed:
    """The middle of several timed draws."""

    samples_per_s: float
    seconds: float  # median of one draw
    samples: int  # in one draw
    repeats: int


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers a model holds; one that several layers share counts once."""

    total: int
    trainable: int


def sampling_speed(
    draw: Callable[[int], object], samples: int, clock: Callable[[], float], warmup: int = 1, repeats: int = 3
) -> Speed:
    """Time ``draw(samples)``, ``warmup`` times unmeasured and ``repeats`` times by ``clock``, in seconds.

    On an accelerator ``draw`` must wait for its work, or the clock sees only the launch.

    Raises:
        ConfigError: nothing would be drawn or measured.
    """
    if samples < 1 or repeats < 1 or warmup < 0:
        raise ConfigError(
            f"samples={samples}, repeats={repeats}, warmup={warmup}: use at least 1 sample, 1 repeat and no negative "
            "warm-up."
        )
    for _ in range(warmup):
        draw(samples)
    seconds = median(_timed(draw, samples, clock) for _ in range(repeats))
    return Speed(samples / seconds, seconds, samples, repeats)


def _timed(draw: Callable[[int], object], samples: int, clock: Callable[[], float]) -> float:
    start = clock()
    draw(samples)
    return clock() - start


def parameter_count(module: nn.Module) -> ParameterCount:
    """Parameters of ``module``, buffers left out."""
    parameters = list(module.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return ParameterCount(sum(parameter.numel() for parameter in parameters), trainable)
