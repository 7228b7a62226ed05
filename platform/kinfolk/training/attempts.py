"""Training under a monitor: after an alarm, back to before it began and on with the recipe's next change."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kinfolk.errors import CollapseError
from kinfolk.training.launch import Listener, Outcome, launch
from kinfolk.training.worker import Job


def train(
    job: Job,
    *,
    name: str,
    storage: str,
    workers: int = 1,
    use_gpu: bool = False,
    listener: Listener = lambda _: None,
) -> Outcome:
    """As ``launch``, and as often as the recipe has changes to make; each attempt is stored under a name of its own.

    Repeated after a death or a stop it comes to the same attempt: those before end at once, by the alarm they stored.

    Raises:
        CollapseError: the monitor alarmed and there is nothing to change, or nothing more.
    """
    changes = () if job.recipe.monitor is None else job.recipe.monitor.changes
    attempt = job
    for number in range(len(changes) + 1):
        outcome = launch(
            attempt,
            name=attempt_name(name, number),
            storage=storage,
            workers=workers,
            use_gpu=use_gpu,
            listener=listener,
        )
        if outcome.alarm is None:
            return outcome
        if number < len(changes):
            listener(_changing(outcome, number + 1))
            attempt = replace(job, recipe=job.recipe.after(number + 1), start=outcome.alarm.before)
    assert outcome.alarm is not None
    after = f" {len(changes)} changes did not help." if changes else ""
    raise CollapseError(
        f"Training was stopped after {outcome.samples_seen} samples by its monitor: {outcome.alarm.reason}{after} "
        "What it saw, samples and settings are with the run, below alarms/. Change the recipe, or its monitor."
    )


def attempt_name(name: str, number: int) -> str:
    """Where an attempt is stored; the first has the run's own name."""
    return name if number == 0 else f"{name}-change-{number}"


def _changing(outcome: Outcome, number: int) -> Mapping[str, Any]:
    assert outcome.alarm is not None
    before = outcome.alarm.before
    seen = before.values["samples_seen"] if before else 0
    return {"kind": "change", "samples_seen": seen, "number": number, "reason": outcome.alarm.reason}
