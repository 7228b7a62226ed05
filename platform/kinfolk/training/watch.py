"""Looking at a model in training: what its samples and losses are like, and whether that is a collapse."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kinfolk import sampling
from kinfolk.contract import Model
from kinfolk.data.modes import Mixture
from kinfolk.data.prepared import Prepared
from kinfolk.data.source import keep
from kinfolk.judge import as_shown, encoded
from kinfolk.metrics.alarm import Alarm, Look, verdict
from kinfolk.metrics.collapse import (
    CollapseMeasures,
    CollapseReference,
    collapse_measures,
    reference_of_clusters,
    reference_of_modes,
)
from kinfolk.monitor import Monitor
from kinfolk.rng import generator
from kinfolk.training.state import TrainState

SEED = 2**33  # the same rows in every look, so that looks differ by training alone
# Row i of a seed is row 0 of seed + i: evaluation, whose seeds are small, must have none of the rows that a run was
# stopped or repaired by.
_REAL_ROWS = 5000  # of the train split, that samples are held against


@dataclass(frozen=True, slots=True)
class Watch:
    """A recipe's monitor on its data; ``features`` is the network that tells samples apart, None: their elements."""

    monitor: Monitor
    reference: CollapseReference
    run_samples: int  # training samples of the whole run
    features: Model | None = None

    @classmethod
    def over(
        cls,
        monitor: Monitor,
        data: Prepared,
        run_samples: int,
        features: Model | None = None,
        keep_labels: Sequence[int] = (),
    ) -> "Watch":
        """The monitor of a run on ``data``, or some classes of it; where modes are known, they are what is counted."""
        source, modes = keep(data.source("train"), keep_labels), data.record.modes
        real = source.batch(SEED, 0, min(len(source), _REAL_ROWS)).x
        if isinstance(modes, Mixture):
            centres = torch.tensor(modes.centres, dtype=torch.float64)
            return cls(monitor, reference_of_modes(real.flatten(1), centres, modes.std), run_samples)
        bins = monitor.samples // 10  # ten samples for each, or none can be found missing
        reference = reference_of_clusters(_described(real, features), generator("monitor"), bins)
        return cls(monitor, reference, run_samples, features)

    def look(self, state: TrainState, logs: Mapping[str, float]) -> Alarm | None:
        """Look at ``state`` as it would be served, with the ``logs`` since the look before; note what is seen in it.

        An alarm is given once: later looks are judged by what came after it.
        """
        measures = self.measures(state.served())
        seen = Look(state.samples_seen, measures, dict(logs))
        looks = [*since_alarm(state.looks), seen]
        alarm = verdict(looks, self.monitor.alarm, self.run_samples, state.changed_at)
        state.looks.append({**asdict(seen), "alarm": None if alarm is None else asdict(alarm)})
        return alarm

    def measures(self, model: Model) -> CollapseMeasures | None:
        """Of samples drawn now; None of a model that draws none."""
        if "sample" not in model.tasks.starts:
            return None
        drawn = as_shown(sampling.sample(model, self.monitor.samples, SEED), model.spec)
        described = _described(drawn, self.features)
        # Samples that are not finite lie in one place, where many of them are a collapse.
        finite = described.isfinite().all(1, keepdim=True)
        return collapse_measures(self.reference, torch.where(finite, described, 0.0))


def _described(x: Tensor, features: Model | None) -> Tensor:
    """What tells samples apart. (N, *) -> (N, D)"""
    return x.flatten(1).float() if features is None else encoded(features, x)


def since_alarm(looks: Sequence[Mapping[str, Any]]) -> list[Look]:
    """The looks after the last that gave an alarm."""
    last = max((index for index, look in enumerate(looks) if look["alarm"]), default=-1)
    return [_look(look) for look in looks[last + 1 :]]


def _look(noted: Mapping[str, Any]) -> Look:
    measures = noted["measures"]
    return Look(noted["samples_seen"], None if measures is None else CollapseMeasures(**measures), noted["logs"])


def alarms(looks: Sequence[Mapping[str, Any]]) -> tuple[Alarm, ...]:
    """Every alarm of a run."""
    return tuple(Alarm(**look["alarm"]) for look in looks if look["alarm"])


def unjudged(state: TrainState, monitor: Monitor, run_samples: int) -> str | None:
    """Why nobody knows whether the settings that changed after an alarm helped; None: they were judged."""
    after = monitor.alarm.judged_after(run_samples, state.changed_at)
    judged = sum(look["samples_seen"] > after for look in state.looks)
    if not state.changed_at or judged >= monitor.alarm.looks:
        return None
    return (
        f"after an alarm its settings changed at {state.changed_at:,} samples, and {judged} looks after "
        f"{after:,} samples are too few to judge them by"
    )
