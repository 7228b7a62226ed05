"""Train, measure and lay side by side: one report for several recipes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kinfolk.errors import ConfigError
from kinfolk.pictures import draw, picturable
from kinfolk_pipelines.evaluate import Evaluated, evaluate
from kinfolk_pipelines.models import feature_name
from kinfolk_pipelines.plan import Plan, plan
from kinfolk_pipelines.report import Entry, render
from kinfolk_pipelines.sample import picture_scale
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.train import Trained, train

_GRID_ROWS = 64
_ANY_FEATURES = "digits/features"  # a recipe that fits data without one of its own


@dataclass(frozen=True, slots=True)
class Compared:
    """One recipe, trained and measured."""

    plan: Plan
    trained: Trained
    evaluated: Evaluated


def plans(settings: Settings, recipes: Sequence[str], sets: Sequence[str] = ()) -> list[Plan]:
    """All recipes checked, and found to be for one data set, before any is trained.

    Raises:
        ConfigError: a recipe is wrong, or two of them are for different data.
    """
    checked = [plan(settings, recipe, sets) for recipe in recipes]
    data = {each.data.name for each in checked}
    if len(data) != 1:
        raise ConfigError(
            f"The recipes are for different data ({', '.join(sorted(data))}): their figures do not compare."
        )
    return checked


def compare(
    settings: Settings,
    planned: Sequence[Plan],
    console: Console,
    *,
    workers: int = 1,
    samples: int | None = None,
    use_gpu: bool = False,
) -> list[Compared]:
    """Train what is not trained yet, its data's feature classifier first, and measure everything alike."""
    train_features(settings, planned[0], console, workers, use_gpu)
    counts = [each.recipe.evaluation.samples for each in planned if each.draws]
    count = samples or min(counts, default=None)  # equal, as fd_local falls with it
    compared = []
    for each in planned:
        trained = train(settings, each, console, workers=workers, use_gpu=use_gpu)
        console.print(f"{trained.version.reference}: {_how(trained)}, measuring")
        evaluated = evaluate(settings, trained.version.reference, samples=count if each.draws else None)
        compared.append(Compared(each, trained, evaluated))
    return compared


def _how(trained: Trained) -> str:
    return "trained before" if trained.seconds is None else f"trained in {trained.seconds:.0f} s"


def train_features(settings: Settings, first: Plan, console: Console, workers: int, use_gpu: bool) -> None:
    """The classifier that judges the data set, by a recipe for it or by that of digits."""
    data = first.data.judge
    if first.data.prepared.spec.classes is None:
        return
    own = (settings.recipe_folder / data / "features.yaml").is_file()
    recipe, sets = (f"{data}/features", ()) if own else (_ANY_FEATURES, (f"data={data}",))
    features = plan(settings, recipe, sets, feature_name(data))
    trained = train(settings, features, console, workers=workers, use_gpu=use_gpu)
    console.print(f"{trained.version.reference}: {_how(trained)}; figures rest on its features")


def report(compared: Sequence[Compared], workers: int) -> str:
    """The comparison as an HTML page."""
    first = compared[0]
    data, now = first.plan.data, [each.trained.version.reference for each in compared if each.trained.seconds]
    here = f" Trained now with {workers} {'worker' if workers == 1 else 'workers'}: {', '.join(now)}." if now else ""
    features = first.evaluated.figures.basis.get("features", "none")
    counts = sorted({count for each in compared if (count := each.evaluated.figures.basis.get("samples"))})
    basis = [
        f"Data set {data.name} ({data.digest}); averaged weights measured.{here}",
        f"{' or '.join(counts) or 'No'} samples of each model; features of {features}; class-conditional models were "
        "asked for every class equally often. The best of figures that were measured alike is shaded.",
    ]
    return render(f"Comparison on {data.name}", basis, [_entry(each) for each in compared])


def _entry(each: Compared) -> Entry:
    model, figures = each.evaluated.model, each.evaluated.figures
    picture = None
    if figures.samples is not None and picturable(model.spec):
        scale = picture_scale(model.spec.shape[-2], 8) if model.spec.kind == "image" else 1
        picture = draw(figures.samples[:_GRID_ROWS], model.spec, scale)
    return Entry(
        recipe=f"{each.plan.recipe.data}/{each.plan.recipe.name}",
        family=each.plan.family.name,
        reference=each.trained.version.reference,
        metrics=figures.metrics,
        basis=figures.basis,
        train_seconds=each.trained.version.metrics.get("train_seconds"),
        train_samples=each.plan.recipe.training.samples,
        grid_png=picture,
    )


def write_report(path: Path, compared: Sequence[Compared], workers: int) -> None:
    """Write the page, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(compared, workers), encoding="utf-8")
