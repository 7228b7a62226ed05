"""A model in training: everything that changes from step to step, and how it is built, stored and gone on from."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, optim

from kinfolk.checkpoint import Snapshot
from kinfolk.config import Training
from kinfolk.contract import Config, DataSpec, Derived, Family, Model, Phase
from kinfolk.ema import Ema, derive
from kinfolk.errors import ConfigError
from kinfolk.rng import seeded_initialisation
from kinfolk.step import make_optimizer, optimizer_slots, trainable
from kinfolk.training.means import Means


@dataclass(slots=True)
class TrainState:
    """A model in training: everything that changes from step to step."""

    model: Model
    phases: Sequence[Phase]
    optimizers: Mapping[str, optim.Optimizer]
    ema: Ema | None
    samples_seen: int = 0
    step: int = 0
    tuned: bool = False  # started from trained weights, which no data shall initialise again
    rollbacks: int = 0  # part of the noise's key, so that a second try draws other noise
    looks: list[dict[str, Any]] = field(default_factory=list)  # what a monitor saw so far; JSON
    watched: Means = field(default_factory=Means)  # logs since its last look
    changed_at: int = 0  # samples seen when its settings last changed

    def served(self) -> Model:
        """The model as it would be evaluated and served now: averaged weights, frozen, in eval mode."""
        ema = self.ema or Ema(self.model.module, 0, 1)
        return Model(
            self.model.family, self.model.config, self.model.spec, ema.averaged(self.model.module), self.model.parents
        )

    def snapshot(self) -> Snapshot:
        """A copy of the state on the CPU."""
        tensors = {f"model.{name}": value for name, value in self.model.module.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        for phase, optimizer in self.optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{phase}.{index}.{name}": value for name, value in slots.items()}
        copies = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        values = {"samples_seen": self.samples_seen, "step": self.step, "rollbacks": self.rollbacks}
        values |= {"changed_at": self.changed_at}
        return Snapshot(copies, {**values, "looks": copy.deepcopy(self.looks), "watched": self.watched.numbers()})

    def load(self, snapshot: Snapshot) -> None:
        """Go back, or on, to ``snapshot``."""
        self.model.module.load_state_dict(snapshot.part("model"))
        if self.ema is not None:
            self.ema.load(snapshot.part("ema"))
        for phase, optimizer in self.optimizers.items():
            _load_optimizer(optimizer, snapshot.part(f"optimizer.{phase}"))
        self.samples_seen, self.step = snapshot.values["samples_seen"], snapshot.values["step"]
        self.rollbacks, self.looks = snapshot.values["rollbacks"], copy.deepcopy(snapshot.values["looks"])
        self.watched, self.changed_at = Means(snapshot.values["watched"]), snapshot.values["changed_at"]

    def adopt(self, snapshot: Snapshot) -> None:
        """Go on, before the first step, from a snapshot of a model with other settings: what fits is taken over.

        An optimiser is taken over if all its parameters are and it keeps the same of each, and starts anew otherwise.
        An average that is new starts at the weights. Buffers that follow from parameters do so anew, as those of one
        part may come from both. What a monitor saw was of the other settings, and is left behind.
        """
        own, weights = self.snapshot().tensors, snapshot.part("model")
        given = {f"ema.{name}": value for name, value in weights.items()} | dict(snapshot.tensors)
        fits = {name for name, value in own.items() if name in given and given[name].shape == value.shape}
        names = {id(value): f"model.{name}" for name, value in self.model.module.named_parameters()}
        kept = {name: given[name] if name in fits else value for name, value in own.items()}
        for phase in self.phases:
            start, parameters = f"optimizer.{phase.name}.", trainable(phase.module)
            slots = {name: value for name, value in given.items() if name.startswith(start)}
            each = [name.removeprefix(start).partition(".") for name in slots]
            whole = len({index for index, *_ in each}) == len(parameters)
            alike = {slot for *_, slot in each} == optimizer_slots(phase.optimizer)
            if whole and alike and all(names[id(value)] in fits for value in parameters):
                kept |= slots
        anew = {"looks": [], "watched": {}, "changed_at": snapshot.values["samples_seen"]}
        self.load(Snapshot(kept, {**snapshot.values, **anew}))
        derive(self.model.module)


def buffers(model: Model) -> dict[str, Tensor]:
    """What is stored of a model beside its parameters and what follows from them."""
    known = {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
    for place, part in model.module.named_modules():
        own = {f"{place}.{name}".lstrip(".") for name, _ in part.named_buffers(recurse=False)}
        known |= own if isinstance(part, Derived) else set()
    return {name: value for name, value in model.module.state_dict().items() if name not in known}


def carried_over(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """Which buffer starts otherwise in ``after``, in vain, as training takes that of ``before`` over; or nothing."""
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        if a.shape == b.shape and not torch.equal(a, b):
            starts = f"at {float(a):g} or at {float(b):g}" if a.numel() == 1 else "with other values"
            return f"{name} starts {starts}, and training goes on from what it has become"
    return ""


def _load_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Fused optimisers walk through memory, so what they hold lies there in the order of the parameter's elements."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, slot = name.partition(".")
        parameter = parameters[int(index)]
        like = parameter if parameter.shape == value.shape else value
        slots.setdefault(int(index), {})[slot] = torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def build(
    family: Family,
    config: Config,
    spec: DataSpec,
    seed: int,
    device: torch.device | str = "cpu",
    parents: Mapping[str, Model] | None = None,
) -> Model:
    """A freshly initialised model, a function of ``seed``.

    Raises:
        ConfigError: the family cannot learn data of this kind, or takes no such parent.
    """
    if spec.kind not in family.kinds:
        kinds = ", ".join(sorted(family.kinds))
        raise ConfigError(
            f"{family.name} learns {kinds} data; this data set holds {spec.kind} samples. Use another recipe or data."
        )
    given = {role: _frozen(parent, device) for role, parent in (parents or {}).items()}
    if strange := sorted(given.keys() - family.roles):
        roles = ", ".join(sorted(family.roles)) or "none"
        raise ConfigError(f"{family.name} takes no parent in the role {strange[0]!r}. Its roles: {roles}.")
    with seeded_initialisation(seed):
        module = family.build(config, spec, given)
    return Model(family, config, spec, module.to(device), given)


def _frozen(parent: Model, device: torch.device | str) -> Model:
    """A parent as a child may use it: on the child's device, in eval mode, without gradients."""
    module = parent.module.to(device).eval().requires_grad_(False)
    parents = {role: _frozen(each, device) for role, each in parent.parents.items()}
    return replace(parent, module=module, parents=parents)


def prepare(model: Model, training: Training) -> TrainState:
    """A model with fresh optimisers and average, before its first step."""
    phases = model.family.phases(model.module)
    optimizers = {phase.name: make_optimizer(phase.module, phase.optimizer) for phase in phases}
    halflife = training.ema_halflife_samples
    ema = Ema(model.module, halflife, training.ema_ramp) if halflife else None
    return TrainState(model, phases, optimizers, ema)
