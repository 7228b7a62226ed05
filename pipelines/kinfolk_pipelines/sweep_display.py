"""What a sweep shows while it runs: a live table on a terminal, a line for each end of a trial elsewhere."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kinfolk.tuning.best import best
from kinfolk.tuning.ledger import ENDED, Ledger, Trial
from kinfolk_pipelines.report import number
from kinfolk_pipelines.sweep_plan import SweepPlan

_ERROR_CHARACTERS = 80
_ROWS = 24  # of the live table


def shown_settings(settings: Mapping[str, Any]) -> str:
    """Settings on one line, by the last parts of their keys."""
    return "  ".join(f"{_short(key)}={_value(value)}" for key, value in settings.items())


def _short(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[1:] if len(parts) > 1 else parts)


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else json.dumps(value).strip('"')


def judged(planned: SweepPlan, trial: Trial) -> str:
    """The objective of the last report, in brackets where a constraint is broken."""
    value = trial.figures.get(planned.sweep.objective.metric)
    if value is None:
        return ""
    return number(value) if planned.sweep.feasible(trial.figures) else f"({number(value)})"


def line(planned: SweepPlan, trial: Trial) -> str:
    """One trial for a log."""
    share = f"{trial.samples_seen / planned.pace.samples:.0%}"
    metric = planned.sweep.objective.metric
    said = f"{metric} {judged(planned, trial)}" if trial.reports else "no report"
    error = f": {trial.error[:_ERROR_CHARACTERS]}" if trial.error else ""
    return f"trial {trial.id} {trial.status} at {share}  {said}  {shown_settings(trial.settings)}{error}"


def table(planned: SweepPlan, ledger: Ledger) -> Table:
    """The trials so far: those under way, then the best that ended."""
    leader = best(planned.sweep, (trial for trial in ledger.trials.values() if not trial.repeats))
    ended = sum(trial.status in ENDED for trial in ledger.trials.values())
    title = f"{planned.name}: {ended} of {len(ledger.trials)} trials ended, {ledger.seconds:.0f} s"
    drawn = Table(title=title, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("trial", "", "samples", planned.sweep.objective.metric, "settings"):
        drawn.add_column(name, justify="right" if name in ("samples", planned.sweep.objective.metric) else "left")
    for trial in sorted(ledger.trials.values(), key=lambda each: _rank(planned, each))[:_ROWS]:
        style = "bold green" if leader is trial else "red" if trial.status == "failed" else None
        said = trial.error[:_ERROR_CHARACTERS] if trial.error else shown_settings(trial.settings)
        drawn.add_row(trial.id, trial.status, f"{trial.samples_seen:,}", judged(planned, trial), said, style=style)
    return drawn


def _rank(planned: SweepPlan, trial: Trial) -> tuple[int, float]:
    order = {"running": 0, "finished": 1, "stopped": 2, "waiting": 3, "failed": 4}
    return order[trial.status], -planned.sweep.score(trial.figures)


@contextmanager
def display(console: Console, planned: SweepPlan, ledger: Ledger) -> Iterator[Callable[[Trial], None]]:
    """A function that is told of each change of a trial."""
    if console.is_terminal:
        with Live(table(planned, ledger), console=console, auto_refresh=False, transient=True) as live:
            yield lambda _: live.update(table(planned, ledger), refresh=True)
        return
    seen: dict[str, tuple[str, int]] = {}

    def say(trial: Trial) -> None:
        now = (trial.status, len(trial.changes))
        if seen.get(trial.id) == now:
            return
        if trial.status in ENDED:
            console.print(line(planned, trial), soft_wrap=True)
        elif trial.changes and seen.get(trial.id, ("", 0))[1] != len(trial.changes):
            donor = trial.changes[-1]["donor"]
            console.print(
                f"trial {trial.id} goes on from {donor} with {shown_settings(trial.settings)}", soft_wrap=True
            )
        seen[trial.id] = now

    yield say
