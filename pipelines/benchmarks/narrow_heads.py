"""Attention of narrow heads on a CPU by plain products, in parts, beside torch's own kernel.

In a thread, as a training under Ray Train is. Both take turns; ratios are medians over pairs.

Run: python pipelines/benchmarks/narrow_heads.py [threads] [pairs] [keep: 1 to keep freed memory, as workers do]
"""

import statistics
import sys
import threading
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kinfolk.memory import keep_freed_memory
from kinfolk_families._shared.transformer import attend

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = ((128, 16, 8), (32, 49, 8), (128, 49, 8), (16, 196, 8), (64, 196, 8))  # rows, tokens, width of each of 8 heads


def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What ``attend`` would otherwise call. (B, heads, K, T) each -> (B, heads, K, T)"""
    return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT


def seconds(attention: Attention, qkv: Tensor, given: Tensor | None) -> float:
    """One pass, and with ``given`` gradients of what it gives, the pass back."""
    started = time.perf_counter()
    with torch.set_grad_enabled(given is not None):
        mixed = attention(*qkv.permute(2, 0, 3, 4, 1))
    if given is not None:
        mixed.backward(given)
    return time.perf_counter() - started


def measure(threads: int, pairs: int) -> None:
    """Print a line for each shape."""
    torch.set_num_threads(threads)
    print("| rows x tokens x head width | torch's, forward, ms | ratio | and back, ms | ratio |\n|---|---|---|---|---|")
    for rows, tokens, width in SHAPES:
        qkv = torch.randn(rows, tokens, 3, 8, width, requires_grad=True)
        cells = []
        for given in (None, torch.randn(rows, 8, width, tokens)):
            times = [(seconds(torchs, qkv, given), seconds(attend, qkv, given)) for _ in range(pairs + 1)][1:]
            cells.append(f"{1e3 * statistics.median(theirs for theirs, _ in times):.2f}")
            cells.append(f"{statistics.median(ours / theirs for theirs, ours in times):.2f}")
        print(f"| {rows} x {tokens} x {width} | {' | '.join(cells)} |", flush=True)


def main(threads: int = 2, pairs: int = 15, keep: int = 1) -> None:
    if keep:
        keep_freed_memory()
    thread = threading.Thread(target=measure, args=(threads, pairs))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
