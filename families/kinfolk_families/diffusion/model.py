"""The denoiser: a preconditioned network, told the noise level and the class; or a frozen one with an adapter.

With a first stage for parent it learns that one's latents in place of pictures (latent diffusion: Rombach et al., 2022,
https://arxiv.org/abs/2112.10752).
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from kinfolk.contract import FIRST_STAGE, Batch, ConfigError, DataSpec, Model, Progress, RequestError
from kinfolk_families._shared.labels import check_told
from kinfolk_families._shared.networks import NoiseEmbedding, make_network
from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.adapter import LowRank, adapted_weights, inherited
from kinfolk_families.diffusion.config import AdapterConfig, DiffusionConfig, check
from kinfolk_families.diffusion.preconditioning import preconditioner

BASE = "base"  # the parent in this role is what an adapter changes


class Diffusion(nn.Module):
    """``D(x_t, sigma, label)``, an estimate of the clean ``x``, where ``x`` may be scaled latents."""

    scale: Tensor  # () of latents only: 1 / their standard deviation

    def __init__(self, config: DiffusionConfig, spec: DataSpec, first_stage: Model | None = None) -> None:
        super().__init__()
        self.config, self.spec, self.first_stage = config, spec, first_stage
        self.classes = (spec.classes or 0) if config.conditional else 0
        self.preconditioner = preconditioner(config.preconditioning, spec.data_std)
        self.network = make_network(config.network, spec.shape)
        width = self.network.condition_width
        self.noise_embedding = NoiseEmbedding(width, config.max_frequency)
        self.label_embedding = nn.Embedding(self.classes + 1, width) if self.classes else None
        if first_stage is not None:
            self.register_buffer("scale", torch.ones(()))

    def forward(
        self, x_t: Tensor, sigma: Tensor, label: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """(B, *), (B,), (B,) with ``classes`` for "unknown" -> (B, *) in the dtype of ``x_t``

        Dropout draws from ``generator``; there is none without.

        Raises:
            RequestError: the model has not learnt to do without a label, and there is none.
        """
        scale = self.preconditioner.scales(sigma)
        condition = self.noise_embedding(scale.noise.float())  # (B, E)
        if self.label_embedding is not None:
            condition = condition + self.label_embedding(told(self, label, sigma))
        output = self.network((per_row(scale.into, x_t) * x_t).float(), condition, generator).to(x_t.dtype)
        return per_row(scale.skip, x_t) * x_t + per_row(scale.out, x_t) * output

    def learnt(self, x: Tensor) -> Tensor:
        """What is denoised in place of a batch's x: latents at unit variance, or x itself. (B, *) -> (B, *)"""
        return x if self.first_stage is None else x * self.scale

    def picture(self, x: Tensor, label: Tensor | None, seeds: Tensor) -> Tensor:
        """The sample a denoised estimate stands for. (B, *), (B,), (B,) -> (B, *shape)"""
        if self.first_stage is None:
            return x
        decode = self.first_stage.tasks.decode
        assert decode is not None
        return decode(Batch(x / self.scale, label if self.classes else None), seeds)


