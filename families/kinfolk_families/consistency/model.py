"""The consistency function: a denoiser's Euler step to the end of the path.

A denoiser gives the slope of the probability flow, ``(x_t - D(x_t, sigma)) / sigma``. One Euler step along it, from
sigma to sigma_min, is

    f(x_t, sigma) = (sigma_min / sigma) x_t + (1 - sigma_min / sigma) D(x_t, sigma),

which is x_t itself at sigma_min whatever D is: the boundary condition holds by construction. EDM's D has a boundary of
its own, D(x, 0) = x since c_skip(0) = 1 and c_out(0) = 0, but its network is told ln(sigma) and cannot be asked at 0.
With EDM's scalings the factor of the network is (sigma - sigma_min) sigma_data / sqrt(sigma^2 + sigma_data^2), as in
Song et al., 2023, appendix C, https://arxiv.org/abs/2303.01469; that of x_t is theirs to within sigma_min / sigma.
This form, from Kim et al., 2024 (CTM), https://arxiv.org/abs/2310.02279, asks nothing of a teacher but its denoiser.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from kinfolk.contract import FIRST_STAGE, ConfigError, DataSpec, Model, RequestError
from kinfolk_families._shared.dropout import dropouts
from kinfolk_families._shared.labels import device_of
from kinfolk_families._shared.network_config import check_network
from kinfolk_families._shared.networks import NoiseEmbedding, make_network
from kinfolk_families._shared.noise import edm_scales, per_row
from kinfolk_families.consistency.config import ConsistencyConfig, DistillationConfig, ImprovedTrainingConfig

TEACHER = "teacher"  # the role of the diffusion model a consistency model is tuned or distilled from


class Denoiser(nn.Module):
    """``D(x_t, sigma, label)`` of a network of one's own, with EDM's scalings."""

    def __init__(self, config: ImprovedTrainingConfig, spec: DataSpec) -> None:
        super().__init__()
        self.sigma_data = config.sigma_data or spec.data_std
        self.network = make_network(config.network, spec.shape)
        width = self.network.condition_width
        self.noise_embedding = NoiseEmbedding(width, config.max_frequency)
        self.label_embedding = nn.Embedding(spec.classes or 0, width) if config.conditional else None

    def forward(self, x_t: Tensor, sigma: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """(B, *), (B,), (B,) -> (B, *) in the dtype of ``x_t``; ``generator`` is of dropout"""
        scale = edm_scales(sigma, self.sigma_data)
        condition = self.noise_embedding(scale.noise.float())  # (B, E)
        if self.label_embedding is not None:
            condition = condition + self.label_embedding(label)
        output = self.network((per_row(scale.into, x_t) * x_t).float(), condition, generator).to(x_t.dtype)
        return per_row(scale.skip, x_t) * x_t + per_row(scale.out, x_t) * output


class Average(nn.Module):
    """A moving average of a module's parameters, as buffers: stored and resumed, and out of every gradient's reach."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.stored = {name: name.replace(".", "/") for name, _ in module.named_parameters()}  # no buffer has a dot
        for name, value in module.named_parameters():
            self.register_buffer(self.stored[name], value.detach().clone())

    def tensors(self) -> dict[str, Tensor]:
        """The averages, by the names of the parameters."""
        return {name: self.get_buffer(stored) for name, stored in self.stored.items()}

    def update(self, module: nn.Module, decay: float) -> None:
        """average = decay * average + (1 - decay) * parameter."""
        averages = self.tensors()
        for name, value in module.named_parameters():
            averages[name].lerp_(value.detach(), 1 - decay)


