"""The order in which samples are seen: an endless shuffled stream that is a pure function of (seed, position).

Epoch e holds positions [e*n, (e+1)*n) of the stream of n samples. Nothing here depends on the number of workers, so a
run resumes at any position and with any number of them.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from kinfolk.rng import Key, generator


@lru_cache(maxsize=4)  # the epoch at hand and the next, of two data sets
def permutation(size: int, *key: Key) -> Tensor:
    """A permutation of [0, size) that is a pure function of ``key``; shared, so never write to it. -> (size,) int64"""
    return torch.randperm(size, generator=generator("order", *key))


def epochs(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut stream positions [start, stop) at epoch borders: yields (epoch, first, last), first and last within it."""
    while start < stop:
        epoch, first = divmod(start, size)
        last = min(size, first + stop - start)
        yield epoch, first, last
        start += last - first


def positions(seed: int, start: int, stop: int, size: int) -> Tensor:
    """Which stored samples stand at stream positions [start, stop), at least one. -> (stop - start,) int64"""
    parts = [permutation(size, seed, epoch)[first:last] for epoch, first, last in epochs(start, stop, size)]
    return torch.cat(parts)
