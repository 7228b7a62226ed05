"""What commands print: results on stdout, for people or as JSON, and everything else on stderr."""

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

_WIDTH_OF_A_FILE = 160  # columns, where stdout is no terminal


def console() -> Console:
    """For people: on stderr, so that stdout holds results only."""
    return Console(stderr=True, highlight=False)


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
