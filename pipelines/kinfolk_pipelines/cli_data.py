"""``kinfolk data``: the verbs on data sets."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kinfolk_pipelines.cli_options import Json, Sets
from kinfolk_pipelines.output import console, print_json, print_table
from kinfolk_pipelines.settings import load_settings

app = typer.Typer(help="Prepared data sets. Example: `kinfolk data prepare digits`", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Data sets that are or can be prepared. Example: `kinfolk data list`"""
    from kinfolk_pipelines.datasets import rows

    found = rows(load_settings())
    if as_json:
        print_json(found)
    else:
        lines = [[row["name"], "yes" if row["prepared"] else "no", row["summary"]] for row in found]
        print_table(["data set", "prepared", "what it is"], lines)


@app.command("prepare")
def prepare(
    kind: Annotated[str, typer.Argument(help="A catalogue name, for example digits; `kinfolk data list` has all.")],
    source: Annotated[Path | None, typer.Argument(help="Where your own files are.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the data set; the catalogue name if left out.")] = None,
    sets: Sets = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave unreadable files out instead of stopping.")] = False,
    as_json: Json = False,
) -> None:
    """Make a data set ready. Example: `kinfolk data prepare folder ~/cats --name cats --set size=32`"""
    from kinfolk_pipelines.datasets import facts, prepare_dataset
    from kinfolk_pipelines.progress import counting

    with counting(console()) as progress:
        dataset = prepare_dataset(
            load_settings(), kind, name=name, source=source, sets=sets or (), skip_bad=skip_bad, progress=progress
        )
    _show_facts(facts(dataset), as_json)


@app.command("show")
def show(name: str, as_json: Json = False) -> None:
    """What a prepared data set holds, after checking every byte. Example: `kinfolk data show digits`"""
    from kinfolk_pipelines.datasets import facts, open_dataset

    _show_facts(facts(open_dataset(load_settings(), name)), as_json)


def _show_facts(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        print_table(
            ["", ""], [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in found.items()]
        )
