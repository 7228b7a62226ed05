"""Between the driver and Ray Train, without a cluster: what is refused, told, heard, stopped and returned."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from ray.train import TrainingFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from kinfolk.checkpoint import save_checkpoint
from kinfolk.config import Recipe
from kinfolk.data.prepared import Prepared
from kinfolk.errors import ConfigError, DataError, DivergenceError, IntegrityError, KinfolkError
from kinfolk.training import launch as module
from kinfolk.training.launch import _fit, _outcome, _readable, check_workers
from kinfolk.training.mailbox import Mailbox
from kinfolk.training.worker import Job, fresh_state, trained_model


def test_reports_come_out_once_and_in_order():
    mailbox = Mailbox()
    assert [mailbox.put({"at": 1}), mailbox.put({"at": 2})] == [False, False]
    assert mailbox.drain() == [{"at": 1}, {"at": 2}]
    assert mailbox.drain() == []
    mailbox.stop()
    assert mailbox.put({"at": 3}) is True
    assert mailbox.drain() == [{"at": 3}]


@pytest.mark.parametrize(
    ("workers", "gpu", "said"),
    [
        (4, False, None),
        (2, True, None),
        (5, False, r"5 workers want a CPU each; the cluster has 4\. Use --workers 4 or fewer"),
        (3, True, r"3 workers want a GPU each; the cluster has 2\..*leave --gpu out"),
    ],
)
def test_a_cluster_must_hold_the_workers(monkeypatch, workers, gpu, said):
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    if said is None:
        check_workers(workers, gpu)
    else:
        with pytest.raises(ConfigError, match=said):
            check_workers(workers, gpu)


def test_a_cluster_without_gpus_is_named_as_such(monkeypatch):
    monkeypatch.setattr(module.ray, "cluster_resources", dict)
    with pytest.raises(ConfigError, match="the cluster has 0"):
        check_workers(1, False)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(ConfigError, match="a GPU each; the cluster has 0"):
        check_workers(1, True)


@pytest.fixture
def actor(monkeypatch):
    """A mailbox that answers as Ray's actor does, and whether it was put away."""

    def remote(method):
        return SimpleNamespace(remote=method)

    box, killed = Mailbox(), []
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(module.ray, "kill", killed.append)
    monkeypatch.setattr(module, "_POLL_S", 0.005)
    return SimpleNamespace(
        put=box.put, drain=remote(box.drain), stop=remote(box.stop), killed=killed, wanted=lambda: box.put({})
    )


def test_every_report_is_heard_even_the_last(actor):
    heard, before = [], [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def fit():
        for at in range(3):
            actor.put({"at": at})
        while len(heard) < 3:
            time.sleep(0.001)
        actor.put({"at": 3})
        return "result"

    assert _fit(SimpleNamespace(fit=fit), actor, heard.append) == "result"
    assert heard == [{"at": at} for at in range(4)]
    assert actor.killed == [actor]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_ends_the_trainer_is_raised_here_and_readable(actor):
    def fit():
        actor.put({"at": 0})
        raise RuntimeError("no space left")

    heard = []
    with pytest.raises(KinfolkError, match="Training failed: no space left"):
        _fit(SimpleNamespace(fit=fit), actor, heard.append)
    assert heard == [{"at": 0}]
    assert actor.killed == [actor]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_is_the_ordinary_one(actor, number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    during = []

    def fit():
        while not any(part == {"go": 1} for part in during):
            time.sleep(0.001)
        return "result"

    def listen(report):
        if report == {"at": 0}:
            during.append(signal.getsignal(number) is not before[number])
            assert during[0]  # or the signal would end the tests
            signal.raise_signal(number)
            during.append(signal.getsignal(number) is before[number])
            during.append({"go": 1})

    actor.put({"at": 0})
    _fit(SimpleNamespace(fit=fit), actor, listen)
    assert during == [True, True, {"go": 1}]
    assert actor.wanted()
    assert {each: signal.getsignal(each) for each in before} == before


def test_signals_are_left_alone_in_another_thread(actor):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(_fit(SimpleNamespace(fit=lambda: 7), actor, print)))
    thread.start()
    thread.join(10)
    assert ended == [7]


def test_a_failure_is_one_line_with_its_worker():
    trace = RuntimeError("Traceback\n  File x\nValueError: the shard is gone\n\n")
    told = str(_readable(WorkerGroupError("workers died", {1: trace})))
    assert told == "Training failed on worker 1: ValueError: the shard is gone"
    assert "lost" in str(_readable(TrainingFailedError("lost")))
    assert str(_readable(RuntimeError("x"))) == "Training failed: x"


@pytest.fixture
def job(toy, digits):
    training = {"samples": 64, "batch_size": 32, "ema_halflife_samples": 20}
    return Job(Recipe(name="t", family="gaussian", data="digits", training=training), digits.path)


@pytest.fixture
def stored(job, digits, tmp_path):
    """A checkpoint whose average is not its live weights."""
    state = fresh_state(job, digits.spec)
    state.samples_seen = 64
    for value in state.ema.average.values():
        value.fill_(0.5)
    save_checkpoint(tmp_path / "state", state.snapshot())
    return tmp_path / "state"


def test_a_checkpoint_serves_its_averaged_weights(job, stored):
    module = trained_model(job, stored).module
    assert all(bool((value == 0.5).all()) for value in module.state_dict().values())
    assert not module.training


def test_a_damaged_last_checkpoint_is_told(job, stored):
    path = stored / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KinfolkError, match=r"state\.safetensors"):
        trained_model(job, stored)


