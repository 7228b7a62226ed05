"""What the cache of autoregressive rows saves, and whether rounding in it ever flips a token.

The first table steps a cache along a line of pixels and, in turn, runs the network anew in the middle of that line: the
transformer over the tokens up to there, convolutions over whole pictures. A cached time is a 28th of the line's, as
convolutions do more where a line begins. Times are medians of so many turns. The second steps pictures alone and in a
batch of 64, races the tokens of both with the same noise, and counts the races that end differently.

Run: python pipelines/benchmarks/autoregressive_cache.py [rows] [turns] [pictures stepped alone] [races a token]
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kinfolk.config import parse
from kinfolk.contract import DataSpec, Model
from kinfolk.families import find_family
from kinfolk.training.state import build
from kinfolk_families.autoregressive.sample import race

SIDE = 28
GREY = DataSpec(kind="image", shape=(1, SIDE, SIDE), levels=256)
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "ImageGPT": {"network": {"kind": "transformer", "width": 64, "depth": 4, "heads": 4}},
    "gated PixelCNN": {
        "network": {"kind": "gated_pixelcnn", "channels": 32, "dilations": [1, 2, 4, 4, 2, 1]},
        "output": {"kind": "bernoulli"},
    },
    "PixelCNN++": {"network": {"kind": "pixelcnn_pp", "channels": [16, 32]}, "output": {"kind": "mixture"}},
}
LINES = (1, 7, 14, 20, 27)
BATCH = 64


def model_of(values: Mapping[str, Any]) -> Model:
    """An untrained model, its weights moved so that its probabilities differ."""
    family = find_family("autoregressive")
    model = build(family, parse(family.config, values, "model"), GREY, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.requires_grad_(False).eval().parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def seconds(run: Callable[[], Tensor]) -> float:
    """How long ``run`` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def steps(network: Any, tokens: Tensor, line: int, cache: Mapping[str, Tensor]) -> Tensor:
    """Outputs along a line, with the cache. -> (R, 28, O)"""
    positions = [torch.full((len(tokens),), t) for t in range(line * SIDE, (line + 1) * SIDE)]
    return torch.stack([network.step(tokens, position, None, cache) for position in positions], 1)


def anew(network: Any, tokens: Tensor, until: int) -> Tensor:
    """Outputs up to a position without a cache. -> (R, until or more, O)"""
    return network(tokens if hasattr(network, "shape") else tokens[:, :until], None)


def compare(network: Any, tokens: Tensor, turns: int) -> list[tuple[int, float, float, float]]:
    """Along some lines: milliseconds a position with the cache and without, and the largest difference of outputs."""
    cache, found = network.cache(len(tokens)), []
    for line in range(SIDE):
        cached, uncached, before = [], [], {key: value.clone() for key, value in cache.items()}
        outputs = steps(network, tokens, line, cache)
        if line not in LINES:
            continue
        first, middle = line * SIDE, line * SIDE + SIDE // 2
        for _ in range(turns):
            copy = {key: value.clone() for key, value in before.items()}
            cached.append(seconds(partial(steps, network, tokens, line, copy)) / SIDE)
            uncached.append(seconds(partial(anew, network, tokens, middle + 1)))
        difference = float((outputs - anew(network, tokens, first + SIDE)[:, first : first + SIDE]).abs().max())
        found.append((line, 1e3 * statistics.median(cached), 1e3 * statistics.median(uncached), difference))
    return found


def choices(model: Model, tokens: Tensor) -> Tensor:
    """Log-probabilities of what could stand at each position, with the cache. -> (R, 784, V)"""
    module: Any = model.module
    cache = module.network.cache(len(tokens))
    outputs = torch.cat([steps(module.network, tokens, line, cache) for line in range(SIDE)], 1)
    return torch.stack(
        [module.distribution.choices(row, chosen, 0) for row, chosen in zip(outputs, tokens, strict=True)]
    )


def flips(model: Model, pictures: int, races: int) -> tuple[int, int]:
    """Races of a token that end differently alone and in a batch, and how many there were."""
    tokens = random_tokens(model, BATCH)
    together = choices(model, tokens)[:pictures]
    alone = torch.cat([choices(model, tokens[row : row + 1]) for row in range(pictures)])
    generator, differing = torch.Generator().manual_seed(2), 0
    for _ in range(races):
        uniform = torch.rand(alone.shape, generator=generator, dtype=torch.float64)
        won, lost = (race(log_probs.flatten(0, 1), uniform.flatten(0, 1)) for log_probs in (alone, together))
        differing += int((won != lost).sum())
    return differing, races * pictures * SIDE**2


def random_tokens(model: Model, rows: int) -> Tensor:
    """Tokens to stand before a position. -> (R, 784, 1)"""
    generator = torch.Generator().manual_seed(1)
    tokeniser: Any = model.module.tokeniser
    return torch.randint(tokeniser.vocabulary, (rows, SIDE**2, 1), generator=generator)


@torch.no_grad()
def main(rows: int = 16, turns: int = 5, pictures: int = 16, races: int = 100) -> None:
    """Measure and print both tables."""
    torch.set_num_threads(1)
    models = {name: model_of(values) for name, values in SYSTEMS.items()}
    print(f"28x28, {rows} rows, one thread, medians of {turns} interleaved turns\n")
    print("| network | line | cached, ms a position | anew, ms a position | ratio | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, model in models.items():
        measured = compare(model.module.network, random_tokens(model, rows), turns)
        mean = [sum(row[column] for row in measured) / len(measured) for column in (1, 2)]
        summary: tuple[Any, ...] = ("mean", *mean, max(row[3] for row in measured))
        for line, cached, uncached, difference in [*measured, summary]:
            ratio = uncached / cached
            print(f"| {name} | {line} | {cached:.2f} | {uncached:.1f} | {ratio:.0f} | {difference:.1e} |")
    print(f"\n{pictures} pictures alone and in a batch of {BATCH}, {races} races a token\n")
    print("| network | races that end differently | of | rate |\n|---|---|---|---|")
    for name, model in models.items():
        differing, compared = flips(model, pictures, races)
        print(f"| {name} | {differing} | {compared:,} | {differing / compared:.1e} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
