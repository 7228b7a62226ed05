"""Where each family's training stands against its limit, and what a user may gain or lose by varying it.

The limit is what this machine does in large matrix products of the recipe's precision; a step's operations are those of
its matrix products and convolutions, backward included, as torch counts them. The recipe and its variants take turns of
a few seconds each; ratios are medians over rounds, against the recipe in the same round.

Run: python pipelines/benchmarks/training_speed.py DATA_FOLDER [rounds] [threads] [recipe ...]
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kinfolk.config import Recipe, find_recipe, load_recipe, parse
from kinfolk.data.prepared import Prepared
from kinfolk.errors import ConfigError
from kinfolk.families import find_family
from kinfolk.memory import keep_freed_memory
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import TrainState, build, prepare
from kinfolk_pipelines.scripts import plain_mistakes

RECIPES = (
    "vae",
    "vq-vae",
    "dcgan",
    "edm",
    "ddpm",
    "pixelcnn",
    "pixelcnn-pp",
    "image-gpt",
    "glow",
    "ict",
    "energy",
    "energy-transformer",
)
TURN_S = 4.0
SIDE = 2048  # of the matrices the limit is measured with


class Operations(TorchDispatchMode):
    """Counts by torch's own formulas; FlopCounterMode cannot, where a loss takes gradients, as a penalty does."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and count it."""
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Training:
    """A recipe in training, untouched or varied."""

    def __init__(self, recipe: Recipe, data: Prepared, vary: Callable[[TrainState], None] = lambda _: None) -> None:
        self.plan, self.seed, self.source = recipe.training, recipe.seed, data.source("train")
        family = find_family(recipe.family)
        model = build(family, parse(family.config, recipe.model, recipe.name), data.spec, recipe.seed)
        self.state = prepare(model, self.plan)
        vary(self.state)
        self.step()

    def step(self) -> None:
        """One step over the next batch."""
        take_step(self.state, self.source, self.plan, self.seed, World())

    def rate(self) -> float:
        """Samples per second over one turn."""
        started, before = time.perf_counter(), self.state.samples_seen
        while time.perf_counter() - started < TURN_S:
            self.step()
        return (self.state.samples_seen - before) / (time.perf_counter() - started)

    def operations(self) -> float:
        """Floating-point operations a sample."""
        with Operations() as counted:
            self.step()
        return counted.total / self.plan.batch_size


def varied(recipe: Recipe, **training: object) -> Recipe:
    """``recipe`` with other training settings."""
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def channels_last(state: TrainState) -> None:
    """Weights of convolutions, and so what they give, with channels innermost."""
    state.model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(state: TrainState) -> None:
    """Each part of the model compiled by Inductor."""
    for part in state.model.module.children():
        part.compile()


def variants(recipe: Recipe, data: Prepared) -> dict[str, Callable[[], Training]]:
    """What is compared, the recipe itself first."""
    other = "float32" if recipe.training.precision == "bfloat16" else "bfloat16"
    return {
        "as it is": lambda: Training(recipe, data),
        "other precision": lambda: Training(varied(recipe, precision=other), data),
        "channels last": lambda: Training(recipe, data, channels_last),
        "batch x 4": lambda: Training(varied(recipe, batch_size=4 * recipe.training.batch_size), data),
        "compiled": lambda: Training(recipe, data, compiled),
    }


def peak(precision: str) -> float:
    """Operations per second in products of large matrices, the best of ten."""
    a = torch.randn(SIDE, SIDE, dtype=getattr(torch, precision))
    times = []
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * SIDE**3 / min(times)


def made(make: Callable[[], Training]) -> Training | str:
    """The training, or why it cannot be.

    Raises:
        ConfigError: the recipe is at fault.
    """
    try:
        return make()
    except ConfigError:
        raise
    except Exception as error:  # what a compiler raises is of no one kind
        return type(error).__name__


def measure(recipe: Recipe, data: Prepared, rounds: int, peaks: dict[str, float]) -> str:
    """One line of the table."""
    sides = {name: made(make) for name, make in variants(recipe, data).items()}
    running = {name: side for name, side in sides.items() if isinstance(side, Training)}
    rates = [{name: side.rate() for name, side in running.items()} for _ in range(rounds)]
    base = running["as it is"]
    speed = statistics.median(rate["as it is"] for rate in rates)
    used = base.operations() * speed / peaks[recipe.training.precision]
    cells = [f"mnist/{recipe.name}", recipe.training.precision, f"{speed:,.0f}", f"{base.operations() / 1e6:,.1f}"]
    cells.append(f"{used:.0%}")
    for name in list(sides)[1:]:
        if name in running:
            cells.append(f"{statistics.median(rate[name] / rate['as it is'] for rate in rates):.2f}")
        else:
            cells.append(str(sides[name]))
    return f"| {' | '.join(cells)} |"


@plain_mistakes
def main(folder: str, rounds: str = "3", threads: str = "2", *recipes: str) -> None:
    """Print the limit and a line for each recipe."""
    found = [find_recipe(f"mnist/{name}", Path(__file__).parents[1] / "recipes") for name in recipes or RECIPES]
    keep_freed_memory()  # as workers do
    torch.set_num_threads(int(threads))
    data = Prepared.open(Path(folder))
    peaks = {precision: peak(precision) for precision in ("float32", "bfloat16")}
    print(", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in peaks.items()), f"on {threads} threads\n")
    others = ("other precision", "channels last", "batch x 4", "compiled")
    print("| recipe | precision | samples/s | MFLOP a sample | of the limit |", " | ".join(others), "|")
    print("|---" * (5 + len(others)) + "|", flush=True)
    for path in found:
        print(measure(load_recipe(path), data, int(rounds), peaks), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
