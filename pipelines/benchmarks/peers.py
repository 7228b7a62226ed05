"""Kinfolk beside libraries for one family each: like networks, equal batch and threads, the sides of a pair in turn.

Peers: diffusers' UNet2DModel with the DDPM loss and its DDIM loop, pythae's MLP VAE, normflows' Glow. Each side has a
process of its own, set up as its users get it: ours keeps the memory it frees, the peer's does as the C library does.
Both train on 28x28 noise levels drawn once, without an average of weights, ours by fused Adam,
the peer by plain torch.optim.Adam; ratios are medians over pairs. The networks are equal, but that ours
has 1.5 % fewer parameters in Glow and 18 residual blocks in the U-Net (3 down, 3 up), the peer's 17 (2 down, 3 up, 2
between).

Needs the extra: pip install -c constraints.txt -e ".[bench]"
Run: python pipelines/benchmarks/peers.py [pairs] [threads] [peers keep: 1 for peers that keep freed memory as well]
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk import sampling
from kinfolk.config import Training, parse
from kinfolk.contract import DataSpec, Model
from kinfolk.data.source import TensorSource
from kinfolk.families import find_family
from kinfolk.memory import keep_freed_memory
from kinfolk.metrics.speed import parameter_count
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare

SPEC = DataSpec(kind="image", shape=(1, 28, 28), levels=256, data_std=0.6162)
ROWS = 4096
TURN_S = 6.0
VAE = {
    "network": {"kind": "mlp", "width": 512, "depth": 1},
    "latent": 16,
    "objective": {"kind": "elbo", "decoder": {"kind": "bernoulli", "binarise": False}},
}
GLOW = {"flow": {"kind": "glow", "levels": 2, "steps": 8, "width": 64}}
UNET = {
    "network": {"kind": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 3, "attention": 14, "heads": 8},
    "preconditioning": {"kind": "ddpm"},
    "sampler": {"solver": "ddim", "steps": 20},
}


@dataclass(frozen=True, slots=True)
class Side:
    """One library's network: how many steps it takes in a turn, and how it draws."""

    parameters: int
    step: Callable[[], object]
    draw: Callable[[int], object] | None = None


