"""How often the alarm is right: forty GAN trainings with the default monitor, half of them made to collapse.

Ten of those lose part of their data half-way, ten have settings that are known to collapse. No seed here is one that
limits or recipes were set on. A run ends at its alarm. What it keeps then is measured by the data set's own rule, on
other samples than those the monitor saw.
Run after `kinfolk data prepare ring grid digits` and `kinfolk train digits/features`:
python pipelines/benchmarks/collapse_alarm.py [--processes 2] [--cases ring]
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from kinfolk import sampling
from kinfolk.contract import Batch, Model
from kinfolk.data.source import Source, keep
from kinfolk.metrics.alarm import Alarm
from kinfolk.tracking.connection import mlflow_environment
from kinfolk.training.lookout import look_every, watch_of
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_pipelines.figures_on_modes import on_modes
from kinfolk_pipelines.figures_on_samples import on_features
from kinfolk_pipelines.plan import Plan, plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings

FIRST_SEED = 300
SAMPLING_SEED, SAMPLES = 1, 1000
SHORT = ("training.samples=1000000",)  # by then a good run on a mixture keeps every mode


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe, and whether and how its runs are made to collapse."""

    name: str
    recipe: str
    seeds: int
    sets: tuple[str, ...] = ()
    kept_labels: int = 0  # classes that are left of the data in the second half of training; 0: all
    collapses: bool = True


CASES = (
    Case("ring, healthy", "ring/r3gan", 5, SHORT, collapses=False),
    Case("grid, healthy", "grid/r3gan", 5, SHORT, collapses=False),
    Case("digits, healthy", "digits/dcgan", 5, collapses=False),
    Case("digits, healthy", "digits/r3gan", 5, collapses=False),
    Case("ring, 4 of 8 modes left", "ring/r3gan", 4, SHORT, kept_labels=4),
    Case("grid, 12 of 25 modes left", "grid/r3gan", 3, SHORT, kept_labels=12),
    Case("digits, 5 of 10 classes left", "digits/dcgan", 3, ("model.conditional=false",), kept_labels=5),
    Case("ring, minimax", "ring/minimax-gan", 4, SHORT),
    Case("grid, minimax", "grid/minimax-gan", 3, SHORT),
    Case("digits, minimax at ten times the rate", "digits/minimax-gan", 3, ("model.generator_optimizer.lr=0.002",)),
)


@dataclass(frozen=True, slots=True)
class Losing:
    """A data set that keeps some classes alone from a sample on."""

    whole: Source
    left: Source
    since: int

    def batch(self, seed: int, start: int, stop: int) -> Batch:
        """As a source's."""
        return (self.left if start >= self.since else self.whole).batch(seed, start, stop)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: what it kept, and what the monitor said of it."""

    case: Case
    seed: int
    samples_seen: int
    kept: str
    alarm: Alarm | None

    @property
    def right(self) -> bool:
        """Whether it alarmed because it should, or did not because it should not."""
        return self.case.collapses == (self.alarm is not None)


def outcome(case: Case, seed: int) -> Outcome:
    """Train on one thread until the alarm or the end."""
    torch.set_num_threads(1)
    planned = plan(load_settings(), case.recipe, [*case.sets, "monitor={}", f"seed={seed}"])
    recipe, data = planned.recipe, planned.data.prepared
    whole = data.source("train")
    left = keep(whole, range(case.kept_labels)) if case.kept_labels else whole
    stream = Losing(whole, left, recipe.training.samples // 2)
    watch = watch_of(recipe, data, planned.features)
    assert watch is not None
    config = planned.family.config.model_validate(recipe.model)
    state = prepare(build(planned.family, config, data.spec, seed), recipe.training)
    alarm = None
    for report in train(state, stream, recipe.training, seed, look_every=look_every(recipe)):
        if report.kind == "look" and (alarm := watch.look(state, report.logs)):
            break
    return Outcome(case, seed, state.samples_seen, _kept(planned, state.served()), alarm)


def _kept(planned: Plan, model: Model) -> str:
    """What is left of the data, in words."""
    data = planned.data.prepared
    known = data.record.modes

    def draw(count: int) -> torch.Tensor:
        return sampling.sample(model, count, SAMPLING_SEED)

    if known is not None:
        return f"{on_modes(known, draw, model.spec, None)['modes']:.0f} of {data.spec.classes} modes"
    assert planned.features is not None
    found = on_features(planned.features, data.source("train"), data.source("test"), draw(SAMPLES), None)
    return f"coverage {found['coverage']:.2f}, fd_local {found['fd_local']:.2f}"


def row(each: Outcome) -> str:
    """A line of the table."""
    said = each.alarm.reason if each.alarm else "none"
    told = f"{'right' if each.right else 'WRONG'} | {said}"
    return f"| {each.case.name} | {each.seed} | {each.samples_seen:,} | {each.kept} | {told} |"


def summary(found: Sequence[Outcome]) -> str:
    """Recall and precision of the alarm."""
    alarmed = [each for each in found if each.alarm]
    true = sum(each.case.collapses for each in alarmed)
    collapsed = sum(each.case.collapses for each in found)
    recall = f"recall {true / collapsed:.3f} ({true} of {collapsed})" if collapsed else "no run was to collapse"
    return f"{recall}, precision {true / len(alarmed):.3f} ({true} of {len(alarmed)})" if alarmed else recall


@plain_mistakes
def main() -> None:
    """Train every run and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--cases", default="", help="those alone whose name holds this")
    given = parser.parse_args()
    apply_environment(mlflow_environment())
    runs = [(case, FIRST_SEED + seed) for case in CASES if given.cases in case.name for seed in range(case.seeds)]
    print("| run | seed | ended after | kept | alarm | its reason |\n|---|---|---|---|---|---|")
    found = []
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(outcome, *zip(*runs, strict=True)):
            found.append(each)
            print(row(each), flush=True)
    print(f"\n{summary(found)}")


if __name__ == "__main__":
    main()
