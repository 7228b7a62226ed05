"""The command that searches settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk_pipelines.cli_options import Json, Sets
from kinfolk_pipelines.output import check_out, console, print_json
from kinfolk_pipelines.settings import load_settings

if TYPE_CHECKING:
    from kinfolk_pipelines.sweep_plan import SweepPlan


def tune(
    sweep: Annotated[str, typer.Argument(help="A sweep file's path or name, e.g. digits/gan-asha.")],
    sets: Sets = None,
    name: Annotated[str | None, typer.Option(help="Name to register the best under; DATA-RECIPE if left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was begun.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a sweep over that was begun.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the report goes.")] = Path("sweep.html"),
    as_json: Json = False,
) -> None:
    """Search the settings of a recipe and register the best trial. Example: `kinfolk tune digits/gan-asha`"""
    from kinfolk_pipelines.sweep_plan import plan_sweep
    from kinfolk_pipelines.tune import tune as run

    check_out(out)
    settings = load_settings()
    planned = plan_sweep(settings, sweep, sets or (), name)
    tuned = run(settings, planned, console(), out, resume=resume, fresh=fresh)
    metric = planned.sweep.objective.metric
    value = None if tuned.best is None else tuned.best.figures[metric]
    if as_json:
        print_json(
            {
                "model": tuned.version.reference if tuned.version else None,
                "trial": tuned.best.id if tuned.best else None,
                "settings": dict(tuned.best.settings) if tuned.best else None,
                metric: value,
                "median_of_finished": tuned.median,
                "trials": dict(tuned.counts),
                "report": out,
            }
        )
        return
    if tuned.version is None or value is None:
        typer.echo(f"No trial keeps the constraints; nothing was registered. The report is {out}.")
        return
    assert tuned.best is not None
    what = _registered_as(planned, tuned.best.id, f"{metric} {value:.4g}")
    reference = tuned.version.reference
    typer.echo(f"{reference} is {what}. The report is {out}. Next: kinfolk evaluate {reference}")


def _registered_as(planned: "SweepPlan", trial: str, figure: str) -> str:
    if planned.sweep.finish == "take":
        return f"trial {trial}, {figure}"
    return (
        f"another training, of {planned.base.recipe.training.samples} samples and not measured here, with the settings "
        f"of trial {trial}, which had {figure}"
    )