class Adapted(nn.Module):
    """A frozen denoiser seen through its adapter: what ``Diffusion`` is, with A and B for its only parameters.

    At the sizes of this room a merged weight is cheaper than two more layers, so weights are merged at each call.
    """

    def __init__(self, config: DiffusionConfig, adapter: AdapterConfig, spec: DataSpec, base: Model) -> None:
        super().__init__()
        self.config, self.spec, self.base = config, spec, base
        self.classes, self.preconditioner = self.core.classes, self.core.preconditioner
        self.first_stage = self.core.first_stage
        chosen = adapted_weights(self.core, adapter.targets)
        self.changes = nn.ModuleDict({name.replace(".", "/"): LowRank(w, adapter) for name, w in chosen.items()})

    @property
    def core(self) -> Diffusion:
        """The base's module, which is no part of this one."""
        assert isinstance(self.base.module, Diffusion)
        return self.base.module

    def merged(self) -> dict[str, Tensor]:
        """The changed weights, by their name in the base."""
        changes = {name.replace("/", "."): change for name, change in self.changes.items()}
        return {name: self.core.get_parameter(name) + change() for name, change in changes.items()}

    def forward(
        self, x_t: Tensor, sigma: Tensor, label: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """(B, *), (B,), (B,) -> (B, *), as the base; it is in eval mode, so nothing of it is dropped."""
        known = told(self, label, sigma) if self.classes else None
        estimate: Tensor = functional_call(self.core, self.merged(), (x_t, sigma, known, generator))
        return estimate

    def learnt(self, x: Tensor) -> Tensor:
        """As the base does. (B, *) -> (B, *)"""
        return self.core.learnt(x)

    def picture(self, x: Tensor, label: Tensor | None, seeds: Tensor) -> Tensor:
        """As the base does. (B, *), (B,), (B,) -> (B, *shape)"""
        return self.core.picture(x, label, seeds)


def told(module: Diffusion | Adapted, label: Tensor | None, sigma: Tensor) -> Tensor:
    """The class of each row for a conditional model: as given, or "unknown". (B,), (B,) -> (B,)

    Raises:
        RequestError: there is no label, and the model has not learnt to do without.
    """
    if label is not None:
        return label
    if not module.config.label_dropout:
        raise RequestError("label", f"This model learnt with all labels told: give labels, 0 to {module.classes - 1}.")
    return torch.full_like(sigma, module.classes, dtype=torch.int64)


def build(config: DiffusionConfig, spec: DataSpec, parents: Mapping[str, Model]) -> Diffusion | Adapted:
    """The untrained denoiser of a recipe for ``spec``; draws from torch's global generator.

    Raises:
        ConfigError: the recipe does not fit the data or its parents.
    """
    stage, base = parents.get(FIRST_STAGE), parents.get(BASE)
    learnt = spec if stage is None else _latents(stage, spec)
    if config.adapter is not None:
        return _adapted(config, config.adapter, learnt, base, stage)
    if base is not None:
        raise ConfigError("A base is what an adapter changes, and there is none. Set model.adapter, or leave base out.")
    _check(config, learnt, stage)
    return Diffusion(config, learnt, stage)


def _check(config: DiffusionConfig, spec: DataSpec, stage: Model | None) -> None:
    check(config, spec)
    if stage is not None:
        check_told(stage, config.conditional)


def _latents(stage: Model, spec: DataSpec) -> DataSpec:
    """What is learnt from a first stage: its latents, continuous and scaled to unit variance."""
    latent = stage.tasks.latent_spec
    if latent is None or stage.tasks.decode is None or latent.kind == "tokens":
        raise ConfigError(
            f"The first stage, {stage.family.name}, has no continuous latents that it can decode. Use an autoencoder "
            "with such, e.g. parents: {first_stage: digits-kl-autoencoder@champion}."
        )
    return DataSpec(kind=latent.kind, shape=latent.shape, classes=spec.classes)


def _same(a: Model | None, b: Model | None) -> bool:
    """Whether both are the same weights, or none."""
    if a is None or b is None:
        return a is b
    mine, other = a.module.state_dict(), b.module.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def _adapted(
    config: DiffusionConfig, adapter: AdapterConfig, spec: DataSpec, base: Model | None, stage: Model | None
) -> Adapted:
    if base is None:
        raise ConfigError("adapter needs a base. Name it in the recipe, e.g. parents: {base: digits-edm@champion}.")
    core = base.module
    if not isinstance(core, Diffusion):
        raise ConfigError(f"base must be a diffusion model without an adapter, got {base.family.name}. Name its base.")
    if not _same(core.first_stage, stage):
        raise ConfigError("A base and its adapter have the same first stage: name it in parents, or leave it out.")
    if (spec.kind, spec.shape) != (core.spec.kind, core.spec.shape):
        raise ConfigError(f"The base learned {core.spec.kind} of shape {core.spec.shape}, this is {spec.shape}.")
    if core.classes and core.classes != spec.classes:
        raise ConfigError(f"The base knows {core.classes} classes, the data has {spec.classes}. Use other data.")
    whole = inherited(config, adapter, core.config)
    _check(whole, spec, stage)
    return Adapted(whole, adapter, spec, base)


def initialise(module: Diffusion | Adapted, batch: Batch, progress: Progress) -> None:
    """Measure the scale of latents on the first batch of all workers; an adapter keeps its base's.

    Source: Rombach et al., 2022, appendix G.
    """
    if module.first_stage is None or isinstance(module, Adapted):
        return
    z = batch.x.double()
    sums = torch.stack([z.new_tensor(z.numel()), z.sum(), z.square().sum()])
    count, total, squares = progress.all_reduce(sums)
    variance = squares / count - (total / count).square()
    module.scale.copy_(variance.clamp(min=1e-12).rsqrt())  # latents that are all equal have no scale