@pytest.mark.parametrize(
    ("kind", "error"),
    [(kind.__name__, kind) for kind in (ConfigError, DataError, DivergenceError, IntegrityError)]
    + [("X", KinfolkError)],
)
def test_an_error_that_a_worker_returned_is_raised_as_what_it_is(job, kind, error):
    result = SimpleNamespace(error=None, return_value={"error": kind, "message": "what happened"})
    with pytest.raises(error, match="what happened") as caught:
        _outcome(job, result)
    assert type(caught.value) is error


WHOLE = {"samples_seen": 64, "interrupted": False, "alarm": None, "alarms": ["alike"]}


def test_a_result_is_the_model_and_an_interrupted_one_is_none(job, stored):
    checkpoint = SimpleNamespace(path="s3://runs/x", to_directory=lambda _: str(stored))
    ended = SimpleNamespace(error=None, checkpoint=checkpoint, return_value=WHOLE)
    outcome = _outcome(job, ended)
    assert outcome.alarms == ("alike",)
    assert outcome.alarm is None
    assert (outcome.samples_seen, outcome.interrupted, outcome.checkpoint) == (64, False, "s3://runs/x")
    assert torch.equal(outcome.model.module.mean, torch.full((1, 8, 8), 0.5))
    ended.return_value = {**WHOLE, "samples_seen": 32, "interrupted": True}
    outcome = _outcome(job, ended)
    assert (outcome.model, outcome.samples_seen, outcome.interrupted) == (None, 32, True)
    ended.error = RuntimeError("a node is gone")
    with pytest.raises(KinfolkError, match="a node is gone"):
        _outcome(job, ended)


def test_an_alarm_leads_back_to_the_newest_checkpoint_from_before_it_began(job, tmp_path):
    def kept(seen):
        state = fresh_state(job, Prepared.open(job.data).spec)
        state.samples_seen = seen
        save_checkpoint(tmp_path / str(seen), state.snapshot())
        return SimpleNamespace(path=str(seen), to_directory=lambda _: str(tmp_path / str(seen))), {"samples_seen": seen}

    checkpoints = [kept(seen) for seen in (10, 20, 30, 40)]
    ending = {**WHOLE, "alarm": {"reason": "alike", "began": 30}}
    ended = SimpleNamespace(
        error=None, checkpoint=checkpoints[-1][0], return_value=ending, best_checkpoints=checkpoints
    )
    outcome = _outcome(job, ended)
    assert outcome.model is None
    assert outcome.alarm.reason == "alike"
    assert outcome.alarm.before.values["samples_seen"] == 20
    ended.best_checkpoints = checkpoints[2:]
    assert _outcome(job, ended).alarm.before is None
