"""What do fewer steps cost? ``fd_local`` of a consistency model in 1, 2 and 4 steps beside its teacher's Heun 18.

Measured as `kinfolk evaluate` does: Fréchet distance to the train split on the features of the data set's registered
classifier, as many samples of each class (which count as often as the data has them), speed in batches of 64.
Two steps go through the level of the student's own sampler, or another that is given.
Run after training: python pipelines/benchmarks/consistency_quality.py mnist-ect mnist-edm [SAMPLES [SEED [LEVEL]]]
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from kinfolk.config import Evaluation
from kinfolk.contract import Model
from kinfolk.errors import ConfigError
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.figures import measure
from kinfolk_pipelines.models import Loaded, feature_model, load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings

SAMPLES = 5000
SEED = 1  # that of `kinfolk evaluate`
HEUN = {"solver": "heun", "steps": 18}
HEAD = "| model | steps | evaluations | fd_local | times the teacher's | as asked | samples/s | times the teacher's |"


def rows(student: Loaded, teacher: Loaded, level: float) -> Iterator[tuple[str, Model, dict[str, Any]]]:
    """What is measured: name and steps, the model, its options; the teacher first. ``level`` is that of two steps."""
    yield f"{teacher.version.reference} | Heun 18", teacher.model, HEUN
    for sigmas in ((), (level,), (5.0, level, level / 4)):
        through = " through " + ", ".join(map(str, sigmas)) if sigmas else ""
        yield f"{student.version.reference} | {1 + len(sigmas)}{through}", student.model, {"sigmas": sigmas}


def evaluation_of(model: Model, samples: int, options: Mapping[str, Any]) -> Evaluation:
    """As many samples as asked, and as little of a likelihood as there can be."""
    return Evaluation(samples=samples, options=dict(options), likelihood_samples=1 if model.tasks.log_prob else None)


@plain_mistakes
def main(
    student_name: str, teacher_name: str, samples: int = SAMPLES, seed: int = SEED, level: float | None = None
) -> None:
    """Print a row for the teacher and one for each number of steps."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    student, teacher = load_model(settings, student_name), load_model(settings, teacher_name)
    learned, taught = student.version.lineage.data, teacher.version.lineage.data
    if learned != taught:
        raise ConfigError(
            f"{student_name} learned {learned}, {teacher_name} {taught}. Name two models of one data set."
        )
    data, features = open_dataset(settings, learned).prepared, feature_model(settings, learned)
    own = student.model.tasks.options.model_dump().get("sigmas")
    if own is None:
        raise ConfigError(f"{student_name} is no consistency model: it has no levels between steps.")
    if level is None and len(own) != 1:
        raise ConfigError(
            f"{student_name} draws in {1 + len(own)} steps by itself. Name the level of the second of two."
        )
    print(f"{HEAD}\n{'|---' * HEAD.count(' | ')}|---|")
    first: Mapping[str, float] = {}
    for name, model, options in rows(student, teacher, level or own[0]):
        evaluation = evaluation_of(model, samples, options)
        found = measure(model, data, evaluation, features.model, seed).metrics
        first = first or found
        worse, faster = (found[key] / first[key] for key in ("fd_local", "samples_per_second"))
        print(
            f"| {name} | {found['nfe']:.0f} | {found['fd_local']:.3f} | {worse:.2f} | "
            f"{found.get('class_accuracy', float('nan')):.1%} | {found['samples_per_second']:.1f} | {faster:.1f} |",
            flush=True,
        )
    floor = f"the test split is at {first['fd_local_test']:.3f}"
    print(f"\n{samples} samples, seed {seed}, features of {features.version.reference}; {floor}.")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), *map(float, sys.argv[5:]))
