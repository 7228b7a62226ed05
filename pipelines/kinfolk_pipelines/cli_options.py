"""Options that several commands share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program, and nothing else, on stdout.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key, e.g. training.batch_size=64; repeatable.")
]
Workers = Annotated[int, typer.Option(min=1, help="Ray Train workers.")]
Gpu = Annotated[bool, typer.Option("--gpu", help="Give each worker a GPU.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME@alias, NAME/version or NAME/latest.")]
