"""The report of a sweep: one HTML page that needs no other file."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from kinfolk.tracking.lineage import Version
from kinfolk.tuning.best import median_of_finished
from kinfolk.tuning.ledger import Ledger, Trial
from kinfolk.tuning.sweep import Sweep
from kinfolk_pipelines import sweep_plots as plots
from kinfolk_pipelines.meaning import MEANING
from kinfolk_pipelines.report import STYLE, image, meaning, number
from kinfolk_pipelines.sweep_display import judged, shown_settings
from kinfolk_pipelines.sweep_figures import ON_MODES
from kinfolk_pipelines.sweep_importance import importance
from kinfolk_pipelines.sweep_plan import SweepPlan

_MORE_STYLE = "td.said { text-align: left; white-space: normal; } tr.best td { background: var(--best); }"


def write_sweep_report(
    path: Path, planned: SweepPlan, ledger: Ledger, leader: Trial | None, version: Version | None
) -> None:
    """Write the page, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(planned, ledger, leader, version), encoding="utf-8")


def render(planned: SweepPlan, ledger: Ledger, leader: Trial | None, version: Version | None) -> str:
    """The page."""
    trials = [trial for trial in ledger.trials.values() if not trial.repeats]
    repeats = [trial for trial in ledger.trials.values() if trial.repeats]
    title, ways = f"Sweep {planned.name}", plots.parallel_coordinates(planned.sweep, trials, leader)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}{_MORE_STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in basis(planned, ledger, trials, leader, version)),
        _importance(planned.sweep, trials),
        _picture("Which settings led where", ways, _PARALLEL, "plot wide"),
        _picture("Learning curves", plots.learning_curves(planned.sweep, trials, leader), _CURVES),
        _seeds(planned.sweep, leader, repeats),
        f"<h2>Trials</h2>{_table(planned, trials, leader)}",
        _changes(trials),
        _said("Alarms", "what the monitor said", {t.id: " ".join(t.alarms) for t in trials if t.alarms}, ledger),
        _said("Failed trials", "error", {t.id: t.error or "" for t in trials if t.status == "failed"}, ledger),
        "</html>",
    ]
    return "\n".join(part for part in parts if part)


_PARALLEL = (
    "A line for each trial that reported, the best in green; the further up at the right, the better its last figures, "
    "however early they came."
)
_CURVES = "A line for each trial, the best in green; a cross where a trial was stopped, an orange one where it failed."


def basis(
    planned: SweepPlan, ledger: Ledger, trials: Sequence[Trial], leader: Trial | None, version: Version | None
) -> list[str]:
    """The sentences that say what was searched, how it was judged and what came of it."""
    sweep, base = planned.sweep, planned.base
    constraints = " and ".join(f"{each.metric} {each.sign} {number(each.limit)}" for each in sweep.constraints)
    wanted = "lowest" if sweep.objective.mode == "min" else "highest"
    counts = [f"{sum(t.status == s for t in trials)} {s}" for s in ("finished", "stopped", "failed")]
    lines = [
        f"Recipe {base.recipe.data}/{base.recipe.name} on data {base.data.digest}; {len(trials)} trials of at most "
        f"{planned.pace.samples:,} samples, {sweep.parallel} at a time, searcher {sweep.searcher.kind}, scheduler "
        f"{sweep.scheduler.kind}: {', '.join(counts)}, in {ledger.seconds:,.0f} s of {_starts(ledger.starts)}.",
        f"Best is the {wanted} {sweep.objective.metric}, {_rests_on(sweep)}"
        f"{f' Constraints: {constraints}.' if constraints else ''}",
    ]
    if sweep.objective.metric in MEANING:
        lines.append(f"{sweep.objective.metric}: {meaning(sweep.objective.metric)}")
    return [*lines, _outcome(planned, trials, leader, version)]


def _rests_on(sweep: Sweep) -> str:
    """What the objective is measured on."""
    if "/" in sweep.objective.metric:
        return "a mean over the training since the report before."
    if sweep.objective.metric in ON_MODES:
        return "counted in as many samples of the averaged weights as the data set's rule asks for."
    return f"measured on at most {sweep.evaluation_samples:,} samples of the averaged weights."


def _starts(count: int) -> str:
    return "one start" if count == 1 else f"{count} starts"


