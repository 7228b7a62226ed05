"""Gaussian mixtures in the plane on which lost modes can be counted: 8 on a ring, 25 on a grid.

Source: Lin et al., 2018, PacGAN, https://arxiv.org/abs/1712.04086, section 4.1 and its published configuration, which
set radius, spacing, standard deviations and the 100,000 training samples.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import DataSpec
from kinfolk.data.entry import Contents, Entry, Request, Split, SplitName
from kinfolk.data.modes import Mixture
from kinfolk.data.source import Rows
from kinfolk.rng import generator

RING_STD = 0.01  # of each mode, in each coordinate
GRID_STD = 0.05
_DECIMALS = 12  # of a recorded centre; further ones change with the machine
_SIZES: dict[SplitName, int] = {"train": 100_000, "test": 10_000}


def ring_modes() -> Tensor:
    """Centres on the unit circle, a mode every eighth of a turn, from angle 0. -> (8, 2) float64"""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def grid_modes() -> Tensor:
    """Centres {-4, -2, 0, 2, 4}^2, the first coordinate outermost. -> (25, 2) float64"""
    line = torch.arange(-4, 5, 2, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def draw(modes: Tensor, std: float, count: int, noise: torch.Generator) -> Rows:
    """``count`` samples, each of a mode drawn uniformly, which is its label. (K, 2) -> Rows of (count, 2)"""
    label = torch.randint(len(modes), (count,), generator=noise)
    x = modes[label] + std * torch.randn(count, 2, generator=noise, dtype=torch.float64)
    return Rows(x.float(), label)


def _contents(name: str, modes: Callable[[], Tensor], std: float, spec: DataSpec, _: Request) -> Contents:
    centres = modes()
    drawn = {split: draw(centres, std, count, generator(name, split)) for split, count in _SIZES.items()}
    shown = centres.round(decimals=2) + 0.0  # no -0.00
    return Contents(
        spec=spec,
        splits={split: Split(len(rows), [rows]) for split, rows in drawn.items()},
        class_names=tuple(f"({x:.2f}, {y:.2f})" for x, y in shown.tolist()),
    )


def _entry(name: str, modes: Callable[[], Tensor], classes: int, std: float, summary: str) -> Entry:
    spec = DataSpec(kind="vector", shape=(2,), classes=classes)
    centres = modes().round(decimals=_DECIMALS) + 0.0  # no -0.0
    return Entry(
        name=name,
        summary=summary,
        origin="generated, after Lin et al., 2018, PacGAN, section 4.1",
        licence="none needed: generated numbers",
        spec=spec,
        contents=partial(_contents, name, modes, std, spec),
        modes=Mixture(centres=tuple((x, y) for x, y in centres.tolist()), std=std),
    )


RING = _entry("ring", ring_modes, 8, RING_STD, "8 Gaussians on the unit circle, standard deviation 0.01")
GRID = _entry("grid", grid_modes, 25, GRID_STD, "25 Gaussians on a grid of spacing 2, standard deviation 0.05")
