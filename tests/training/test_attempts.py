"""Training that goes back and changes, without Ray: a launch of toys stands in."""

from dataclasses import dataclass, field

import pytest

from kinfolk.checkpoint import Snapshot
from kinfolk.config import Recipe
from kinfolk.errors import CollapseError
from kinfolk.training import attempts
from kinfolk.training.launch import Ended, Outcome
from kinfolk.training.worker import Job

BEFORE = Snapshot({}, {"samples_seen": 40})


@dataclass
class Launches:
    """Answers in turn, each the outcome of a launch; keeps what was launched."""

    outcomes: list
    jobs: list = field(default_factory=list)
    names: list = field(default_factory=list)

    def __call__(self, job, *, name, **_):
        self.jobs.append(job)
        self.names.append(name)
        return self.outcomes.pop(0)


def alarmed(before=BEFORE):
    return Outcome(None, 80, False, "stored", ("alike",), Ended("Samples are alike.", before))


TRAINED = Outcome("model", 100, False, "stored")


@pytest.fixture
def run(tmp_path, monkeypatch):
    def train(changes, *outcomes):
        monitor = {"act": "change", "changes": changes} if changes else {"act": "stop"}
        recipe = Recipe(name="r", family="gaussian", data="d", seed=5, training={"samples": 100}, monitor=monitor)
        launched, heard = Launches(list(outcomes)), []
        monkeypatch.setattr(attempts, "launch", launched)
        try:
            return attempts.train(Job(recipe, tmp_path), name="run", storage="s", listener=heard.append)
        finally:
            train.jobs, train.names, train.heard = launched.jobs, launched.names, heard

    return train


CHANGES = [{"put": {"model.shrink": 0.5}}, {"put": {"model.shrink": 0.0}, "new_seed": True}]


def test_without_an_alarm_there_is_one_attempt_of_the_recipe_as_it_is(run):
    assert run(CHANGES, TRAINED) is TRAINED
    assert run.names == ["run"]
    assert run.jobs[0].recipe.model == {}
    assert run.jobs[0].start is None


def test_each_alarm_goes_back_to_before_it_began_and_on_with_the_next_change(run):
    assert run(CHANGES, alarmed(), alarmed(None), TRAINED) is TRAINED
    assert run.names == ["run", "run-change-1", "run-change-2"]
    assert [job.recipe.model for job in run.jobs] == [{}, {"shrink": 0.5}, {"shrink": 0.0}]
    assert [job.recipe.seed for job in run.jobs] == [5, 5, 6]
    assert [job.start for job in run.jobs] == [None, BEFORE, None]
    assert [(each["kind"], each["samples_seen"], each["number"]) for each in run.heard] == [
        ("change", 40, 1),
        ("change", 0, 2),
    ]


def test_after_the_last_change_an_alarm_is_the_end(run):
    with pytest.raises(CollapseError, match=r"after 80 samples .*: Samples are alike\. 2 changes did not help"):
        run(CHANGES, alarmed(), alarmed(), alarmed())
    with pytest.raises(CollapseError, match=r"Samples are alike\. What it saw"):
        run([], alarmed())


def test_a_stop_in_any_attempt_is_a_stop(run):
    interrupted = Outcome(None, 60, True, "stored")
    assert run(CHANGES, alarmed(), interrupted) is interrupted
