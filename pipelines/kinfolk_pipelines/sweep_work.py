"""What the trials of a sweep run on and with: the cluster, the data, and the classifier that judges them."""

from typing import TYPE_CHECKING

from rich.console import Console

from kinfolk.cluster import connect
from kinfolk.contract import FIRST_STAGE, Model
from kinfolk.data.modes import Stack
from kinfolk.errors import ConfigError
from kinfolk.tuning.ledger import Ledger
from kinfolk.tuning.sweep import Pbt, Sweep
from kinfolk_pipelines.compare import train_features
from kinfolk_pipelines.datasets import encode_dataset
from kinfolk_pipelines.models import judge_of
from kinfolk_pipelines.plan import looks_at_features
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.sweep_figures import ON_FEATURES, ON_MODES, SweepFigures
from kinfolk_pipelines.sweep_plan import SweepPlan

if TYPE_CHECKING:
    from kinfolk.tuning.trial import Work  # loads Ray


def work_of(settings: Settings, planned: SweepPlan, ledger: Ledger, console: Console) -> "Work":
    """What all trials have in common, with Ray connected and the classifier for figures trained.

    Raises:
        ConfigError: the cluster is too small for the sweep, or its figures cannot be had.
    """
    sweep, base = planned.sweep, planned.base
    _check_turns(settings, sweep)
    connect(settings.ray_address, settings.state, cpus=_local_cpus(settings, sweep))
    from kinfolk.tuning.search import check_room, threads_of_a_trial
    from kinfolk.tuning.trial import Work

    check_room(sweep)
    features = _judge(settings, planned, console)
    if base.latents is not None:
        encode_dataset(base.latents, base.data, base.parents[FIRST_STAGE].model)
    measure = SweepFigures(
        base.data.prepared.path,
        base.recipe.evaluation,
        sweep.evaluation_samples,
        features,
        base.recipe.keep_labels,
        bool(ON_MODES & set(sweep.judged)),
    )
    return Work(
        sweep=sweep,
        base=planned.values,
        pace=planned.pace,
        data=base.data.prepared.path,
        storage=f"{settings.checkpoints}/sweeps/{planned.name}-{ledger.id}",
        measure=measure,
        threads=threads_of_a_trial(sweep),
        initial=base.initial,
        parents={role: loaded.model for role, loaded in base.parents.items()},
        latents=base.latents,
        features=features if looks_at_features(base.recipe, base.data) else None,
    )


def _check_turns(settings: Settings, sweep: Sweep) -> None:
    """Refuse a population on a cluster by address that is to run a part of it at a time."""
    if isinstance(sweep.scheduler, Pbt) and settings.ray_address is not None and sweep.parallel < sweep.trials:
        raise ConfigError(
            f"A population takes turns on whatever the cluster at {settings.ray_address} has free, so parallel="
            f"{sweep.parallel} cannot be kept to there. Use parallel: {sweep.trials}, the whole population."
        )


def _local_cpus(settings: Settings, sweep: Sweep) -> int | None:
    """CPUs of a cluster of this machine: a population takes turns on what there is, teams need someone who waits."""
    if isinstance(sweep.scheduler, Pbt):
        return sweep.parallel
    return sweep.parallel * sweep.workers + 1 if sweep.workers > 1 else settings.cpus


def _judge(settings: Settings, planned: SweepPlan, console: Console) -> Model | None:
    """The classifier that figures on samples or a monitor's looks rest on, trained first if need be; None: no need."""
    base, judged = planned.base, set(planned.sweep.judged)
    stacked = isinstance(base.data.prepared.record.modes, Stack)
    measured = bool(judged & ON_FEATURES) or (stacked and bool(judged & ON_MODES))
    if measured and (not base.draws or base.data.prepared.spec.classes is None):
        raise ConfigError(
            f"{planned.name} is judged by figures on a classifier's features of samples; this recipe draws no samples, "
            "or its data has no classes. Give another objective."
        )
    if not measured and not looks_at_features(base.recipe, base.data):
        return None
    train_features(settings, base, console, 1, False)
    return judge_of(settings, base.data)[0]
