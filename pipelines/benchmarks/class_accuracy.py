"""Are samples of class-conditional models what was asked for, by the judgement of an SVM that never saw them?

An RBF support vector machine on pixels is fitted to the train split; each model draws 100 samples of every class.
Run after training: python pipelines/benchmarks/class_accuracy.py digits-edm digits-conditional-vae digits-dcgan
"""

import sys

import numpy as np
import torch
from sklearn.svm import SVC

from kinfolk import sampling
from kinfolk.errors import ConfigError
from kinfolk.judge import as_shown
from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.datasets import open_dataset
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings

PER_CLASS = 100


def flat(x: torch.Tensor) -> np.ndarray:
    """Pixels as one vector a picture, as scikit-learn wants them. (N, *) -> (N, D)"""
    return x.flatten(1).numpy()


@plain_mistakes
def main(references: list[str]) -> None:
    """Fit the judge and print a row for each model."""
    apply_environment(mlflow_environment())
    settings = load_settings()
    data = open_dataset(settings, "digits").prepared
    train, test = (data.source(split) for split in ("train", "test"))
    fit, held_out = train.take(0, len(train)), test.take(0, len(test))
    assert fit.label is not None
    assert held_out.label is not None
    judge = SVC(kernel="rbf", gamma="scale", C=10).fit(flat(fit.x), fit.label.numpy())
    print(f"SVM on the test split: {judge.score(flat(held_out.x), held_out.label.numpy()):.4f}\n")
    print("| model | samples | classified as asked | worst class | classes covered |\n|---|---|---|---|---|")
    for reference in references:
        loaded = load_model(settings, reference)
        if "label" not in loaded.model.tasks.conditions:
            raise ConfigError(f"{loaded.version.reference} is not class-conditional: nothing can be asked of it.")
        labels = torch.arange(10).repeat_interleave(PER_CLASS)
        x = as_shown(sampling.sample(loaded.model, len(labels), 10_000, labels.tolist()), data.spec)
        found = torch.from_numpy(judge.predict(flat(x)))
        right = (found == labels).double().view(10, PER_CLASS).mean(1)
        covered = len(found.unique())
        worst = f"{right.min():.0%} ({int(right.argmin())})"
        print(f"| {loaded.version.reference} | {len(labels)} | {right.mean():.1%} | {worst} | {covered} |")


if __name__ == "__main__":
    main(sys.argv[1:])
