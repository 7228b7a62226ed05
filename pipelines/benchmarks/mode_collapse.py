"""Recipes on a mixture whose modes are known, over seeds: modes kept, quality, spread, reverse KL.

Each seed is trained as the recipe says, alone in a process of one thread, and scored by the rule of Lin et al., 2018,
https://arxiv.org/abs/1712.04086, section 4.1: 2,500 samples, of high quality within 3 standard deviations of a mode.
Run after `kinfolk data prepare`: python pipelines/benchmarks/mode_collapse.py ring/r3gan ring/minimax-gan [--seeds 10]
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from kinfolk import sampling
from kinfolk.contract import Model
from kinfolk.data.modes import Mixture
from kinfolk.errors import DataError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_pipelines.figures_on_modes import on_modes
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings

SAMPLING_SEED = 1
HEAD = "| seed | modes | high quality | spread | reverse KL | s | good |\n|---|---|---|---|---|---|---|"
HIGH_QUALITY, REVERSE_KL = 0.95, 0.05  # what a good seed keeps at least, and has at most


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed of a recipe, trained and scored."""

    seed: int
    all_modes: int
    modes: int
    high_quality: float
    spread: float  # within a mode, in shares of the data's; 0 where no sample is of high quality
    reverse_kl: float  # infinite there
    train_s: float

    @property
    def good(self) -> bool:
        """Whether the seed kept every mode, evenly, with samples of high quality."""
        whole = self.modes == self.all_modes
        return whole and self.high_quality >= HIGH_QUALITY and self.reverse_kl <= REVERSE_KL


def outcome(recipe_name: str, sets: Sequence[str], seed: int) -> Outcome:
    """Train and score, on one thread."""
    torch.set_num_threads(1)
    planned = plan(load_settings(), recipe_name, [*sets, f"seed={seed}"])
    recipe, data = planned.recipe, planned.data.prepared
    if not isinstance(known := data.record.modes, Mixture):
        raise DataError(f"{recipe_name} is for {data.record.name}, which is no mixture. Take a recipe on ring or grid.")
    config = planned.family.config.model_validate(recipe.model)
    state = prepare(build(planned.family, config, data.spec, seed), recipe.training)
    started = time.perf_counter()
    for _ in train(state, data.source("train"), recipe.training, seed):
        pass
    seconds = time.perf_counter() - started
    return _scored(state.served(), known, seed, seconds)


def _scored(model: Model, known: Mixture, seed: int, seconds: float) -> Outcome:
    found = on_modes(known, lambda count: sampling.sample(model, count, SAMPLING_SEED), model.spec, None)
    spread, kl = found.get("mode_spread", 0.0), found.get("kl_to_uniform", float("inf"))
    return Outcome(seed, len(known.centres), int(found["modes"]), found["high_quality"], spread, kl, seconds)


def row(each: Outcome) -> str:
    """A line of the table."""
    kept = f"{each.modes} of {each.all_modes}"
    figures = f"{each.high_quality:.1%} | {each.spread:.2f} | {each.reverse_kl:.3f} | {each.train_s:.0f}"
    return f"| {each.seed} | {kept} | {figures} | {'yes' if each.good else 'no'} |"


def summary(found: Sequence[Outcome]) -> str:
    """Means over seeds, the longest training, and how many seeds were good."""
    figures = zip(*((o.modes, o.high_quality, o.spread, o.reverse_kl) for o in found), strict=True)
    modes, quality, spread, kl = (statistics.mean(column) for column in figures)
    longest, good = max(o.train_s for o in found), sum(o.good for o in found)
    told = f"{modes:.1f} | {quality:.1%} | {spread:.2f} | {kl:.3f} | {longest:.0f} at most"
    return f"| mean | {told} | {good} of {len(found)} |"


@plain_mistakes
def main() -> None:
    """Measure every recipe named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="e.g. ring/r3gan")
    parser.add_argument("--seeds", type=int, default=10, help="0 to one less")
    parser.add_argument("--processes", type=int, default=2, help="seeds at a time")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, e.g. model.latent=4")
    given = parser.parse_args()
    apply_environment(mlflow_environment())
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        for recipe in given.recipes:
            print(f"\n{recipe}\n\n{HEAD}")
            seeds = range(given.seeds)
            found = []
            for each in pool.map(outcome, [recipe] * len(seeds), [given.set] * len(seeds), seeds):
                found.append(each)
                print(row(each), flush=True)
            print(summary(found), flush=True)


if __name__ == "__main__":
    main()
