"""``kinfolk bench``: what an endpoint bears."""

from typing import Annotated

import typer

from kinfolk_pipelines.cli_options import Json
from kinfolk_pipelines.output import print_json, print_table
from kinfolk_pipelines.settings import load_settings

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of every request, e.g. n=4, or x=PATH for a file; repeatable."),
]


def bench(
    url: Annotated[str, typer.Argument(help="A task's address: http://HOST:PORT/v1/models/MODEL/TASK.")],
    connections: Annotated[int, typer.Option(help="Connections that stay open.")] = 32,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 10.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests that fall due in a second, at random times; left out, each connection asks again."),
    ] = None,
    warm_up: Annotated[float, typer.Option(help="Seconds before that, which are not counted.")] = 2.0,
    sets: Settings = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first request, and of the random times.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 60.0,
    token: Annotated[str | None, typer.Option(help="Bearer token; the one in the settings if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Measure an endpoint. Example: `kinfolk bench http://127.0.0.1:8000/v1/models/digits-edm/sample --set n=4`

    Without --rate, requests on their way are as many as connections: what is measured is how much the server can do.
    With it, requests fall due whatever the server does, and are counted from then: how long users wait at that rate.
    """
    from kinfolk_pipelines import bench as work
    from kinfolk_pipelines.load import Load

    known = load_settings().api_token
    key = token or (known.get_secret_value() if known else None)
    done = work.bench(url, Load(connections, seconds, warm_up, rate, timeout, seed), sets or (), key)
    if as_json:
        print_json(work.facts(done))
    else:
        print_table(["", ""], work.lines(done))
        print_table(*work.times(done))
    if not done.figures.answered:
        raise typer.Exit(1)
