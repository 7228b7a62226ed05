"""The networks put together: plain and denoising autoencoders, quantised ones, and those with a posterior.

Shapes: S draws, B batch, K classes, F features of the encoder, P outputs of the decoder for each element. ``z`` is the
shape of one latent: (Z,), or (Z, h, w) where it is spatial.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import Batch, ConfigError, DataSpec, Model, Progress, RequestError
from kinfolk_families.autoencoder.config import (
    AutoencoderConfig,
    DenoisingConfig,
    ElboConfig,
    FiniteScalarConfig,
    IwaeConfig,
    KlRegularisedConfig,
    ReconstructionConfig,
    VectorQuantisedConfig,
)
from kinfolk_families.autoencoder.distributions import Outputs, make_distribution
from kinfolk_families.autoencoder.networks import beside, check_network, grid_of, make_decoder, make_encoder
from kinfolk_families.autoencoder.quantisers import Codebook, FiniteScalar, Quantised, Quantiser


class Posterior(NamedTuple):
    """q(z | x), a Gaussian with independent elements."""

    mu: Tensor  # (B, z)
    log_var: Tensor  # (B, z)

    def draw(self, noise: Tensor) -> Tensor:
        """One latent for each standard normal noise. (S, B, z) -> (S, B, z)"""
        return self.mu + torch.exp(self.log_var / 2) * noise


class Pass(NamedTuple):
    """A sample on its way through the model, S times."""

    posterior: Posterior
    z: Tensor  # (S, B, z)
    outputs: Outputs  # P of (S, B, *)


def _full_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))  # what autocast computed in bfloat16


class EncoderDecoder(nn.Module):
    """An encoder to features of a latent and a decoder from it; both may be told the class."""

    def __init__(
        self, config: AutoencoderConfig, spec: DataSpec, features_per_latent: int = 1, outputs_per_element: int = 1
    ) -> None:
        super().__init__()
        self.config, self.spec, on_grid = config, spec, config.on_grid
        self.latent_shape = (config.latent, *(grid_of(config.network, spec) if on_grid else ()))
        self.classes = (spec.classes or 0) if config.conditional else 0
        features, code = features_per_latent * config.latent, config.latent + self.classes
        self.encoder = make_encoder(config.network, spec, self.classes, features, on_grid)
        self.decoder = make_decoder(config.network, spec, code, outputs_per_element, on_grid)

    @property
    def latent_spec(self) -> DataSpec:
        """What ``encode`` returns."""
        kind = "image" if self.config.on_grid else "vector"
        return DataSpec(kind=kind, shape=self.latent_shape, classes=self.spec.classes)

    def condition(self, label: Tensor | None, like: Tensor) -> Tensor:
        """One-hot classes for the rows of ``like``; no columns where the model is unconditional. (B,) -> (B, K)

        Raises:
            RequestError: the model is conditional and there is no label.
        """
        if not self.classes:
            return like.new_zeros(len(like), 0)
        if label is None:
            raise RequestError("label", f"This autoencoder is class-conditional: give labels, 0 to {self.classes - 1}.")
        return F.one_hot(label, self.classes).to(like.dtype)

    def features(self, x: Tensor, label: Tensor | None) -> Tensor:
        """What the encoder says of x. (B, *) -> (B, F), or (B, F, h, w)"""
        return _full_precision(self.encoder(x, self.condition(label, x)))

    def outputs(self, z: Tensor, label: Tensor | None) -> Outputs:
        """What the decoder says of x. (B, z) -> P of (B, *)"""
        values = _full_precision(self.decoder(beside(z, self.condition(label, z))))
        return (values.squeeze(1),) if values.shape[1] == 1 else values.unbind(1)  # a view: its gradient needs no copy

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """What the model sees of x; ``uniform`` draws (B, *) in [0, 1) where seeing is random. (B, *) -> (B, *)"""
        return x

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The latent of what is seen of x. (B, *) -> (B, z), or tokens (B, T)"""
        raise NotImplementedError

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The sample a latent stands for. (B, z), or tokens (B, T) -> (B, *)"""
        return self.outputs(z, label)[0]

    def after(self, progress: Progress) -> None:
        """Move, once per step, what follows from the microbatches and not from a gradient."""


class Autoencoder(EncoderDecoder):
    """The plain one: a latent and a reconstruction, no prior. The denoising one differs in what it is shown."""

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The latent of x. (B, *) -> (B, z)"""
        return self.features(x, label)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The reconstruction of x. (B, *) -> (B, *)"""
        return self.decode(self.encode(x, label), label)


class QuantisedAutoencoder(EncoderDecoder):
    """A latent of tokens in raster order, each a code of the quantiser."""

    def __init__(self, config: AutoencoderConfig, quantiser: Quantiser, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.quantiser = quantiser
        self.grid = self.latent_shape[1:]

    @property
    def latent_spec(self) -> DataSpec:
        """Tokens, one for each place of the grid."""
        length, levels = self.grid[0] * self.grid[1], self.quantiser.levels
        return DataSpec(kind="tokens", shape=(length,), levels=levels, classes=self.spec.classes)

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Tokens of x. (B, *) -> (B, T) int64"""
        quantised: Quantised = self.quantiser(self.features(x, label))
        return quantised.tokens.flatten(1)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The sample that tokens stand for. (B, T) int64 -> (B, *)"""
        return self.outputs(self.quantiser.lookup(z.unflatten(1, self.grid)).movedim(-1, 1), label)[0]

    def forward(self, x: Tensor, label: Tensor | None) -> tuple[Quantised, Tensor]:
        """Latent and reconstruction; the latter's gradient passes the codes straight through. (B, *) -> (B, *)"""
        quantised: Quantised = self.quantiser(self.features(x, label))
        return quantised, self.outputs(quantised.straight_through(), label)[0]

    def after(self, progress: Progress) -> None:
        """Move the codebook."""
        if isinstance(self.quantiser, Codebook):
            self.quantiser.after(progress)


