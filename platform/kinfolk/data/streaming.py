"""Samples of a split that does not fit in memory: at most two shards are held, the second one loading meanwhile."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec
from kinfolk.data.order import permutation
from kinfolk.data.shards import read_shard
from kinfolk.data.source import Rows, check_range

Order = Callable[..., Tensor]  # (size, epoch[, shard]) -> (size,) int64, an order of [0, size)


class TwoShards:
    """The shard in use and the one after it, which a thread loads ahead."""

    def __init__(self, load: Callable[[int], Rows]) -> None:
        self._load = load
        self._held: dict[int, Future[Rows]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")

    def get(self, shard: int, following: int) -> Rows:
        """Rows of ``shard``, waiting for them if need be, while ``following`` starts loading; others are dropped."""
        kept = {key: future for key, future in self._held.items() if key in (shard, following)}
        for key in self._held.keys() - kept.keys():
            self._held.pop(key).cancel()
        for key in (shard, following):
            if key not in self._held:
                self._held[key] = self._thread.submit(self._load, key)
        return self._held[shard].result()


class ShardSource:
    """A split that is read shard by shard: shards are shuffled, and rows within each, anew every epoch."""

    def __init__(self, spec: DataSpec, files: Sequence[tuple[Path, int]]) -> None:
        """``files``: path and rows of each shard, in stored order."""
        self.spec = spec
        self._files = tuple(files)
        self._size = sum(rows for _, rows in files)
        self._shards = TwoShards(lambda shard: read_shard(self._files[shard][0], spec, self._files[shard][1]))

    def __len__(self) -> int:
        return self._size

    def batch(self, seed: int, start: int, stop: int) -> Batch:
        """The samples at positions [start, stop) of the endless shuffled stream that ``seed`` defines."""
        check_range(start, stop)
        return self._rows(start, stop, lambda size, *key: permutation(size, seed, *key)).to_batch(self.spec)

    def take(self, start: int, stop: int) -> Batch:
        """Samples [start, stop) in stored order."""
        check_range(start, stop, len(self))
        return self._rows(start, stop, lambda size, *_: torch.arange(size)).to_batch(self.spec)

    def _rows(self, start: int, stop: int, order: Order) -> Rows:
        parts = []
        for (epoch, shard, at), (_, following, _) in pairwise(self._visits(start, order)):
            rows = self._files[shard][1]
            if at + rows > start:
                index = order(rows, epoch, shard)[max(start - at, 0) : stop - at]
                parts.append(self._shards.get(shard, following)[index])
            if at + rows >= stop:
                return Rows.cat(parts)
        raise AssertionError("the stream has no end")

    def _visits(self, start: int, order: Order) -> Iterator[tuple[int, int, int]]:
        """Endless (epoch, shard, stream position of its first row), from the epoch that holds ``start``."""
        for epoch in count(start // len(self)):
            at = epoch * len(self)
            for shard in order(len(self._files), epoch).tolist():
                yield epoch, shard, at
                at += self._files[shard][1]
