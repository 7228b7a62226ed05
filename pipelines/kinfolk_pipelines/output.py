"""What commands print: results on stdout, for people or as JSON, and everything else on stderr."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from kinfolk.errors import ConfigError

_WIDTH_OF_A_FILE = 160  # columns, where stdout is no terminal


def console() -> Console:
    """For people: on stderr, so that stdout holds results only."""
    return Console(stderr=True, highlight=False)


def check_out(out: Path) -> None:
    """Refuse a file that could not be written once the work is done.

    Raises:
        ConfigError: it is a folder, or no file can be made there.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: give the name of a file.")
    there = next(each for each in (out, *out.absolute().parents) if each.exists())  # what lacks is made
    if not (there.is_dir() or there == out) or not os.access(there, os.W_OK):
        raise ConfigError(f"{out} cannot be written: {there} is no folder to write in. Give another --out.")


def print_json(value: Any) -> None:
    """``value`` for a program; what JSON lacks is written as text."""
    typer.echo(json.dumps(value, indent=1, default=str))


def print_table(title: list[str], lines: list[list[str]]) -> None:
    """Columns for people, folded to the terminal's width."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in title:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(table)