class PosteriorAutoencoder(EncoderDecoder):
    """An encoder to a posterior over latents; its mean is the latent."""

    def posterior(self, x: Tensor, label: Tensor | None) -> Posterior:
        """q(z | x) of what is seen of x. (B, *) -> (B, z), (B, z)"""
        mu, log_var = self.features(x, label).chunk(2, dim=1)
        return Posterior(mu, log_var)

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The posterior's mean. (B, *) -> (B, z)"""
        return self.posterior(x, label).mu


class RegularisedAutoencoder(PosteriorAutoencoder):
    """A first stage: noise keeps its latents smooth, and hardly any pull keeps them near the prior."""

    def __init__(self, config: AutoencoderConfig, objective: KlRegularisedConfig, spec: DataSpec) -> None:
        super().__init__(config, spec, features_per_latent=2)
        self.objective = objective

    def forward(self, x: Tensor, label: Tensor | None, noise: Tensor) -> tuple[Posterior, Tensor]:
        """The posterior, and the sample that one draw of it stands for. (B, *), noise (B, z) -> (B, *)"""
        posterior = self.posterior(x, label)
        return posterior, self.decode(posterior.draw(noise), label)


class VariationalAutoencoder(PosteriorAutoencoder):
    """An encoder to a posterior over latents with prior N(0, I), a decoder to a distribution over samples."""

    def __init__(self, config: AutoencoderConfig, objective: ElboConfig | IwaeConfig, spec: DataSpec) -> None:
        distribution = make_distribution(objective.decoder, spec)
        super().__init__(config, spec, 2, distribution.outputs_per_element)
        self.objective, self.distribution = objective, distribution

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:
        """What the model sees of x: binarised, at its nearest level, or as it is. (B, *) -> (B, *)"""
        return self.distribution.observe(x, uniform)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The expected sample. (B, z) -> (B, *)"""
        return self.distribution.mean(self.outputs(z, label))

    def outputs_of_draws(self, z: Tensor, label: Tensor | None) -> Outputs:
        """What the decoder says of x for S draws of each latent. (S, B, z) -> P of (S, B, *)"""
        labels = None if label is None else label.repeat(len(z))
        outputs = self.outputs(z.flatten(0, 1), labels)
        return tuple(output.unflatten(0, z.shape[:2]) for output in outputs)

    def forward(self, x: Tensor, label: Tensor | None, noise: Tensor) -> Pass:
        """The posterior and, for S draws of it, z and the decoder's outputs. (B, *), noise (S, B, z)"""
        posterior = self.posterior(x, label)
        z = posterior.draw(noise)
        return Pass(posterior, z, self.outputs_of_draws(z, label))

    def after(self, progress: Progress) -> None:
        """Move what the distribution tracks."""
        self.distribution.after(progress)


def build(config: AutoencoderConfig, spec: DataSpec, _: Mapping[str, Model]) -> EncoderDecoder:
    """The module that ``config`` asks for on data of ``spec``.

    Raises:
        ConfigError: network, latent, decoder or condition do not fit the data.
    """
    check_network(config.network, spec)
    if config.conditional and spec.classes is None:
        raise ConfigError("conditional=true, but the data has no classes. Use conditional: false.")
    match config.objective:
        case ReconstructionConfig() | DenoisingConfig():
            return Autoencoder(config, spec)
        case VectorQuantisedConfig() as objective:
            return QuantisedAutoencoder(config, Codebook(objective, config.latent), spec)
        case FiniteScalarConfig() as objective:
            return QuantisedAutoencoder(config, FiniteScalar(objective), spec)
        case KlRegularisedConfig() as objective:
            return RegularisedAutoencoder(config, objective, spec)
        case ElboConfig() | IwaeConfig() as objective:
            return VariationalAutoencoder(config, objective, spec)


def initialise(module: EncoderDecoder, batch: Batch, progress: Progress) -> None:
    """Start a codebook at the means of clusters of what the fresh encoder says of a first batch."""
    if isinstance(module, QuantisedAutoencoder) and isinstance(module.quantiser, Codebook):
        module.quantiser.initialise(module.quantiser(module.features(batch.x, batch.label)), progress)
