"""Explicit Runge-Kutta integration of rows that each carry a state and a sum of divergences.

Source: Hairer, Norsett & Wanner, 1993, Solving Ordinary Differential Equations I, II.1 and II.4. B rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.config import LikelihoodConfig

SAFETY = 0.9  # of the step size that would just meet the tolerance
SLOWEST, FASTEST = 0.2, 5.0  # limits to what a step size changes by
FINEST = 1e-4  # share of the whole way: a step so short is taken whatever its error


class Point(NamedTuple):
    """A state with what has been summed on the way to it; or the slopes of both."""

    y: Tensor  # (B, *)
    nats: Tensor  # (B,)


Slope = Callable[[Tensor, Tensor, Tensor], Point]  # s (B,), y (B, *), which rows they are (B,) int64


class Tableau(NamedTuple):
    """A Runge-Kutta method: stage i is at ``nodes[i]`` of a step, reached by ``stages[i]`` of the slopes before."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int
    errors: tuple[float, ...] = ()  # weights less those of an embedded method, one order lower


TABLEAUS = {
    "heun": Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2), 2),
    "rk4": Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    "adaptive": Tableau(  # Bogacki & Shampine, 1989, 3(2)
        (0, 1 / 2, 3 / 4, 1),
        ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0),
        3,
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
}


def _mixed(slopes: list[Point], weights: tuple[float, ...], h: Tensor) -> Point:
    """``h`` times the weighted sum of slopes."""
    y = sum(weight * slope.y for weight, slope in zip(weights, slopes, strict=True))
    nats = sum(weight * slope.nats for weight, slope in zip(weights, slopes, strict=True))
    return Point(per_row(h, slopes[0].y) * y, h * nats)


def _step(slope: Slope, rule: Tableau, s: Tensor, y: Tensor, h: Tensor, rows: Tensor) -> tuple[Point, Tensor]:
    """The change over one step of ``h`` (B,), and its error: root mean square over y, and nats per element. -> (B,)"""
    slopes: list[Point] = []
    for node, stage in zip(rule.nodes, rule.stages, strict=True):
        inner = y + _mixed(slopes, stage, h).y if slopes else y
        slopes.append(slope(s + node * h, inner, rows))
    change = _mixed(slopes, rule.weights, h)
    if not rule.errors:
        return change, torch.zeros_like(h)
    off = _mixed(slopes, rule.errors, h)
    return change, torch.maximum(off.y.square().flatten(1).mean(1).sqrt(), off.nats.abs() / y[0].numel())


def integrate(slope: Slope, y: Tensor, start: float, stop: float, config: LikelihoodConfig) -> Point:
    """Follow ``slope`` from ``y`` (B, *) at ``start`` to ``stop``, summing divergences; each row on its own."""
    rule = TABLEAUS[config.method]
    at = Point(y, y.new_zeros(len(y)))
    return (
        _adaptive(slope, rule, at, start, stop, config) if rule.errors else _even(slope, rule, at, start, stop, config)
    )


def _even(slope: Slope, rule: Tableau, at: Point, start: float, stop: float, config: LikelihoodConfig) -> Point:
    h = torch.full_like(at.nats, (stop - start) / config.steps)
    rows = torch.arange(len(h), device=h.device)
    for step in range(config.steps):
        change, _ = _step(slope, rule, start + step * h, at.y, h, rows)
        at = Point(at.y + change.y, at.nats + change.nats)
    return at


def _adaptive(slope: Slope, rule: Tableau, at: Point, start: float, stop: float, config: LikelihoodConfig) -> Point:
    """Each row's step grows and shrinks with its own error; rows that have arrived leave the batch."""
    y, nats = at.y.clone(), at.nats.clone()
    s = torch.full_like(nats, start)
    h = torch.full_like(nats, (stop - start) / config.steps)
    finest = FINEST * (stop - start)
    while len(rows := (s < stop).nonzero().flatten()):
        taken = torch.minimum(h[rows], stop - s[rows])
        change, error = _step(slope, rule, s[rows], y[rows], taken, rows)
        good = (error <= config.tolerance) | (taken <= finest)
        y[rows[good]] += change.y[good]
        nats[rows[good]] += change.nats[good]
        s[rows[good]] += taken[good]
        known = error.nan_to_num(torch.inf).clamp(min=1e-30)  # a step that overflows may be too long
        factor = SAFETY * (config.tolerance / known) ** (1 / rule.order)
        h[rows] = (taken * factor.clamp(SLOWEST, FASTEST)).clamp(min=finest)
        s[(stop - s).abs() < finest * 1e-3] = stop  # rounding leaves no way to go
        s[~(y.flatten(1).isfinite().all(1) & nats.isfinite())] = stop  # no step leads back
    return Point(y, nats)