class Consistency(nn.Module):
    """``f(x_t, sigma, label)``, the end of the path through ``x_t``, around a denoiser.

    Tuned or distilled, the denoiser is a copy of the teacher's module, called as the teacher's own family calls it. It
    stays in eval mode, so no layer of it draws from the global generator; but for its dropout, which never does.
    """

    def __init__(self, config: ConsistencyConfig, spec: DataSpec, teacher: Model | None = None) -> None:
        super().__init__()
        self.config, self.spec, self.teacher = config, spec, teacher
        self.denoiser: nn.Module
        if isinstance(config.objective, ImprovedTrainingConfig):
            self.denoiser, conditional = Denoiser(config.objective, spec), config.objective.conditional
        else:
            assert teacher is not None
            self.denoiser = copy.deepcopy(teacher.module).eval().requires_grad_(True)
            for layer in dropouts(self.denoiser):
                layer.train().share = config.objective.dropout
            conditional = "label" in teacher.tasks.conditions
        self.classes = (spec.classes or 0) if conditional else 0
        self.target = Average(self.denoiser) if isinstance(config.objective, DistillationConfig) else None

    @property
    def dropout(self) -> float:
        """Share of what is dropped in training."""
        objective = self.config.objective
        return objective.network.dropout if isinstance(objective, ImprovedTrainingConfig) else objective.dropout

    def denoise(self, x_t: Tensor, sigma: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """The denoiser f is made of. (B, *), (B,) > 0, (B,) -> (B, *)"""
        if self.teacher is None:
            return self.denoiser(x_t, sigma, label, generator)
        tasks = replace(self.teacher, module=self.denoiser).tasks
        if generator is not None:
            assert tasks.denoise_with_dropout is not None
            return tasks.denoise_with_dropout(x_t, sigma, label, generator)
        assert tasks.denoise is not None
        return tasks.denoise(x_t, sigma, label)

    def forward(
        self, x_t: Tensor, sigma: Tensor, label: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """f; at sigma_min and below, ``x_t`` itself. (B, *), (B,), (B,) -> (B, *)

        In training, dropout draws from ``generator``; there is none without.

        Raises:
            RequestError: the model is class-conditional and there is no label.
        """
        if self.classes and label is None:
            raise RequestError("label", f"This model is class-conditional: give labels, 0 to {self.classes - 1}.")
        keep = (self.config.sigma_min / sigma).clamp(max=1)
        known = label if self.classes else None
        denoised = self.denoise(x_t, sigma.clamp(min=self.config.sigma_min), known, generator)
        return per_row(keep, x_t) * x_t + per_row(1 - keep, x_t) * denoised

    def at_target(self, x_t: Tensor, sigma: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """f with the averaged weights of the target network. (B, *), (B,), (B,) -> (B, *)"""
        assert self.target is not None
        averages = {f"denoiser.{name}": value for name, value in self.target.tensors().items()}
        return functional_call(self, averages, (x_t, sigma, label, generator))


def build(config: ConsistencyConfig, spec: DataSpec, parents: Mapping[str, Model]) -> Consistency:
    """The module of a recipe for ``spec``, with the teacher's weights where it has one.

    Raises:
        ConfigError: the network does not fit the data, or a teacher is missing, not wanted, or unfit.
    """
    objective, teacher = config.objective, parents.get(TEACHER)
    if isinstance(objective, ImprovedTrainingConfig):
        _check_scratch(objective, spec, teacher)
    elif teacher is None:
        raise ConfigError(
            f"objective.kind={objective.kind} starts from a diffusion model, and none is named. Give the recipe one, "
            f"e.g. parents: {{{TEACHER}: mnist-edm@champion}}, or train from scratch with objective.kind=ict."
        )
    else:
        _check_teacher(teacher, spec)
        _check_dropout(teacher, objective.dropout)
    student = Consistency(config, spec, teacher)
    if teacher is not None and not _learns(student):
        raise ConfigError(
            f"The {TEACHER} is a model of the {teacher.family.name} family, whose denoiser cannot be trained at all "
            f"noise levels from {config.sigma_min} to {config.sigma_max}. Use a diffusion model."
        )
    return student


def _check_dropout(teacher: Model, share: float) -> None:
    if share and (teacher.tasks.denoise_with_dropout is None or not dropouts(teacher.module)):
        raise ConfigError(
            f"objective.dropout={share}, but the {TEACHER} of the {teacher.family.name} family has no dropout to set. "
            f"Leave it at 0, or use a diffusion model without an adapter."
        )


def _learns(student: Consistency) -> bool:
    """Whether the teacher's copy answers at both ends of the noise levels, and as a function of its weights."""
    config, device = student.config, device_of(student)
    sigma = torch.tensor([config.sigma_min, config.sigma_max], device=device)
    x_t = torch.zeros(2, *student.spec.shape, device=device)
    label = torch.zeros_like(sigma, dtype=torch.int64) if student.classes else None
    try:
        with torch.enable_grad():
            return student.denoise(x_t, sigma, label).requires_grad
    except RequestError:  # it knows other levels only
        return False


def _check_scratch(objective: ImprovedTrainingConfig, spec: DataSpec, teacher: Model | None) -> None:
    if teacher is not None:
        raise ConfigError("objective.kind=ict trains without a teacher. Remove the parent, or use ect or distillation.")
    check_network(objective.network, spec)
    if objective.conditional and not spec.classes:
        raise ConfigError("objective.conditional=true needs data with classes, and this has none. Set it to false.")


def _check_teacher(teacher: Model, spec: DataSpec) -> None:
    name = teacher.family.name
    if teacher.tasks.denoise is None or isinstance(teacher.module, Consistency):
        raise ConfigError(
            f"The {TEACHER} is a model of the {name} family, which is no denoiser. Use a diffusion model."
        )
    if FIRST_STAGE in teacher.parents:
        raise ConfigError(f"The {TEACHER} denoises latents of a first stage. Use one that denoises the data itself.")
    for key in ("kind", "shape", "levels", "classes"):
        learned, here = getattr(teacher.spec, key), getattr(spec, key)
        if learned != here:
            raise ConfigError(
                f"The {TEACHER} learned data with {key}={learned}; this data has {key}={here}. "
                f"Use a teacher trained on the same data."
            )
