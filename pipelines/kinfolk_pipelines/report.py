"""The comparison report: one HTML page that needs no other file."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kinfolk_pipelines.meaning import MEANING

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #667085; --line: #e4e7ec; --best: #e8f5ee; --accent: #2f6f5e; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 78rem; margin: 2.5rem auto;
  padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p, dd { color: var(--soft); margin: .2rem 0; } a { color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; border-bottom: 2px solid var(--line); }
td.best { background: var(--best); font-weight: 600; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.4rem; }
figure { margin: 0; } figcaption { font-size: .9rem; margin-top: .35rem; }
img { image-rendering: pixelated; width: 100%; border: 1px solid var(--line); border-radius: 4px; }
img.plot { image-rendering: auto; max-width: 46rem; border: 0; }
img.wide { max-width: none; }
td.meaning, th.meaning { text-align: left; white-space: normal; color: var(--soft); min-width: 14rem; }
.said { display: inline-block; max-width: 11rem; white-space: normal; }
"""


_COSTS = ("nfe", "samples_per_second")  # figures of the model alone, whatever it learned
_RESTS_ON = {  # entries of the basis that may differ between models
    "classes": "Classes learned, and measured against; figures compare where they are the same.",
    "options": "How samples were drawn.",
    "likelihood": "What log-probabilities and evidence bounds rest on; compared where it is the same.",
    "importance_bound": "What the tighter bound rests on; compared where it is the same.",
    "against": "The data that ought to look strange; compared where it is the same.",
    "mode_rule": "How modes are counted; compared where it is the same.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in a comparison."""

    recipe: str
    family: str
    reference: str  # NAME/VERSION
    metrics: Mapping[str, float]
    train_seconds: float | None
    train_samples: int
    grid_png: bytes | None = None
    basis: Mapping[str, str] = field(default_factory=dict)  # what the metrics rest on, in words


def columns(entries: Sequence[Entry]) -> list[str]:
    """Metrics that at least one entry has, in the order of the glossary."""
    present = {name for entry in entries for name in entry.metrics}
    return [name for name in MEANING if name in present]


def best(entries: Sequence[Entry], metric: str) -> float | None:
    """The best value of a column, or None where they do not compare or there is one alone; NaN is none."""
    having = [entry for entry in entries if not math.isnan(entry.metrics.get(metric, math.nan))]
    values, better = [entry.metrics[metric] for entry in having], MEANING[metric].better
    bases = [name for name in ("classes", basis_of(metric)) if name and metric not in _COSTS]
    alike = len({tuple(entry.basis.get(name) for name in bases) for entry in having}) == 1
    if better is None or len(values) < 2 or not alike:
        return None
    return min(values) if better == "lower" else max(values)


def basis_of(metric: str) -> str:
    """The entry of the basis that says which models of the same classes compare in a figure; most have none."""
    if metric in ("modes", "high_quality", "mode_spread", "kl_to_uniform"):
        return "mode_rule"
    if metric.startswith("importance_bound"):
        return "importance_bound"
    if metric == "auroc_against":
        return "against"
    return "likelihood" if metric.startswith(("elbo", "log_prob", "ode_log_prob")) else ""


def number(value: float) -> str:
    """A figure with about four digits."""
    if value != value:
        return "NaN"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def quality_against_speed(entries: Sequence[Entry]) -> bytes | None:
    """``fd_local`` over samples per second, both logarithmic, as PNG; None without such figures."""
    points = [entry for entry in entries if {"fd_local", "samples_per_second"} <= entry.metrics.keys()]
    if not points:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    families = sorted({entry.family for entry in points})
    for entry in points:
        x, y = entry.metrics["samples_per_second"], entry.metrics["fd_local"]
        axes.scatter(x, y, s=70, color=f"C{families.index(entry.family)}", zorder=3)
        axes.annotate(entry.recipe, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9)
    floor = points[0].metrics.get("fd_local_test")
    if floor:
        axes.axhline(floor, color="0.6", linewidth=1, linestyle="--")
        axes.annotate("real test split", (0.01, floor), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="samples per second (faster to the right)")
    axes.set_ylabel("FD, local features (better downwards)")
    axes.margins(x=0.35, y=0.15)
    axes.grid(which="both", color="0.93", zorder=0)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def image(content: bytes, alt: str, kind: str = "") -> str:
    """A PNG as part of the page; ``kind`` is its class."""
    data = base64.b64encode(content).decode()
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _row(head: str, cells: Sequence[str], says: str, best_at: Sequence[bool] = ()) -> str:
    marks = [*best_at, *[False] * (len(cells) - len(best_at))]
    middle = "".join(f"<td{' class=best' if mark else ''}>{cell}</td>" for cell, mark in zip(cells, marks, strict=True))
    return f"<tr><td>{head}</td>{middle}<td class=meaning>{html.escape(says)}</td></tr>"


def meaning(name: str) -> str:
    """What a figure is and which way is better, in words."""
    better = MEANING[name].better
    return MEANING[name].text + (f" {better.capitalize()} is better." if better else "")


def _table(entries: Sequence[Entry]) -> str:
    """A row for each figure with what it is, a column for each model."""
    head = "".join(f"<th>{html.escape(entry.recipe)}</th>" for entry in entries)
    seconds = ["" if entry.train_seconds is None else number(entry.train_seconds) for entry in entries]
    lines = [
        _row("training samples", [f"{entry.train_samples:,}" for entry in entries], "Samples seen, repeats counted."),
        _row("training seconds", seconds, "On this machine, start of the workers included."),
    ]
    for name in columns(entries):
        top = best(entries, name)
        values = [entry.metrics.get(name) for entry in entries]
        cells = ["" if value is None else number(value) for value in values]
        lines.append(_row(name, cells, meaning(name), [value is not None and value == top for value in values]))
    for name, says in _RESTS_ON.items():
        said = [html.escape(entry.basis.get(name, "")) for entry in entries]
        cells = [f"<span class=said>{words}</span>" for words in said]
        lines += [_row(name.replace("_", " "), cells, says)] if any(said) else []
    return (
        f'<div class="scroll"><table><thead><tr><th>figure</th>{head}<th class=meaning>what it is</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _grids(entries: Sequence[Entry]) -> str:
    figures = [
        f"<figure>{image(entry.grid_png, entry.recipe)}<figcaption>{html.escape(entry.recipe)} "
        f"<p>{html.escape(entry.family)}, {html.escape(entry.reference)}</p></figcaption></figure>"
        for entry in entries
        if entry.grid_png
    ]
    return f'<div class="grids">{"".join(figures)}</div>' if figures else "<p>No model here draws pictures.</p>"


def render(title: str, basis: Sequence[str], entries: Sequence[Entry]) -> str:
    """The page; ``basis`` are the sentences that say how the figures were measured."""
    plot = quality_against_speed(entries)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in basis),
        f"<h2>Figures</h2>{_table(entries)}",
        f"<h2>Quality against speed</h2>{image(plot, 'quality against speed', 'plot')}" if plot else "",
        f"<h2>Samples</h2>{_grids(entries)}</html>",
    ]
    return "\n".join(part for part in parts if part)
