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


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The point ``weight`` of the way from ``a`` to ``b`` along a great arc, the length changing evenly.

    Between two draws of Gaussian noise every point is as long as noise is. (R, *), (R, *), (R,) in [0, 1] -> (R, *)
    Source: Shoemake, 1985; White, 2016, https://arxiv.org/abs/1609.04468.
    """
    u, v = (x.flatten(1).double() for x in (a, b))
    length_u, length_v = (x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (u, v))
    cosine = (u * v).sum(1, keepdim=True) / (length_u * length_v)
    angle = cosine.clamp(-1, 1).arccos()
    w = weight.double().reshape(-1, 1)
    near = angle.sin().abs() < 1e-6  # no arc between parallel vectors
    sine = torch.where(near, 1.0, angle.sin())
    share_u = torch.where(near, 1 - w, ((1 - w) * angle).sin() / sine)
    share_v = torch.where(near, w, (w * angle).sin() / sine)
    length = torch.lerp(length_u, length_v, w)
    return (length * (share_u * u / length_u + share_v * v / length_v)).to(a.dtype).reshape(a.shape)


def row_between(seed: Tensor, seed_to: Tensor | None, weight: Tensor | None, shape: Sequence[int]) -> Tensor:
    """First noise of each row: its own, or on the arc from its own to ``seed_to``'s. -> (R, *shape) on the CPU"""
    zero = torch.zeros_like(seed)
    noise = row_normal(seed, zero, shape)
    if seed_to is None or weight is None:
        return noise
    return slerp(noise, row_normal(seed_to, zero, shape), weight)
