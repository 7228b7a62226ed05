"""Randomness as an argument: generators and noise that are pure functions of a key.

A key is a tuple of integers and names, for example ``(seed, rank, step)``. Equal keys give equal numbers on every
machine of one kind; nothing here reads or moves the global generator.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Key = int | str


def mix(*key: Key) -> int:
    """A 63-bit hash of ``key``; neighbouring keys give unrelated values."""
    text = "\x1f".join(f"{type(part).__name__[0]}{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` whose stream is a function of ``key``."""
    return torch.Generator(device=device).manual_seed(mix(*key))


@contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Let ``torch.nn.init`` draw from ``seed`` inside the block; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(mix(seed, "initialisation"))
        yield


def _rows(seed: Tensor, call: Tensor, stream: Key, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    pairs = zip(seed.tolist(), call.tolist(), strict=True)
    return torch.stack([draw(generator("row", s, c, stream)) for s, c in pairs])


def row_normal(seed: Tensor, call: Tensor, shape: Sequence[int], stream: Key = "x") -> Tensor:
    """Standard normal noise of each row, a function of its (seed, call) alone, whatever rows stand beside it.

    (R,), (R,) int64 -> (R, *shape) float32, on the CPU. ``stream`` separates several draws in one call.
    """
    return _rows(seed, call, stream, lambda g: torch.randn(*shape, generator=g))


def row_uniform(seed: Tensor, call: Tensor, shape: Sequence[int], stream: Key = "u") -> Tensor:
    """Uniform numbers in [0, 1) of each row in float64. (R,), (R,) int64 -> (R, *shape), on the CPU."""
    return _rows(seed, call, stream, lambda g: torch.rand(*shape, generator=g, dtype=torch.float64))


def row_integers(seed: Tensor, high: int, stream: Key = "label") -> Tensor:
    """One integer in [0, high) for each row. (R,) int64 -> (R,) int64, on the CPU."""
    return _rows(seed, torch.zeros_like(seed), stream, lambda g: torch.randint(high, (), generator=g))
