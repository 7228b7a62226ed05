"""Pictures of a sweep, as PNG: what mattered, which settings led where, how the trials learned, how seeds differ."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kinfolk.tuning.ledger import Trial
from kinfolk.tuning.space import Choice, Fixed, Setting
from kinfolk.tuning.sweep import Sweep
from kinfolk_pipelines.report import number
from kinfolk_pipelines.sweep_importance import Importance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACCENT, _GREY, _WARM = "#2f6f5e", "0.75", "#b4552d"


def _drawn(draw: Callable[["Axes"], None], width: float, height: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def importance_bars(found: Importance) -> bytes:
    """A bar for each setting, the longest at the top."""
    names = list(found.shares)[::-1]

    def draw(axes: "Axes") -> None:
        bars = axes.barh(names, [found.shares[name] for name in names], color=_ACCENT, height=0.6)
        axes.bar_label(bars, fmt="{:.0%}", padding=4, fontsize=9)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel("share of the importance of all settings")

    return _drawn(draw, 7.2, 0.9 + 0.42 * len(names))


def parallel_coordinates(sweep: Sweep, trials: Sequence[Trial], leader: Trial | None) -> bytes | None:
    """A line for each trial that reported, through the place of each of its settings to its rank; None without any.

    Where a setting does not exist the line is broken. The better a trial's last figures, the darker its line and the
    further up at the right; that of ``leader`` is in a colour of its own.
    """
    told = sorted((trial for trial in trials if trial.reports), key=lambda trial: sweep.score(trial.figures))
    if not told:
        return None
    keys = list(sweep.space)

    def draw(axes: "Axes") -> None:
        for rank, trial in enumerate(told):
            end = rank / max(len(told) - 1, 1)
            places = [sweep.space[k].place(trial.settings[k]) if k in trial.settings else float("nan") for k in keys]
            color, width, order = str(0.85 - 0.6 * end), 1.2, rank
            if trial is leader:
                color, width, order = _ACCENT, 2.6, len(told)
            axes.plot(range(len(keys) + 1), [*places, end], color=color, linewidth=width, zorder=order)
        for index, key in enumerate(keys):
            axes.axvline(index, color="0.6", linewidth=0.8, zorder=0)
            _ticks(axes, index, sweep.space[key])
        axes.axvline(len(keys), color="0.6", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(keys) + 1), [*(_broken(key) for key in keys), "rank of trial"], fontsize=9)
        axes.set(yticks=[], xlim=(-0.35, len(keys) + 0.15), ylim=(-0.06, 1.06))
        axes.spines[["left", "bottom"]].set_visible(False)

    return _drawn(draw, max(6.0, 1.6 * (len(keys) + 1)), 4.2)


def _broken(key: str) -> str:
    """A dotted key on several lines."""
    return key.replace(".", ".\n")


def _ticks(axes: "Axes", index: int, setting: Setting) -> None:
    values: list[Any] = setting.ends()
    if not isinstance(setting, Choice | Fixed):
        values = [setting.at(0.0), setting.at(0.5), setting.at(1.0)]
    for value in values:
        text = number(value) if isinstance(value, float | int) and not isinstance(value, bool) else str(value)
        where = (index, setting.place(value))
        axes.annotate(text, where, xytext=(-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8)


def learning_curves(sweep: Sweep, trials: Sequence[Trial], leader: Trial | None) -> bytes | None:
    """The objective over samples seen, a line for each trial; None where nothing was reported."""
    name = sweep.objective.metric
    lines = [(trial, [report for report in trial.reports if name in report]) for trial in trials]
    if not any(reports for _, reports in lines):
        return None

    def draw(axes: "Axes") -> None:
        for trial, reports in lines:
            color = _ACCENT if trial is leader else _GREY
            if not reports:
                continue
            x, y = [report["samples_seen"] for report in reports], [report[name] for report in reports]
            axes.plot(x, y, color=color, linewidth=2.4 if trial is leader else 1, zorder=3 if trial is leader else 2)
            if trial.status in ("stopped", "failed"):
                axes.plot(x[-1:], y[-1:], color=color if trial.status == "stopped" else _WARM, marker="x", markersize=5)
        if all(report[name] > 0 for _, reports in lines for report in reports):
            axes.set_yscale("log")
        axes.set(xlabel="training samples seen", ylabel=f"{name} ({_better(sweep)})")
        axes.grid(which="both", color="0.93", zorder=0)

    return _drawn(draw, 7.2, 4.2)


def seed_spread(sweep: Sweep, trials: Sequence[Trial]) -> bytes:
    """A dot for each seed of the best settings."""
    name = sweep.objective.metric
    values = [trial.figures[name] for trial in trials if name in trial.figures]

    def draw(axes: "Axes") -> None:
        axes.scatter(values, [0] * len(values), s=60, color=_ACCENT, zorder=3)
        axes.axvline(sum(values) / len(values), color="0.6", linewidth=1, linestyle="--")
        axes.set(yticks=[], xlabel=f"{name} of the same settings with different seeds ({_better(sweep)})")
        axes.margins(x=0.2)
        axes.spines["left"].set_visible(False)

    return _drawn(draw, 7.2, 1.4)


def _better(sweep: Sweep) -> str:
    return "better downwards" if sweep.objective.mode == "min" else "better upwards"
