"""The contract between the platform and a family of generative models. Torch and pydantic only.

A family is a value: a frozen record of functions. It says how a network is built, how it is trained (in phases) and
what the built network can do (tasks). Training, checkpoints, comparison, registry and serving are read off this
record, so a family never meets Ray, MLflow, a path or the environment.

Shapes: B batch, R rows, N samples asked, ``*`` the data shape. ``x`` is clean data: images are float in [-1, 1],
tokens int64 in [0, levels).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kinfolk.errors import ConfigError, RequestError, no_effect

__all__ = [
    "FIRST_STAGE",
    "NEEDS",
    "SIGNALS",
    "Batch",
    "Config",
    "ConfigError",
    "DataSpec",
    "Derived",
    "Family",
    "Kind",
    "Likelihood",
    "Loss",
    "Model",
    "OptimizerConfig",
    "Phase",
    "Progress",
    "RequestError",
    "RowTask",
    "SampleRequest",
    "SamplerOptions",
    "SamplerState",
    "Sort",
    "Tasks",
    "no_effect",
]

Kind = Literal["image", "audio", "video", "tokens", "vector"]
SIGNALS: Mapping[str, str] = {
    "logit_gap": "mean critic output of data less that of samples",
    "energy_gap": "mean energy of data less that of samples",
    "kl": "KL divergence from the prior, nats a sample",
    "kl_active": "share of latent dimensions with a KL divergence above 0.01 nats",
    "usage": "share of codes in use",
}
"""Logs of a loss that the platform watches for collapse, by name, in whatever family and phase."""

FIRST_STAGE = "first_stage"  # the parent in this role encodes the data; losses then see its latents as ``batch.x``


class Config(BaseModel):
    """A frozen record that refuses unknown keys; the base of every recipe part, option and serve file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def idle(self) -> Mapping[str, str]:
        """Settings that do nothing beside the values of the others, each with what it is for."""
        return {}

    def in_vain(self) -> Mapping[str, str]:
        """Of those, the ones that are not at their default."""
        fields = type(self).model_fields
        return {name: purpose for name, purpose in self.idle().items() if getattr(self, name) != fields[name].default}

    @model_validator(mode="after")
    def _nothing_is_in_vain(self) -> Self:
        for name, purpose in self.in_vain().items():
            raise ValueError(no_effect(f"{name}={getattr(self, name)}", purpose))
        for part, options in self:
            for name, purpose in options.in_vain().items() if isinstance(options, SamplerOptions) else ():
                raise ValueError(no_effect(f"{part}.{name}={getattr(options, name)}", purpose))
        return self


class SamplerOptions(Config):
    """What a user may ask of one sample, beside label, seed and given data; each family has its own.

    A recipe may set nothing in vain, nor may a request; but what a model's default sets may be, once a request sets
    something else.
    """

    task_of: ClassVar[Mapping[str, str]] = {}  # options that a single task reads, each with that task

    @model_validator(mode="after")
    def _nothing_is_in_vain(self) -> Self:
        return self


