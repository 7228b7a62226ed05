"""Training of one job on Ray: 1 to N workers, retries after a worker's death, a clean stop, the trained model."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinfolk.checkpoint import Snapshot, newest_good
from kinfolk.contract import Model
from kinfolk.errors import ConfigError, DataError, DivergenceError, IntegrityError, KinfolkError
from kinfolk.signals import first_signal
from kinfolk.training.lookout import kept_checkpoints
from kinfolk.training.loop import check_batch
from kinfolk.training.mailbox import Mailbox
from kinfolk.training.stored import each_fetched, fetched
from kinfolk.training.worker import Job, run_worker, trained_model

_POLL_S = 0.5  # between two looks at the mailbox; each costs the workers' machine some milliseconds
_RETRIES = 3  # of a training whose worker died, from its last checkpoint
_STARTS_WITHOUT_WORKERS = 2  # attempts at starting the worker group before giving up
Listener = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that its monitor's alarm ended."""

    reason: str
    before: Snapshot | None  # the newest checkpoint from before it began; None: there is none


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch ended."""

    model: Model | None  # None when it was interrupted, or an alarm ended it
    samples_seen: int
    interrupted: bool
    checkpoint: str  # the last one stored
    alarms: tuple[str, ...] = ()  # why its monitor alarmed
    alarm: Ended | None = None  # the one that ended it


def check_workers(workers: int, use_gpu: bool) -> None:
    """Refuse more workers, of a CPU each, than the cluster can ever hold, where Ray would wait for ever.

    Raises:
        ConfigError: with what the cluster has.
    """
    have = ray.cluster_resources()
    if workers > (cpus := int(have.get("CPU", 0))):
        raise ConfigError(
            f"{workers} workers want a CPU each; the cluster has {cpus}. Use --workers {max(cpus, 1)} or fewer."
        )
    if use_gpu and workers > have.get("GPU", 0):
        raise ConfigError(
            f"{workers} workers want a GPU each; the cluster has {have.get('GPU', 0):g}. Use fewer --workers, or leave "
            "--gpu out to train on CPUs."
        )


def launch(
    job: Job,
    *,
    name: str,
    storage: str,
    workers: int = 1,
    use_gpu: bool = False,
    listener: Listener = lambda _: None,
) -> Outcome:
    """Train ``job`` to its end, going on from whatever was stored under (storage, name) before.

    ``listener`` is called in this process for every report, in order; a preview may come after later logs. SIGINT and
    SIGTERM stop at the next report, after a checkpoint; calling again goes on from there.

    Raises:
        ConfigError: the batch does not divide, or the cluster is too small.
        DivergenceError: the loss stayed not finite.
        KinfolkError: workers died more than three times, or found bad data.
    """
    check_batch(job.recipe.training, workers)
    check_workers(workers, use_gpu)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()  # lives and dies with the driver
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job, "mailbox": mailbox},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=_RETRIES, controller_failure_limit=_STARTS_WITHOUT_WORKERS),
            checkpoint_config=CheckpointConfig(num_to_keep=kept_checkpoints(job.recipe)),
        ),
    )
    result = _fit(trainer, mailbox, listener)
    return _outcome(job, result)


def _fit(trainer: TorchTrainer, mailbox: Any, listener: Listener) -> Result:
    """Run the trainer in a thread, so signals and reports are this thread's; a listener that fails stops training."""
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["result"] = trainer.fit()
        except Exception as error:
            box["error"] = error

    thread = threading.Thread(target=work, name="kinfolk-fit", daemon=True)
    try:
        with first_signal(lambda: mailbox.stop.remote()):
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_S)
                for report in ray.get(mailbox.drain.remote()):
                    listener(report)
        for report in ray.get(mailbox.drain.remote()):
            listener(report)
    except Exception:
        mailbox.stop.remote()
        thread.join()
        raise
    finally:
        ray.kill(mailbox)
    if error := box.get("error"):
        raise _readable(error) from error
    return box["result"]


def _readable(error: Exception) -> KinfolkError:
    if isinstance(error, TrainingFailedError):
        causes = getattr(error, "worker_failures", None) or {0: error}
        rank, cause = next(iter(causes.items()))
        lines = [line for line in str(cause).splitlines() if line.strip()]
        return KinfolkError(f"Training failed on worker {rank}: {lines[-1] if lines else repr(cause)}")
    return KinfolkError(f"Training failed: {error}")


def _outcome(job: Job, result: Result) -> Outcome:
    if result.error is not None:
        raise _readable(result.error) from result.error
    ended = result.return_value or {}
    if "error" in ended:
        kinds = {kind.__name__: kind for kind in (ConfigError, DataError, DivergenceError, IntegrityError)}
        raise kinds.get(ended["error"], KinfolkError)(ended["message"])
    assert result.checkpoint is not None
    stored = result.checkpoint.path
    seen, warned = ended["samples_seen"], tuple(ended["alarms"])
    if ended["interrupted"]:
        return Outcome(None, seen, True, stored, warned)
    if alarm := ended["alarm"]:
        return Outcome(None, seen, False, stored, warned, Ended(alarm["reason"], _before(result, alarm["began"])))
    with fetched(result.checkpoint) as folder:
        return Outcome(trained_model(job, folder), seen, False, stored, warned)


def _before(result: Result, began: int) -> Snapshot | None:
    """The newest kept checkpoint of fewer than ``began`` samples."""
    kept = [(metrics["samples_seen"], checkpoint) for checkpoint, metrics in result.best_checkpoints or []]
    before = sorted((each for each in kept if each[0] < began), key=lambda each: -each[0])
    snapshot, _ = newest_good(each_fetched(checkpoint for _, checkpoint in before))
    return snapshot
