"""The command line. Each verb is a thin call of the module of its name; errors are one paragraph each."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.errors import ConfigError, DataError, KinfolkError, RegistryError, RequestError
from kinfolk.memory import keep_freed_memory
from kinfolk_pipelines import cli_bench, cli_data, cli_tune
from kinfolk_pipelines.cli_options import Gpu, Json, ModelName, Sets, Workers
from kinfolk_pipelines.output import check_out, console, print_json, print_table
from kinfolk_pipelines.settings import apply_environment, load_settings

app = typer.Typer(
    name="kinfolk",
    help="Choose, train, compare, register and serve families of generative models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(cli_data.app, name="data")

_USER_MISTAKES = (ConfigError, DataError, RequestError, RegistryError)
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look whether this machine and everything in the settings is fit. Example: `kinfolk doctor`"""
    from kinfolk_pipelines.doctor import diagnose

    checks = diagnose(load_settings())
    if as_json:
        print_json([{"what": each.what, "good": each.good, "found": each.found} for each in checks])
    else:
        print_table(["", "", ""], [["ok" if each.good else "BAD", each.what, each.found] for each in checks])
    if not all(each.good for each in checks):
        raise typer.Exit(1)


@app.command()
def families(as_json: Json = False) -> None:
    """The installed families, and what each system on digits can do. Example: `kinfolk families`"""
    from kinfolk_pipelines.families import TITLE, line, nested, rows, systems

    found, able = rows(load_settings()), systems(load_settings())
    if as_json:
        print_json(nested(found, able))
        return
    print_table(["family", "data", "what it is"], [[r["name"], ", ".join(r["kinds"]), r["summary"]] for r in found])
    print_table(TITLE, [line(system) for system in able])


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's path or name, e.g. digits/vae.")],
    sets: Sets = None,
    workers: Workers = 1,
    name: Annotated[str | None, typer.Option(help="Name to register the model under; DATA-RECIPE if left out.")] = None,
    gpu: Gpu = False,
    fresh: Annotated[bool, typer.Option(help="Train again what is trained already.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe and register the model; again, it goes on where it stopped. Example: `kinfolk train digits/vae`"""
    from kinfolk_pipelines.plan import plan
    from kinfolk_pipelines.train import train as run

    settings = load_settings()
    planned = plan(settings, recipe, sets or (), name)
    trained = run(settings, planned, console(), workers=workers, use_gpu=gpu, fresh=fresh)
    version = trained.version
    result = {"run": version.run_id, "model": version.name, "version": version.number, "metrics": dict(trained.metrics)}
    if as_json:
        print_json(result)
        return
    how = "had been trained before" if trained.reused else f"trained in {trained.seconds:.0f} s"
    typer.echo(f"{version.reference} {how}. Next: kinfolk evaluate {version.reference}")


app.command()(cli_tune.tune)


@app.command()
def evaluate(
    model: ModelName,
    samples: Annotated[int | None, typer.Option(min=6, help="Samples that figures on samples rest on.")] = None,
    likelihood: Annotated[int | None, typer.Option(min=1, help="Test samples that likelihoods rest on.")] = None,
    importance: Annotated[int | None, typer.Option(min=1, help="Draws of the importance-weighted bound.")] = None,
    against: Annotated[str | None, typer.Option(help="Data set that ought to look strange to the model.")] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure a registered model; figures go to its version. Example: `kinfolk evaluate digits-edm --samples 1000`"""
    from kinfolk.config import override
    from kinfolk_pipelines.evaluate import evaluate as run
    from kinfolk_pipelines.report import meaning, number

    given = {"likelihood_samples": likelihood, "importance_draws": importance, "against": against}
    done = run(load_settings(), model, samples=samples, options=override({}, sets or ()), **given)
    metrics = done.figures.metrics
    if as_json:
        print_json({"model": done.version.reference, "metrics": dict(metrics), "basis": dict(done.figures.basis)})
    else:
        typer.echo(done.version.reference + "".join(f"; {key}: {said}" for key, said in done.figures.basis.items()))
        print_table(["figure", "value", "what it is"], [[k, number(v), meaning(k)] for k, v in metrics.items()])


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(help="Recipes for one data set.")],
    sets: Sets = None,
    workers: Workers = 1,
    samples: Annotated[int | None, typer.Option(min=6, help="Samples drawn of each model.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the report goes.")] = Path("report.html"),
    gpu: Gpu = False,
    as_json: Json = False,
) -> None:
    """Train and measure recipes alike, in one report. Example: `kinfolk compare digits/vae digits/edm`"""
    from kinfolk_pipelines.compare import compare as run
    from kinfolk_pipelines.compare import plans, write_report

    check_out(out)
    settings = load_settings()
    planned = plans(settings, recipes, sets or ())
    compared = run(settings, planned, console(), workers=workers, samples=samples, use_gpu=gpu)
    write_report(out, compared, workers)
    if as_json:
        print_json({each.trained.version.reference: dict(each.evaluated.figures.metrics) for each in compared})
    else:
        typer.echo(f"The report is {out}.")


@app.command()
def sample(
    model: ModelName,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Picture i of seed s is picture 0 of seed s + i.")] = 0,
    label: Annotated[int | None, typer.Option(help="The class to draw, for a class-conditional model.")] = None,
    task: Annotated[str, typer.Option(help="sample, interpolate or inpaint, as far as the model can.")] = "sample",
    seed_to: Annotated[int | None, typer.Option(help="interpolate: the seed at the other end.")] = None,
    given: Annotated[str | None, typer.Option(help="inpaint: given part, upper, lower, left, right, border.")] = None,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png picture or a .npy array.")] = Path("samples.png"),
    as_json: Json = False,
) -> None:
    """Draw samples to a file. Example: `kinfolk sample digits-edm -n 64 --label 3 --set steps=20 -o grid.png`"""
    from kinfolk_pipelines.sample import Wanted, write_samples

    wanted = Wanted(n, seed, label, task, seed_to, given)
    reference = write_samples(load_settings(), model, out, wanted, sets or ())
    if as_json:
        print_json({"model": reference, "n": n, "seed": seed, "file": out})
    else:
        typer.echo(f"{n} samples of {reference} in {out}")


@app.command()
def transform(
    model: ModelName,
    task: Annotated[
        str, typer.Option(help="reconstruct, complete, denoise, interpolate or arithmetic.")
    ] = "reconstruct",
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows of pictures.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first row.")] = 0,
    noise: Annotated[
        float | None, typer.Option(help="denoise: standard deviation, of data in [-1, 1]; 0.5 if left out.")
    ] = None,
    path: Annotated[str | None, typer.Option(help="interpolate: spherical or linear; spherical if left out.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png picture or a .npy array.")] = Path("made.png"),
    as_json: Json = False,
) -> None:
    """What a model makes of test pictures. Example: `kinfolk transform digits-vae --task interpolate --path linear`"""
    from kinfolk_pipelines.transform import Asked, write_transformed

    reference = write_transformed(load_settings(), model, out, Asked(task, n, seed, noise, path))
    if as_json:
        print_json({"model": reference, "task": task, "n": n, "file": out})
    else:
        typer.echo(f"{task}, {n} rows by {reference} in {out}")


@app.command()
def models(as_json: Json = False) -> None:
    """The registered models. Example: `kinfolk models`"""
    from kinfolk_pipelines.models import rows, shown_metrics

    found = rows(load_settings())
    if as_json:
        print_json(found)
    else:
        lines = [
            [r["model"], ", ".join(r["aliases"]), r["family"], r["data"], shown_metrics(r["metrics"])] for r in found
        ]
        print_table(["model", "alias", "family", "data", "figures"], lines)


@app.command()
def promote(
    name: str,
    version: Annotated[str, typer.Argument(help="A number, or latest.")],
    force: Annotated[
        str | None, typer.Option(metavar="WHY", help="Promote against the rule; the reason is kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a version champion if its figures are better. Example: `kinfolk promote digits-edm latest`"""
    from kinfolk_pipelines.promotion import promote_version

    done = promote_version(load_settings(), name, version, force)
    decision = done.decision
    if as_json:
        print_json({"model": done.candidate.reference, "promoted": decision.promote, "reason": decision.reason})
    else:
        word = "is champion" if decision.promote else "was not promoted"
        typer.echo(f"{done.candidate.reference} {word}: {decision.reason}")


@app.command()
def rollback(name: str, as_json: Json = False) -> None:
    """Make the champion's predecessor champion again. Example: `kinfolk rollback digits-edm`"""
    from kinfolk.tracking.aliases import rollback as run

    champion = run(load_settings().tracking, name)
    if as_json:
        print_json({"champion": champion.reference})
    else:
        typer.echo(f"{champion.reference} is champion again.")


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The serve file.")] = Path("infra/serve.yaml"),
    host: Annotated[str | None, typer.Option(help="The interface to listen on; the serve file's if left out.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port; the serve file's if left out.")] = None,
) -> None:
    """Serve registered models until Ctrl-C. Example: `kinfolk serve --config infra/serve.yaml --port 8000`"""
    from kinfolk_pipelines.serve import serve_file, serve_until_interrupted

    serve_until_interrupted(load_settings(), serve_file(config, host, port), typer.echo)


app.command()(cli_bench.bench)


@app.command()
def deliver(as_json: Json = False) -> None:
    """Send what MLflow could not take while it was away. Example: `kinfolk deliver`"""
    from kinfolk.tracking.runs import deliver_spool

    settings = load_settings()
    deliveries = deliver_spool(settings.state.absolute() / "spool", settings.tracking)
    if as_json:
        print_json([{"run": each.run_id, "complete": each.complete, "unsent": each.unsent} for each in deliveries])
        return
    for each in deliveries:
        typer.echo(f"run {each.run_id}: " + ("delivered" if each.complete else f"{each.unsent} left, {each.trouble}"))
    if not deliveries:
        typer.echo("Nothing was waiting.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report and the picture.")] = Path("demo"),
    stay: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay up until Ctrl-C.")] = True,
) -> None:
    """Data to endpoint with one model of each family. Example: `kinfolk demo --no-wait`"""
    from kinfolk_pipelines.demo import run_demo, wait

    shown = console()
    done = run_demo(load_settings(), shown, out)
    typer.echo(f"report     {done.report}\nsamples    {done.samples}")
    for endpoint in done.endpoints:
        typer.echo(f"endpoint   {endpoint}")
    typer.echo(f"playground {done.endpoints[0].partition('/v1/')[0]}/")
    typer.echo(f"MLflow     {done.mlflow.address}\nRay        {done.dashboard}")
    try:
        if stay and sys.stdout.isatty():
            wait(done, shown)
    finally:
        done.mlflow.stop()


def main() -> None:
    """Run the command line; a user's mistake ends with 2, a fault with 1, both as one paragraph on stderr."""
    from kinfolk.tracking.connection import mlflow_environment
    from kinfolk_pipelines.train import InterruptedTrainingError

    keep_freed_memory()
    apply_environment(mlflow_environment())
    try:
        app()
    except KinfolkError as error:
        typer.echo(f"kinfolk: {error}", err=True)
        if isinstance(error, InterruptedTrainingError):
            sys.exit(_INTERRUPTED)
        sys.exit(2 if isinstance(error, _USER_MISTAKES) else 1)
    except OSError as error:
        typer.echo(f"kinfolk: {error.strerror or error}: {error.filename or 'a file or address'}.", err=True)
        sys.exit(1)