def _outcome(planned: SweepPlan, trials: Sequence[Trial], leader: Trial | None, version: Version | None) -> str:
    if leader is None:
        return "No trial keeps the constraints: nothing was registered."
    sweep = planned.sweep
    value, middle = leader.figures[sweep.objective.metric], median_of_finished(sweep, trials)
    said = f"Trial {leader.id} is best: {sweep.objective.metric} {number(value)}"
    said += f"; the median of trials that trained to the end is {number(middle)}" if middle is not None else ""
    return f"{said}. {'' if version is None else _registration(planned, version)}"


def _registration(planned: SweepPlan, version: Version) -> str:
    if planned.sweep.finish == "take":
        return f"Registered as {version.reference}."
    return (
        f"Registered as {version.reference} is another training with its settings, of "
        f"{planned.base.recipe.training.samples:,} samples, which was not measured here."
    )


def _picture(title: str, content: bytes | None, says: str, kind: str = "plot") -> str:
    return f"<h2>{title}</h2><p>{says}</p>{image(content, title, kind)}" if content else ""


def _importance(sweep: Sweep, trials: Sequence[Trial]) -> str:
    found = importance(sweep, trials)
    if not found.shares:
        return f"<h2>What mattered</h2><p>{found.trials} trials reported: too few, or too alike, to say.</p>"
    says = (
        f"Permutation importance of a random forest that predicts a trial's rank, on {found.trials} trials; how long "
        "each trained is taken into account. With few trials this is a hint."
    )
    return _picture("What mattered", plots.importance_bars(found), says)


def _seeds(sweep: Sweep, leader: Trial | None, repeats: Sequence[Trial]) -> str:
    name = sweep.objective.metric
    told = [trial for trial in repeats if name in trial.figures]
    if leader is None or not told:
        return ""
    everyone = [leader, *told]
    values = [trial.figures[name] for trial in everyone]
    says = (
        f"The best settings with {len(everyone)} seeds: mean {number(mean(values))}, standard deviation "
        f"{number(stdev(values))}, from {number(min(values))} to {number(max(values))}. The first was chosen for being "
        f"the best of the search; the mean of the others is {number(mean(values[1:]))}."
    )
    return _picture("Seed spread", plots.seed_spread(sweep, everyone), says)


def _table(planned: SweepPlan, trials: Sequence[Trial], leader: Trial | None) -> str:
    sweep = planned.sweep
    figures = sweep.judged
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*figures, "samples", "ended"))
    rows = "".join(_row(planned, trial, figures[1:], trial is leader) for trial in _by_score(sweep, trials))
    return (
        f'<div class="scroll"><table><thead><tr><th>trial</th>{head}<th class=meaning>settings</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _by_score(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    order = {"finished": 0, "stopped": 1}
    return sorted(trials, key=lambda trial: (order.get(trial.status, 2), -sweep.score(trial.figures)))


def _row(planned: SweepPlan, trial: Trial, others: Sequence[str], leading: bool) -> str:
    values = [number(trial.figures[name]) if name in trial.figures else "" for name in others]
    cells = [judged(planned, trial), *values, f"{trial.samples_seen:,}", trial.status]
    mark = " class=best" if leading else ""
    middle = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    settings = html.escape(shown_settings(trial.settings))
    return f"<tr{mark}><td>{trial.id}</td>{middle}<td class=meaning>{settings}</td></tr>"


def _changes(trials: Sequence[Trial]) -> str:
    """What population based training did."""
    changes = [(change["samples_seen"], trial, change) for trial in trials for change in trial.changes]
    if not changes:
        return ""
    lines = [
        f"<li>After {seen:,} samples trial {trial.id} went on from a copy of {change['donor']}; before it had "
        f"{html.escape(shown_settings(change['before']))}.</li>"
        for seen, trial, change in sorted(changes, key=lambda item: item[0])
    ]
    return f"<h2>Copies</h2><ul>{''.join(lines)}</ul>"


def _said(title: str, what: str, said: Mapping[str, str], ledger: Ledger) -> str:
    """A table of trials, by name, with what was said of each; nothing where nothing was said."""
    if not said:
        return ""
    rows = "".join(
        f"<tr><td>{name}</td><td class=said>{html.escape(text)}</td>"
        f"<td class=said>{html.escape(shown_settings(ledger.trials[name].settings))}</td></tr>"
        for name, text in said.items()
    )
    return (
        f"<h2>{title}</h2><div class=scroll><table><thead><tr><th>trial</th><th class=meaning>{what}</th>"
        f"<th class=meaning>settings</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
