"""Training on Ray Train: deaths, stops, damage and mistakes, each ending in the bits of an undisturbed run."""

import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import torch

from kinfolk.checkpoint import load_checkpoint
from kinfolk.config import Recipe
from kinfolk.errors import ConfigError, DivergenceError

pytestmark = pytest.mark.usefixtures("ray_cluster", "toy")

STEPS, BATCH = 60, 32


def recipe(family="gaussian", model=None, **training):
    plan = {"samples": STEPS * BATCH, "batch_size": BATCH, "ema_halflife_samples": 200, "log_every_samples": BATCH}
    plan |= {"checkpoint_every_samples": 10 * BATCH, **training}
    return Recipe(name="test", family=family, data="digits", training=plan, model=model or {})


def train(digits, storage, wanted, name="run", workers=2, **more):
    from kinfolk.training.launch import launch
    from kinfolk.training.worker import Job

    return launch(Job(wanted, digits.path), name=name, storage=str(storage), workers=workers, **more)


def state_of(outcome):
    return load_checkpoint(Path(outcome.checkpoint))


def assert_same_bits(one, other):
    a, b = state_of(one), state_of(other)
    assert a.values == b.values
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory, ray_cluster, toy_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_folder))
        return train(digits, tmp_path_factory.mktemp("runs"), recipe())


def train_workers():
    return [child for child in psutil.Process().children(recursive=True) if "RayTrainWorker" in command(child)]


def command(process):
    try:
        return "".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended since, or not yet waited for
        return ""


def test_a_killed_worker_costs_no_bit(digits, tmp_path, undisturbed):
    # A worker past its second checkpoint has had its first one noted; one that died before would rightly start anew.
    moment = random.randrange(21, 35) * BATCH
    killed, resumed_at = [], []

    def kill_one(report):
        if report["kind"] == "start":
            resumed_at.append(report["samples_seen"])
        if not killed and report["samples_seen"] >= moment:
            killed.append(random.choice(train_workers()).pid)
            os.kill(killed[0], signal.SIGKILL)

    outcome = train(digits, tmp_path, recipe(), listener=kill_one)
    assert len(resumed_at) == 2
    assert 10 * BATCH <= resumed_at[1] < STEPS * BATCH
    assert_same_bits(outcome, undisturbed)


def test_a_stop_keeps_every_step_and_a_damaged_checkpoint_is_passed_over(digits, tmp_path, undisturbed):
    sent = []

    def stop(report):
        if report["samples_seen"] >= 25 * BATCH and not sent:
            sent.append(signal.raise_signal(signal.SIGINT))

    stopped = train(digits, tmp_path, recipe(), listener=stop)
    assert stopped.interrupted
    assert stopped.model is None
    assert 25 * BATCH <= stopped.samples_seen < STEPS * BATCH
    assert state_of(stopped).values["samples_seen"] == stopped.samples_seen

    weights = Path(stopped.checkpoint) / "state.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    starts = []
    resumed = train(digits, tmp_path, recipe(), listener=lambda r: starts.append(r) if r["kind"] == "start" else None)
    assert "state.safetensors was altered" in starts[0]["problems"][0]
    assert 0 < starts[0]["samples_seen"] < stopped.samples_seen
    assert_same_bits(resumed, undisturbed)


def test_a_listener_that_fails_stops_the_training(digits, tmp_path):
    def fail(report):
        if report["kind"] == "log":
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        train(digits, tmp_path, recipe(samples=10**7), listener=fail, workers=1)
    _, alive = psutil.wait_procs(train_workers(), timeout=10)  # the system takes a moment to end them
    assert not alive


def test_one_worker_and_two_agree(digits, tmp_path):
    wanted = recipe(
        family="autoencoder",
        model={"objective": {"kind": "reconstruction"}},
        samples=50 * 32,
        log_every_samples=3200,
        checkpoint_every_samples=3200,
    )
    one, two = (train(digits, tmp_path, wanted, name=f"w{n}", workers=n) for n in (1, 2))
    a, b = state_of(one), state_of(two)
    assert a.values["step"] == 50
    names = [name for name in a.tensors if name.startswith(("model.", "ema."))]
    assert names
    assert max(float((a.tensors[name] - b.tensors[name]).abs().max()) for name in names) < 1e-5
    assert any(not torch.equal(a.tensors[name], b.tensors[name]) for name in names)  # two really shared the work


def test_divergence_is_told_in_one_paragraph_and_not_retried(digits, tmp_path):
    starts = []
    wanted = recipe(model={"optimizer": {"kind": "sgd", "lr": 1e6}}, divergence_retries=1)
    with pytest.raises(DivergenceError, match="1 roll-backs"):
        train(digits, tmp_path, wanted, listener=lambda r: starts.append(r) if r["kind"] == "start" else None)
    assert len(starts) == 1


def test_more_workers_than_cpus_are_refused_before_anything_starts(digits, tmp_path):
    with pytest.raises(ConfigError, match=r"9 workers .* the cluster has 4"):
        train(digits, tmp_path, recipe(batch_size=36), workers=9)
    assert not list(tmp_path.iterdir())


def test_weights_to_start_from_are_started_from(digits, tmp_path, undisturbed):
    from kinfolk.training.launch import launch
    from kinfolk.training.worker import Job

    initial = dict(undisturbed.model.module.state_dict())
    wanted = recipe(model={"optimizer": {"lr": 1e-9}}, samples=BATCH, ema_halflife_samples=0)
    tuned = launch(Job(wanted, digits.path, initial=initial), name="tune", storage=str(tmp_path))
    for name, value in tuned.model.module.state_dict().items():
        assert torch.allclose(value, initial[name], atol=1e-6)


def test_after_an_alarm_training_goes_back_and_on_with_the_change_and_again_after_a_death_of_the_driver(
    digits, tmp_path
):
    """Its deviations shrink until the monitor alarms; then they may grow. Once more, nothing is trained again."""
    from kinfolk.training import attempts
    from kinfolk.training.worker import Job

    recovering = {"kind": "rmsprop", "lr": 0.05}  # without Adam's memory of the gradients that made it collapse
    monitor = {
        "every_samples": 5 * BATCH,
        "samples": 100,
        "alarm": {
            "grace_samples": 10 * BATCH,
            "looks": 2,
            "limits": {"missing": None, "effective_bins": None, "support_share": None},
        },
        "act": "change",
        "changes": [{"put": {"model.shrink": 0.0, "model.optimizer": recovering}, "new_seed": True}],
    }
    collapsing = recipe(model={"shrink": 1000.0, "optimizer": {"lr": 0.1}})
    watched = Recipe.model_validate({**collapsing.model_dump(), "monitor": monitor})
    heard = []

    def train_watched():
        heard.clear()
        job = Job(watched, digits.path)
        return attempts.train(job, name="watched", storage=str(tmp_path), listener=heard.append)

    first = train_watched()
    kinds = [report["kind"] for report in heard]
    alarm = heard[kinds.index("alarm")]["samples_seen"]
    (change,) = [report for report in heard if report["kind"] == "change"]
    assert 0 < change["samples_seen"] <= alarm - 2 * 5 * BATCH + 10 * BATCH
    assert "mean distance of two samples" in change["reason"]
    assert first.samples_seen == STEPS * BATCH
    assert first.alarms == ()
    again = train_watched()
    assert [report["kind"] for report in heard] == ["start", "alarm", "change", "start"]
    assert_same_bits(first, again)
