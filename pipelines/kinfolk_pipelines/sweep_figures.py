"""What a trial measures of its model at every report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kinfolk.config import Evaluation
from kinfolk.contract import Model
from kinfolk.data.prepared import Prepared
from kinfolk_pipelines.figures import measure

ON_FEATURES = frozenset(  # figures that need the data set's classifier
    {
        "fd_local",
        "fd_local_test",
        "kd_local",
        "precision",
        "recall",
        "density",
        "coverage",
        "pairwise_distance",
        "vendi",
    }
    | {"distance_within_classes", "classes_covered", "class_accuracy"}
)
ON_MODES = frozenset(  # figures that count modes, each in as many samples as its paper says
    {"modes", "mode_samples", "high_quality", "mode_spread", "kl_to_uniform", "kl_floor"}
)


@dataclass(frozen=True, slots=True)
class SweepFigures:
    """Every figure a model can have, on fewer samples; pickled by Ray with the classifier that figures rest on."""

    data: Path
    evaluation: Evaluation  # the recipe's
    samples: int  # that a report rests on
    features: Model | None = None
    learned: Sequence[int] = ()
    count_modes: bool = False  # of data whose modes are known

    def __call__(self, model: Model) -> Mapping[str, float]:
        """The figures by name."""
        evaluation = lighter(self.evaluation, self.samples, model.tasks.log_prob is not None)
        data = _prepared(self.data)
        modes = data.record.modes if self.count_modes else None
        return measure(model, data, evaluation, self.features, learned=self.learned, modes=modes).metrics


@lru_cache(1)
def _prepared(path: Path) -> Prepared:
    """The data set, every byte checked once in a process."""
    return Prepared.open(path)


def lighter(evaluation: Evaluation, samples: int, likelihood: bool) -> Evaluation:
    """``evaluation`` on so many samples, and log-probabilities of at most so many where the model has them."""
    rows = min(evaluation.likelihood_samples or samples, samples) if likelihood else None
    changes = {"samples": samples, "likelihood_samples": rows, "importance_draws": None, "against": None}
    return evaluation.model_copy(update=changes)