def pictures() -> Tensor:
    """(N, 1, 28, 28) uint8, as sparse as handwriting."""
    noise = torch.rand(ROWS, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return torch.where(noise > 0.8, noise * 255, torch.zeros(())).to(torch.uint8)


def ours(family: str, config: dict[str, Any], batch_size: int) -> Side:
    """The training loop's own step, and the sampler every command uses."""
    known = find_family(family)
    model = build(known, parse(known.config, config, "model"), SPEC, seed=0)
    plan = Training(samples=10**9, batch_size=batch_size)
    state, source = prepare(model, plan), TensorSource(SPEC, pictures())
    draws = "sample" in model.tasks.starts
    return Side(
        parameter_count(model.module).total,
        lambda: take_step(state, source, plan, 0, World()),
        (lambda n: drawn(model, n)) if draws else None,
    )


def drawn(model: Model, n: int) -> Tensor:
    """Samples of a model in training, without its gradients."""
    with torch.no_grad():
        return sampling.sample(model, n)


def batches(batch_size: int) -> Iterator[Tensor]:
    """Shuffled batches in [-1, 1] for ever."""
    x = pictures()
    while True:
        for index in torch.randperm(len(x)).split(batch_size):
            if len(index) == batch_size:
                yield x[index].float() / 127.5 - 1


def by_hand(module: nn.Module, loss: Callable[[Tensor], Tensor], batch_size: int) -> Callable[[], None]:
    """The step of a plain loop around a peer's network."""
    optimizer, stream = torch.optim.Adam(module.parameters(), 1e-4), batches(batch_size)

    def step() -> None:
        optimizer.zero_grad()
        loss(next(stream)).backward()
        optimizer.step()

    return step


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def pythae_vae(batch_size: int) -> Side:
    from pythae import models

    model = models.VAE(models.VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce"))
    return Side(count(model), by_hand(model, lambda x: model({"data": (x + 1) / 2}).loss, batch_size))


def normflows_glow(batch_size: int) -> Side:
    import normflows

    levels, steps, hidden = 2, 8, 64
    bases, merges, flows = [], [], []
    for level in range(levels):
        channels, side = 2 ** (levels + 1 - level), 28 // 2 ** (levels - level)
        blocks = [normflows.flows.GlowBlock(channels, hidden, split_mode="channel") for _ in range(steps)]
        flows.append([*blocks, normflows.flows.Squeeze()])
        if level:
            merges.append(normflows.flows.Merge())
            channels //= 2
        bases.append(normflows.distributions.DiagGaussian((channels, side, side)))
    model = normflows.MultiscaleFlow(bases, flows, merges)
    with torch.no_grad():
        model.forward_kld(next(batches(batch_size)))  # ActNorm looks at its first batch
    draw = torch.no_grad()(model.sample)
    return Side(
        count(model), by_hand(model, lambda x: model.forward_kld(x + torch.rand_like(x) / 127.5), batch_size), draw
    )


def diffusers_unet(batch_size: int) -> Side:
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    noising, stepping = DDPMScheduler(), DDIMScheduler()

    def loss(x: Tensor) -> Tensor:
        noise, time_step = torch.randn_like(x), torch.randint(1000, (len(x),))
        predicted = model(noising.add_noise(x, noise, time_step), time_step).sample
        return (predicted - noise).square().mean()

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        stepping.set_timesteps(20)
        x = torch.randn(n, 1, 28, 28)
        for time_step in stepping.timesteps:
            x = stepping.step(model(x, time_step).sample, time_step, x).prev_sample
        return x

    return Side(count(model), by_hand(model, loss, batch_size), draw)


def rate(work: Callable[[], object], samples: int, seconds: float) -> float:
    """Samples per second of ``work``, repeated for at least so long after one warm-up."""
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        done += samples
    return done / (time.perf_counter() - started)


def serve_turns(make: Callable[[], Side], threads: int, keep: bool, line: Connection) -> None:
    """One side in its own process: says what it is, then measures the turns it is asked for."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if keep:
        keep_freed_memory()
    side = make()
    line.send((side.parameters, side.draw is not None))
    with suppress(EOFError):  # nobody asks any more
        while True:
            work, samples = line.recv()
            if work == "training":
                line.send(rate(side.step, samples, TURN_S))
            else:
                assert side.draw is not None
                line.send(rate(partial(side.draw, samples), samples, TURN_S))


class Rival:
    """A side in another process: what one sets or keeps does nothing for the other."""

    def __init__(self, make: Callable[[], Side], threads: int, keep: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, there = context.Pipe()
        self.process = context.Process(target=serve_turns, args=(make, threads, keep, there), daemon=True)
        self.process.start()
        there.close()  # so that a process that dies is noticed
        self.parameters, self.draws = self.line.recv()

    def turn(self, work: str, samples: int) -> float:
        """Samples per second over one turn."""
        self.line.send((work, samples))
        return float(self.line.recv())


def compare(work: str, name: str, samples: int, sides: tuple[Rival, Rival], pairs: int) -> None:
    """One line of the table; the sides take turns, the first of a pair alternating."""
    measured = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 else (1, 0)
        rates = {side: sides[side].turn(work, samples) for side in order}
        measured.append((rates[0], rates[1]))
    ratios = sorted(x / y for x, y in measured)
    left, right = (statistics.median(side) for side in zip(*measured, strict=True))
    print(
        f"| {work}, {name} | {left:,.1f} | {right:,.1f} | {statistics.median(ratios):.2f} | "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} |",
        flush=True,
    )


def main(pairs: int = 3, threads: int = 2, peers_keep: int = 0) -> None:
    print(f"28x28, {threads} threads, {pairs} pairs, samples/s\n")
    print("| what | ours | peer | median ratio | range |\n|---|---|---|---|---|")
    cases: list[tuple[str, str, dict[str, Any], Callable[[int], Side], int, int]] = [
        ("pythae MLP VAE 784-512-16", "autoencoder", VAE, pythae_vae, 128, 0),
        ("normflows Glow L2 K8 hidden 64", "flow", GLOW, normflows_glow, 64, 256),
        ("diffusers UNet2DModel 32-64-64", "diffusion", UNET, diffusers_unet, 32, 16),
    ]
    for name, family, config, peer, batch_size, rows in cases:
        mine = Rival(partial(ours, family, config, batch_size), threads, keep=True)
        theirs = Rival(partial(peer, batch_size), threads, keep=bool(peers_keep))
        sizes = f"{mine.parameters:,} and {theirs.parameters:,} parameters"
        compare("training", f"{name}, batch {batch_size} ({sizes})", batch_size, (mine, theirs), pairs)
        if mine.draws and theirs.draws:
            compare("sampling", f"{name}, {rows} rows", rows, (mine, theirs), pairs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
