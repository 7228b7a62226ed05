"""What a recipe says of its monitor: when it looks, and what an alarm does. Any family can have one."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config
from kinfolk.dotted import value_at, with_value
from kinfolk.errors import ConfigError
from kinfolk.metrics.alarm import AlarmConfig


class Change(Config):
    """What is done otherwise once training has gone back; keys are dotted paths into the recipe."""

    put: dict[str, Any] = Field(default_factory=dict)  # values in place of others, e.g. model.packing: 2
    multiply: dict[str, float] = Field(default_factory=dict)  # factors of numbers, e.g. model.penalties.0.gamma: 3
    new_seed: bool = False  # another order of the data and other noise

    @model_validator(mode="after")
    def _changes_something(self) -> "Change":
        if not (self.put or self.multiply or self.new_seed):
            raise ValueError("a change that changes nothing would end as before; give put, multiply or new_seed")
        return self

    def applied(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """``recipe`` with this change.

        Raises:
            ConfigError: a path leads nowhere, or to no number where one is multiplied.
        """
        changed = dict(recipe)
        for path, value in self.put.items():
            changed = with_value(changed, path, value)
        for path, factor in self.multiply.items():
            before = value_at(changed, path)
            if isinstance(before, bool) or not isinstance(before, int | float):
                raise ConfigError(f"{path} is {before!r}, which cannot be multiplied by {factor:g}. Use put instead.")
            changed = with_value(changed, path, before * factor)
        return {**changed, "seed": changed["seed"] + 1} if self.new_seed else changed


class Monitor(Config):
    """Looks at samples and logs during training. An alarmed version is never promoted."""

    every_samples: int | None = Field(None, gt=0)  # training samples between two looks; None: 20 looks in a run
    samples: int = Field(1000, ge=100)  # drawn at each look, from the same seeds
    alarm: AlarmConfig = AlarmConfig()  # what counts as collapse
    act: Literal["warn", "stop", "change"] = "warn"  # change: go back to before it began, and go on otherwise
    changes: tuple[Change, ...] = ()  # the first after the first alarm, the second on top of it after the second, ...

    def idle(self) -> dict[str, str]:
        """What would be changed."""
        return {} if self.act == "change" else {"changes": "act=change"}

    def every(self, run_samples: int, batch_size: int) -> int:
        """Training samples between two looks in a run of so many, at least one batch."""
        return self.every_samples or max(run_samples // 20, batch_size)

    def check(self, run_samples: int, batch_size: int) -> None:
        """Refuse a monitor that could not alarm in a run of so many samples.

        Raises:
            ConfigError: with how many looks there are, and how many it takes.
        """
        every, grace, needed = self.every(run_samples, batch_size), self.alarm.grace(run_samples), self.alarm.looks
        end = -(-run_samples // batch_size) * batch_size
        looks = {-(-due // batch_size) * batch_size for due in range(every, end, every)} | {end}  # after whole batches
        judged = sum(seen > grace for seen in looks)
        if judged < needed:
            raise ConfigError(
                f"monitor: {judged} looks, every {max(every, batch_size)} samples, come after the {grace} samples of "
                f"grace in a run of {run_samples}, and an alarm takes {needed}. It could never be given: lower "
                "monitor.every_samples, training.batch_size, monitor.alarm.grace_samples or monitor.alarm.looks, or "
                "train for longer."
            )

    @model_validator(mode="after")
    def _has_changes(self) -> "Monitor":
        if self.act == "change" and not self.changes:
            raise ValueError("act=change needs changes, one for each alarm that training shall go on after")
        return self

    def changed(self, recipe: Mapping[str, Any], alarms: int) -> dict[str, Any]:
        """``recipe`` as it is trained after so many alarms.

        Raises:
            ConfigError: a change does not fit the recipe.
        """
        values = dict(recipe)
        for change in self.changes[:alarms]:
            values = change.applied(values)
        return values
