"""What the platform costs: a hand-written PyTorch loop, the training loop alone, and the loop under Ray Train.

All three train the same network with the same batch size and optimiser, average of weights included, with one thread.
The sides of a pair run in turn; under Ray Train a run counts from before its first step to its last report, with its
logs, checkpoints and sample grids, of which a last one is always made. Ratios are medians over pairs.

Run: python pipelines/benchmarks/loop_overhead.py [pairs] [steps] [pairs on Ray] [their steps]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from kinfolk.cluster import connect
from kinfolk.config import Recipe, Training, load_recipe, parse
from kinfolk.contract import Batch, Model, Progress
from kinfolk.data.catalogue import prepare as prepare_data
from kinfolk.data.prepared import Prepared
from kinfolk.families import find_family
from kinfolk.rng import generator
from kinfolk.training.loop import build, prepare, train

RECIPE = Path(__file__).parents[1] / "recipes" / "digits" / "edm.yaml"
SEED = 0


def job_recipe(steps: int) -> Recipe:
    """The recipe for so many steps, with the logs, checkpoints and sample grids its whole length would have by then."""
    recipe = load_recipe(RECIPE)
    whole = recipe.training
    plan = whole.model_dump() | {
        "samples": steps * whole.batch_size,
        "log_every_samples": whole.every(whole.log_every_samples, 100),
        "checkpoint_every_samples": whole.every(whole.checkpoint_every_samples, 10),
        "preview_every_samples": whole.every(whole.preview_every_samples, 5),
    }
    return recipe.model_copy(update={"training": Training(**plan)})


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
    x, label = source.rows.x, source.rows.label
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
    """Samples per second of ``train`` with nobody listening."""
    state = prepare(fresh(recipe, data), recipe.training)
    stream = data.source("train")
    started = time.perf_counter()
    for _ in train(state, stream, recipe.training, SEED):
        pass
    return recipe.training.samples / (time.perf_counter() - started)


def under_ray(recipe: Recipe, data: Prepared, name: str, storage: str) -> float:
    """Samples per second in a Ray Train worker, from before its first step to its last report."""
    from kinfolk.training.launch import launch
    from kinfolk.training.worker import Job

    times: list[float] = []
    launch(Job(recipe, data.path), name=name, storage=storage, listener=lambda report: times.append(report["at_s"]))
    return recipe.training.samples / (times[-1] - times[0])


def row(name: str, ours: list[float], theirs: list[float]) -> None:
    """Print medians of both sides and of their ratio pair by pair."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"| {name} | {statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | "
        f"{statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
    )


def main(pairs: int = 20, steps: int = 50, ray_pairs: int = 10, ray_steps: int = 300) -> None:
    """Measure both comparisons and print a table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data("digits", Path(folder) / "digits")
        recipe = job_recipe(steps)
        by_hand(recipe, data), bare_loop(recipe, data)  # warm up
        pairs_alone = [(bare_loop(recipe, data), by_hand(recipe, data)) for _ in range(pairs)]
        print(
            f"digits/edm, batch {recipe.training.batch_size}, {steps} steps a run, {pairs} pairs, 1 thread, samples/s\n"
        )
        print("| A against B | A | B | median A/B | range |\n|---|---|---|---|---|")
        row("bare loop against hand-written loop", *map(list, zip(*pairs_alone, strict=True)))
        recipe = job_recipe(ray_steps)
        connect(None, Path(folder) / "state", cpus=2)
        storage = str(Path(folder) / "runs")
        pairs_on_ray = [
            (under_ray(recipe, data, f"pair{pair}", storage), bare_loop(recipe, data)) for pair in range(ray_pairs)
        ]
        row("loop under Ray Train against bare loop", *map(list, zip(*pairs_on_ray, strict=True)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
