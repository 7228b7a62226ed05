"""A sweep of the toy family on ``ring``: small enough that a trial takes a fraction of a second."""

import kinfolk_toy
import pytest

from kinfolk.config import Recipe
from kinfolk.data.catalogue import prepare
from kinfolk.tuning.sweep import Sweep, pace
from kinfolk.tuning.trial import Work

BASE = {
    "name": "blob",
    "family": "gaussian",
    "data": "ring",
    "training": {"samples": 1280, "batch_size": 32, "ema_halflife_samples": 200},
}
SWEEP = {
    "name": "test",
    "recipe": "ring/blob",
    "space": {"model.optimizer.lr": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1}},
    "trials": 4,
    "parallel": 2,
    "report_every_samples": 160,
    "objective": {"metric": "width", "mode": "min"},
}


@pytest.fixture(scope="session")
def ring(tmp_path_factory):
    """The prepared ``ring`` data set."""
    return prepare("ring", tmp_path_factory.mktemp("ring") / "ring")


@pytest.fixture
def work_of(ring, tmp_path, toy):
    """What the trials of a sweep with these entries have in common."""

    def make(**changes):
        sweep = Sweep.model_validate({**SWEEP, **changes})
        rate = pace(sweep, Recipe.model_validate(BASE))
        return Work(sweep, BASE, rate, ring.path, str(tmp_path / "storage"), kinfolk_toy.figures)

    return make
