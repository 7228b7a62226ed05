"""What a training run shows on a terminal, and in a log."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

_LINES_PER_RUN = 10  # without a terminal


def losses(logs: Mapping[str, float]) -> str:
    """The losses among ``logs`` in one short line."""
    named = [(name.removesuffix("/loss"), value) for name, value in logs.items() if name.endswith("/loss")]
    return "  ".join(f"{name} {value:.4g}" for name, value in named)


class Display:
    """A progress bar with samples/s, time left and losses; on anything but a terminal a few plain lines."""

    def __init__(self, console: Console, name: str, samples: int, bar: Progress | None) -> None:
        self._console, self._name, self._samples, self._bar = console, name, samples, bar
        self._task = bar.add_task(name, total=samples, rate="", losses="starting workers") if bar else None
        self._next_line = samples / _LINES_PER_RUN

    def show(self, report: Mapping[str, Any]) -> None:
        """One report of the training loop."""
        seen, logs = report["samples_seen"], report.get("logs", {})
        if report["kind"] == "start":
            self._started(seen, report["problems"])
        elif report["kind"] == "rollback":
            self._console.print(f"{self._name}: the loss was not finite; back to {seen} samples, at a lower rate")
        elif report["kind"] == "alarm":
            self._console.print(f"{self._name}: ALARM. {report['reason']}")
        elif report["kind"] == "change":
            self._console.print(
                f"{self._name}: back to {seen} samples, and on with change {report['number']} of its monitor"
            )
        elif report["kind"] == "log":
            rate = f"{logs.get('samples_per_second', 0):,.0f} samples/s"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=seen, rate=rate, losses=losses(logs))
            elif seen >= self._next_line:
                self._next_line += self._samples / _LINES_PER_RUN
                self._console.print(f"{self._name}: {seen / self._samples:4.0%}  {rate}  {losses(logs)}")

    def _started(self, seen: int, problems: list[str]) -> None:
        self._next_line = seen + self._samples / _LINES_PER_RUN
        for problem in problems:
            self._console.print(f"{self._name}: a damaged checkpoint was passed over. {problem}")
        if seen:
            self._console.print(f"{self._name}: going on from {seen} samples")


@contextmanager
def display(console: Console, name: str, samples: int) -> Iterator[Display]:
    """A display for one run; the bar disappears when the block ends."""
    if not console.is_terminal:
        yield Display(console, name, samples, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[losses]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Display(console, name, samples, bar)


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows (what, done, total) as a bar; silent without a terminal."""
    if not console.is_terminal:
        yield lambda *_: None
        return
    with Progress(console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def count(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield count
