"""What the platform costs: a hand-written PyTorch loop, the training loop alone, and the loop under Ray Train.

All three train the same network with the same batch size and average of weights, with one thread; the platform's Adam
is the fused one, the hand-written loop has torch's default. The first two take turns in this process. Then a Ray Train
worker trains the whole recipe twice over, in turns of two logs: once with its logs, checkpoints and grids on their
way to the driver, once with nobody listening; in one process, as the speed of a shared machine drifts by more than what
is looked for. Ratios are medians over pairs.

Run: python pipelines/benchmarks/loop_overhead.py [pairs] [their steps] [turns a pair on Ray]
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from kinfolk.cluster import connect
from kinfolk.config import Recipe, load_recipe, parse
from kinfolk.contract import Batch, Model, Progress
from kinfolk.data.catalogue import prepare as prepare_data
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import TensorSource
from kinfolk.families import find_family
from kinfolk.memory import keep_freed_memory
from kinfolk.rng import generator
from kinfolk.step import World
from kinfolk.training.loop import Report, train
from kinfolk.training.mailbox import Mailbox
from kinfolk.training.state import build, prepare
from kinfolk.training.worker import Job, Reporter

RECIPE = Path(__file__).parents[1] / "recipes" / "digits" / "edm.yaml"
SEED = 0
LOGS_A_TURN = 2


def fresh(recipe: Recipe, data: Prepared) -> Model:
    """The recipe's untrained model."""
    family = find_family(recipe.family)
    return build(family, parse(family.config, recipe.model, "model"), data.spec, SEED)


def by_hand(recipe: Recipe, data: Prepared) -> float:
    """Samples per second of the loop a researcher would write."""
    model, source = fresh(recipe, data), data.source("train")
    (phase,) = model.family.phases(model.module)
    config, batch_size = phase.optimizer, recipe.training.batch_size
    optimizer = torch.optim.AdamW(model.module.parameters(), config.lr, config.betas, config.eps, config.weight_decay)
    average = [p.detach().clone() for p in model.module.parameters()]
    assert isinstance(source, TensorSource)
    x, label = source.rows.x, source.rows.label
    assert label is not None
    steps = recipe.training.samples // batch_size
    order = torch.cat([torch.randperm(len(x)) for _ in range(recipe.training.samples // len(x) + 1)])
    started = time.perf_counter()
    for step in range(steps):
        index = order[step * batch_size : (step + 1) * batch_size]
        batch = Batch(data.spec.from_levels(x[index]), label[index])
        optimizer.zero_grad()
        progress = Progress(step * batch_size, step, generator(SEED, step))
        loss = phase.loss(batch, progress).value
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.module.parameters()), 0.001)
    return recipe.training.samples / (time.perf_counter() - started)


def bare_loop(recipe: Recipe, data: Prepared) -> float:
    """Samples per second of ``train`` with nobody listening to its reports."""
    state = prepare(fresh(recipe, data), recipe.training)
    stream = data.source("train")
    started = time.perf_counter()
    for _ in train(state, stream, recipe.training, SEED):
        pass
    return recipe.training.samples / (time.perf_counter() - started)


def turns_on_ray(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's train loop: the reported loop and the bare one in turns, after one to warm up. -> seconds of both"""
    keep_freed_memory()
    torch.set_num_threads(1)
    job, plan = config["job"], config["job"].recipe.training
    data = Prepared.open(job.data)
    states = [prepare(fresh(job.recipe, data), plan) for _ in range(2)]
    sides = [train(state, data.source("train"), plan, SEED) for state in states]
    samples = LOGS_A_TURN * plan.every(plan.log_every_samples, 100)
    turns: list[list[float]] = []
    with Reporter(job, states[0], World(), config["mailbox"]) as reporter:
        for until in (*range(samples, plan.samples, samples), plan.samples + 1):
            order = (0, 1) if len(turns) % 2 else (1, 0)
            seconds = {side: follow(sides[side], (reporter, None)[side], until) for side in order}
            turns.append([seconds[0], seconds[1]])
    return {"seconds": turns[1:]}


def follow(reports: Iterator[Report], reporter: Reporter | None, until: int) -> float:
    """Train to the first log after ``until`` samples, or the end, and tell the driver as a worker does. -> seconds"""
    started = time.perf_counter()
    for report in reports:
        if reporter is not None:
            reporter.handle(report)
        if report.kind == "log":
            if reporter is not None:
                reporter.stop_wanted()
            if report.samples_seen >= until:
                break
    if reporter is not None:
        reporter.wait()
    return time.perf_counter() - started


def on_ray(recipe: Recipe, data: Prepared, storage: str) -> list[tuple[float, float]]:
    """Seconds of (the loop under Ray Train, the bare loop in the same process) in each turn of one training."""
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = TorchTrainer(
        turns_on_ray,
        train_loop_config={"job": Job(recipe, data.path), "mailbox": mailbox},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="overhead", storage_path=storage),
    )
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(trainer.fit()))
    thread.start()
    while thread.is_alive():  # the driver listens, as it does in a training
        thread.join(0.5)
        ray.get(mailbox.drain.remote())
    return box[0].return_value["seconds"]


def row(name: str, pairs: Sequence[Sequence[float]]) -> None:
    """Print medians of both sides and of their ratio pair by pair."""
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"| {name} | {ours:,.0f} | {theirs:,.0f} | {statistics.median(ratios):.3f} | "
        f"{min(ratios):.3f} to {max(ratios):.3f} |",
        flush=True,
    )


def main(pairs: int = 20, steps: int = 50, turns_a_pair: int = 7) -> None:
    """Measure both comparisons and print a table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data("digits", Path(folder) / "digits")
        whole = load_recipe(RECIPE)
        plan = whole.training.model_copy(update={"samples": steps * whole.training.batch_size})
        recipe = whole.model_copy(update={"training": plan})
        by_hand(recipe, data), bare_loop(recipe, data)  # warm up
        alone = [(bare_loop(recipe, data), by_hand(recipe, data)) for _ in range(pairs)]
        print("digits/edm, 1 thread, samples/s\n\n| A against B | A | B | median A/B | range |\n|---|---|---|---|---|")
        row(f"bare loop against hand-written loop, {pairs} pairs", alone)
        connect(None, Path(folder) / "state", cpus=2)
        turns = on_ray(whole, data, str(Path(folder) / "runs"))
        samples = turns_a_pair * LOGS_A_TURN * whole.training.samples / 100
        groups = [
            turns[start : start + turns_a_pair] for start in range(0, len(turns) - turns_a_pair + 1, turns_a_pair)
        ]
        rates = [[samples / sum(side) for side in zip(*group, strict=True)] for group in groups]
        row(f"loop under Ray Train against bare loop, {len(groups)} pairs", rates)
        ours, theirs = (sum(side) for side in zip(*turns, strict=True))
        print(f"\nThe recipe after its first turn under Ray Train: {theirs / ours:.3f} of the bare loop's samples/s.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
