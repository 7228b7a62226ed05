"""Means of what losses log, as part of a training's state."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Numbers: TypeAlias = Mapping[str, tuple[float, int]]  # the sum and how many, by name; JSON


class Means:
    """Running means of logs, summed in float64. Nothing waits for a device until they are read."""

    def __init__(self, numbers: Numbers | None = None) -> None:
        self._sums = {
            name: (torch.tensor(total, dtype=torch.float64), count) for name, (total, count) in (numbers or {}).items()
        }

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """The logs of one more step."""
        for name, value in logs.items():
            total, count = self._sums.get(name, (torch.zeros_like(value, dtype=torch.float64), 0))
            self._sums[name] = (total + value, count + 1)

    def read(self) -> dict[str, float]:
        """The mean of each over the steps that logged it."""
        return {name: float(total) / count for name, (total, count) in self._sums.items()}

    def numbers(self) -> dict[str, tuple[float, int]]:
        """What ``Means`` is made of again, to the bit."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}