class DataSpec(Config):
    """What one sample is. The only place where levels and [-1, 1] are turned into each other."""

    kind: Kind
    shape: tuple[int, ...]  # image (C, H, W), tokens (T,), vector (D,), audio (C, T), video (T, C, H, W)
    levels: int | None = Field(None, ge=2)  # discrete values per element; None for continuous data
    classes: int | None = Field(None, ge=1)
    caption_dim: int | None = Field(None, ge=1)
    data_std: float = Field(1.0, gt=0)  # standard deviation over all elements of the train split

    @property
    def dims(self) -> int:
        """Elements of one sample, D in bits per dimension."""
        return math.prod(self.shape)

    def to_levels(self, x: Tensor) -> Tensor:
        """[-1, 1] -> int64 in [0, levels), clamped. (B, *) -> (B, *)"""
        if self.levels is None:
            raise ConfigError(f"{self.kind} data of shape {self.shape} is continuous: it has no levels.")
        if self.kind == "tokens":
            return x.long()
        return ((x.clamp(-1, 1) + 1) * ((self.levels - 1) / 2)).round().long()

    def from_levels(self, levels: Tensor) -> Tensor:
        """Integers in [0, levels) -> float32 in [-1, 1]; tokens stay int64. (B, *) -> (B, *)"""
        if self.levels is None:
            raise ConfigError(f"{self.kind} data of shape {self.shape} is continuous: it has no levels.")
        if self.kind == "tokens":
            return levels.long()
        return levels.float() * (2 / (self.levels - 1)) - 1

    def to_uint8(self, x: Tensor) -> Tensor:
        """Pictures for a screen: [-1, 1] -> uint8 in [0, 255], clamped. (B, *) -> (B, *)"""
        x = x.detach().float()
        if x.device.type != "cpu":
            return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        # A server draws one small picture after the other beside a thread that samples. Five calls of torch, each of
        # which lets go of the interpreter and waits for it again, take four times as long there as NumPy does.
        import numpy as np  # families and the training loop do without

        with np.errstate(invalid="ignore"):  # what is not a number is some level, as with torch
            return torch.from_numpy(((x.numpy().clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with what is known of them; the rows of all fields belong together."""

    x: Tensor  # (B, *)
    label: Tensor | None = None  # (B,) int64
    caption: Tensor | None = None  # (B, E)
    source: Tensor | None = None  # (B, *) what x is made from, for translation and upscaling

    def __len__(self) -> int:
        return len(self.x)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """``function`` applied to every field that is there."""
        label, caption, source = (
            None if value is None else function(value) for value in (self.label, self.caption, self.source)
        )
        return Batch(function(self.x), label, caption, source)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on ``device``."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def split(self, parts: int) -> list["Batch"]:
        """``parts`` microbatches of equal size; ``parts`` must divide the batch."""
        size = len(self) // parts

        def part(index: int) -> "Batch":
            return self.map(lambda value: value[index * size : (index + 1) * size])

        return [part(index) for index in range(parts)]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is, and the only randomness a loss may use."""

    samples_seen: int  # over all workers, before this step
    step: int
    generator: torch.Generator  # of (seed, rank, step, phase, microbatch), on the training device
    all_reduce: Callable[[Tensor], Tensor] = lambda value: value  # sum over workers
    rank: int = 0  # of this worker
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """A mean over samples, so that microbatches and workers average."""

    value: Tensor  # ()
    logs: Mapping[str, Tensor] = field(default_factory=dict)  # detached scalars, in the field's words; see SIGNALS


def cosine(start: float, end: float, samples_seen: int, decay_samples: int) -> float:
    """From ``start`` to ``end`` along half a cosine over ``decay_samples``, and ``end`` from there on."""
    done = min(samples_seen / decay_samples, 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


class OptimizerConfig(Config):
    """One phase's optimiser. Rates are schedules of samples seen, so the worker count changes nothing."""

    kind: Literal["adam", "adamw", "radam", "rmsprop", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)  # rmsprop averages by the second, sgd has the first for momentum
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # on parameters of two or more dimensions
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the whole gradient
    warmup_samples: int = Field(0, ge=0)  # linear from 0
    decay_samples: int | None = Field(None, gt=0)  # cosine from lr to final_lr over this many samples
    final_lr: float = Field(0.0, ge=0)

    def idle(self) -> dict[str, str]:
        """Where a rate ends that never falls, and what SGD does not divide."""
        constant = {} if self.decay_samples is not None else {"final_lr": "decay_samples"}
        return {**constant, "eps": "kind=adam and its kin"} if self.kind == "sgd" else constant

    def lr_at(self, samples_seen: int) -> float:
        """Learning rate after ``samples_seen`` samples: linear warm-up times cosine decay."""
        lr = self.lr
        if self.decay_samples is not None:
            lr = cosine(lr, self.final_lr, samples_seen, self.decay_samples)
        if samples_seen < self.warmup_samples:
            lr *= (samples_seen + 1) / self.warmup_samples
        return lr


@dataclass(frozen=True, slots=True)
class Phase:
    """One optimiser's turn in a step. A GAN has two, most families one."""

    name: str
    module: nn.Module  # its trainable parameters, and no others, move in this phase
    loss: Callable[[Batch, Progress], Loss]
    optimizer: OptimizerConfig
    every_steps: int = 1
    after: Callable[[Progress], None] | None = None  # without gradient, once per turn: codebooks, targets
    double_backward: bool = False  # the loss holds a gradient penalty; read by FSDP and compile
    group: int = 1  # neighbouring samples that its loss judges together: a microbatch is so many, or a multiple


@runtime_checkable
class Derived(Protocol):
    """A part of a module that has buffers which follow from its parameters, and go with no others."""

    def derive(self) -> None:
        """Compute them anew: the parameters were put in place of others, such as by their average."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What a user asks of a sampling task: one row for each seed."""

    seeds: Tensor  # (N,) int64, CPU
    options: SamplerOptions  # an instance of the family's options
    label: Tensor | None = None  # (N,) int64; None: by each row's seed; of a given x: unknown, or refused
    caption: Tensor | None = None  # (N, E)
    x: Tensor | None = None  # (N, *) given data, for inpainting, upscaling, translation
    mask: Tensor | None = None  # (N, *) 1 where x is given, 0 where it is asked for
    seed_to: Tensor | None = None  # (N,) int64, CPU: the other end of each row's way, for interpolation
    weight: Tensor | None = None  # (N,) float64 in [0, 1], CPU: how far along, 0 is the sample of ``seeds``


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Rows in the making. Every tensor has a leading row dimension, so rows join and leave by index.

    ``seed``, ``call``, ``calls`` and ``cost`` stay on the CPU; only ``x`` and ``carry`` travel to the device.
    """

    x: Tensor  # (R, *) the sampler's own state: tokens, codes, x_t
    seed: Tensor  # (R,) int64
    call: Tensor  # (R,) int64, calls of ``advance`` so far
    calls: Tensor  # (R,) int64, calls until the row is done
    cost: Tensor  # (R,) int64, network evaluations the next call of this row takes
    carry: Mapping[str, Tensor]  # (R, *) each; all rows of a model carry the same keys

    @classmethod
    def start(cls, x: Tensor, request: SampleRequest, calls: int, cost: int = 1, **carry: Tensor) -> Self:
        """The rows of a fresh request, none of them advanced yet."""
        seed = request.seeds
        return cls(
            x, seed, torch.zeros_like(seed), torch.full_like(seed, calls), torch.full_like(seed, cost), dict(carry)
        )

    def __len__(self) -> int:
        return len(self.seed)

    @property
    def done(self) -> Tensor:
        """(R,) bool: rows that need no further call."""
        return self.call >= self.calls

    def step(self, x: Tensor, **carry: Tensor) -> "SamplerState":
        """The state after one call: new ``x``, changed entries of ``carry``, ``call`` one higher."""
        return replace(self, x=x, call=self.call + 1, carry={**self.carry, **carry})

    def select(self, index: Tensor) -> "SamplerState":
        """The rows at ``index``, a CPU tensor of positions or a mask."""
        rows = index.nonzero().flatten() if index.dtype == torch.bool else index
        on_device = rows.to(self.x.device)
        carry = {key: value[on_device] for key, value in self.carry.items()}
        return SamplerState(
            self.x[on_device], self.seed[rows], self.call[rows], self.calls[rows], self.cost[rows], carry
        )

    @classmethod
    def cat(cls, parts: Sequence["SamplerState"]) -> "SamplerState":
        """All rows of ``parts``, in order."""
        if len(parts) == 1:
            return parts[0]

        def joined(read: Callable[[SamplerState], Tensor]) -> Tensor:
            return torch.cat([read(part) for part in parts])

        return cls(
            joined(lambda part: part.x),
            joined(lambda part: part.seed),
            joined(lambda part: part.call),
            joined(lambda part: part.calls),
            joined(lambda part: part.cost),
            {key: torch.cat([part.carry[key] for part in parts]) for key in parts[0].carry},
        )


RowTask = Callable[[Batch, Tensor], Tensor]  # (batch of B, seeds (B,) int64 on the CPU) -> (B, ...)
Sort = Literal["sample", "latent", "numbers"]  # what a row task takes or gives

NEEDS: Mapping[str, tuple[str, ...]] = {
    "interpolate": ("seed_to",),
    "inpaint": ("x", "mask"),
    "denoise": ("x",),
    "upscale": ("x",),
    "translate": ("x",),
}
"""What sampling tasks must be told beside seeds, by name; those with another name need nothing."""


def _of_rows(takes: Sort = "sample", gives: Sort = "sample") -> Mapping[str, Sort]:
    """What marks a field of ``Tasks`` as a row task."""
    return {"takes": takes, "gives": gives}


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probability of one sample in nats, with what it is: never shown without its kind."""

    nats: RowTask  # -> (B,)
    kind: Literal["exact", "lower_bound", "ode"]
    of: Literal["levels", "binary", "density", "codes"]
    """P of the discrete levels, of binarised data, a density, or P of the tokens that stand for the sample, which is
    not the sample's: it compares models of the same tokens, and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What one built model can do. A field left out is a thing it cannot."""

    options: SamplerOptions  # this model's default sampling options, an instance of the family's options
    starts: Mapping[str, Callable[[SampleRequest], SamplerState]] = field(default_factory=dict)
    advance: Callable[[SamplerState], SamplerState] | None = None  # one call for all rows; consumes its argument
    render: Callable[[SamplerState], Tensor] | None = None  # (R, *shape): the picture so far
    evaluations: Callable[[SamplerState], Tensor] | None = None
    """Network evaluations that fresh rows take in all, (R,) int64 on the CPU; None: ``calls * cost``."""
    conditions: frozenset[Literal["label", "caption"]] = frozenset()  # what its tasks may be told
    log_prob: Likelihood | None = field(default=None, metadata=_of_rows(gives="numbers"))
    importance_bound: Callable[[Batch, Tensor, int], Tensor] | None = None  # as ``log_prob``, of so many draws: (B,)
    encode: RowTask | None = field(default=None, metadata=_of_rows(gives="latent"))
    decode: RowTask | None = field(default=None, metadata=_of_rows(takes="latent"))  # latent in ``batch.x``
    reconstruct: RowTask | None = field(default=None, metadata=_of_rows())
    complete: RowTask | None = field(default=None, metadata=_of_rows())  # every part of x from the others
    anomaly_score: RowTask | None = field(default=None, metadata=_of_rows(gives="numbers"))  # (B,), higher is stranger
    classify: RowTask | None = field(default=None, metadata=_of_rows(gives="numbers"))  # (B, K) logits
    denoise: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None  # x_t, sigma (B,), label -> x estimate
    denoise_with_dropout: Callable[[Tensor, Tensor, Tensor | None, torch.Generator], Tensor] | None = None
    """As ``denoise``, with dropout by masks of the generator: for a child that goes on training the network."""
    latent_spec: DataSpec | None = None  # what ``encode`` returns


@dataclass(frozen=True, slots=True)
class Family:
    """A family of generative models. ``build`` may use ``torch.nn.init``: the platform seeds it."""

    name: str
    kinds: frozenset[Kind]  # the data kinds it can learn
    config: type[Config]
    options: type[SamplerOptions]
    build: Callable[[Any, DataSpec, Mapping[str, "Model"]], nn.Module]  # (config, spec, parents)
    phases: Callable[[Any], Sequence[Phase]]
    tasks: Callable[[Any], Tasks]
    roles: frozenset[str] = frozenset()  # parents it may be built on
    initialise: Callable[[Any, Batch, Progress], None] | None = None
    """Initialisation from data, without gradient: called once, by each worker on its share of the first batch, with
    equal generators. It must leave all workers with equal values."""


@dataclass(frozen=True)  # without slots, which leave no place for what is kept
class Model:
    """A built network with what it takes to build it again: what a parent is, and what a server holds.

    A parent is frozen and in eval mode. A module holds it as a plain attribute, never as a submodule, so that it is
    in no checkpoint, average or phase of the child's. A copy of the child has layers of its own over the same tensors:
    two threads may call both, and a call may put other weights in their place.
    """

    family: Family
    config: Config
    spec: DataSpec
    module: nn.Module
    parents: Mapping[str, "Model"] = field(default_factory=dict)

    @cached_property
    def tasks(self) -> Tasks:
        """What this model can do."""
        return self.family.tasks(self.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo |= {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        return replace(self, module=copy.deepcopy(self.module, memo), parents=copy.deepcopy(dict(self.parents), memo))
