"""The networks put together: a plain autoencoder, and a variational one.

Shapes: S draws, B batch, K classes, Z latent, F features of the encoder, P outputs of the decoder for each element.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Model, RequestError
from kinfolk_families.autoencoder.config import AutoencoderConfig, ElboConfig, IwaeConfig, ReconstructionConfig
from kinfolk_families.autoencoder.distributions import Outputs, make_distribution
from kinfolk_families.autoencoder.networks import check_network, make_decoder, make_encoder


class Posterior(NamedTuple):
    """q(z | x), a Gaussian with independent elements."""

    mu: Tensor  # (B, Z)
    log_var: Tensor  # (B, Z)


class Pass(NamedTuple):
    """A sample on its way through the model, S times."""

    posterior: Posterior
    z: Tensor  # (S, B, Z)
    outputs: Outputs  # P of (S, B, *)


def _full_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))  # what autocast computed in bfloat16


class EncoderDecoder(nn.Module):
    """An encoder to features of a latent vector and a decoder from it; both may be told the class."""

    def __init__(
        self, config: AutoencoderConfig, spec: DataSpec, features_per_latent: int = 1, outputs_per_element: int = 1
    ) -> None:
        super().__init__()
        self.config, self.spec, self.latent = config, spec, config.latent
        self.classes = (spec.classes or 0) if config.conditional else 0
        self.encoder = make_encoder(config.network, spec, self.classes, features_per_latent * self.latent)
        self.decoder = make_decoder(config.network, spec, self.latent + self.classes, outputs_per_element)

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
        """What the encoder says of x. (B, *) -> (B, F)"""
        return _full_precision(self.encoder(x, self.condition(label, x)))

    def outputs(self, z: Tensor, label: Tensor | None) -> Outputs:
        """What the decoder says of x. (B, Z) -> P of (B, *)"""
        code = torch.cat([z, self.condition(label, z)], 1)
        return _full_precision(self.decoder(code)).unbind(1)

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """What the model sees of x; ``uniform`` draws (B, *) in [0, 1) where seeing is random. (B, *) -> (B, *)"""
        return x

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The latent of what is seen of x. (B, *) -> (B, Z)"""
        raise NotImplementedError

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The sample a latent stands for. (B, Z) -> (B, *)"""
        raise NotImplementedError


class Autoencoder(EncoderDecoder):
    """The plain one: a latent and a reconstruction, no noise and no prior."""

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The latent of x. (B, *) -> (B, Z)"""
        return self.features(x, label)

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The sample a latent stands for. (B, Z) -> (B, *)"""
        return self.outputs(z, label)[0]

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The reconstruction of x. (B, *) -> (B, *)"""
        return self.decode(self.encode(x, label), label)


class VariationalAutoencoder(EncoderDecoder):
    """An encoder to a posterior over latents with prior N(0, I), a decoder to a distribution over samples."""

    def __init__(self, config: AutoencoderConfig, objective: ElboConfig | IwaeConfig, spec: DataSpec) -> None:
        distribution = make_distribution(objective.decoder, spec)
        super().__init__(config, spec, 2, distribution.outputs_per_element)
        self.objective, self.distribution = objective, distribution

    def observe(self, x: Tensor, uniform: Callable[[], Tensor]) -> Tensor:
        """What the model sees of x: binarised, at its nearest level, or as it is. (B, *) -> (B, *)"""
        return self.distribution.observe(x, uniform)

    def posterior(self, x: Tensor, label: Tensor | None) -> Posterior:
        """q(z | x) of what is seen of x. (B, *) -> (B, Z), (B, Z)"""
        mu, log_var = self.features(x, label).chunk(2, dim=1)
        return Posterior(mu, log_var)

    def encode(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The posterior's mean. (B, *) -> (B, Z)"""
        return self.posterior(x, label).mu

    def decode(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The expected sample. (B, Z) -> (B, *)"""
        return self.distribution.mean(self.outputs(z, label))

    def forward(self, x: Tensor, label: Tensor | None, noise: Tensor) -> Pass:
        """The posterior and, for S draws of it, z and the decoder's outputs. (B, *), noise (S, B, Z)"""
        posterior = self.posterior(x, label)
        z = posterior.mu + torch.exp(posterior.log_var / 2) * noise  # (S, B, Z)
        labels = None if label is None else label.repeat(len(z))
        outputs = self.outputs(z.flatten(0, 1), labels)
        return Pass(posterior, z, tuple(output.unflatten(0, z.shape[:2]) for output in outputs))


def build(config: AutoencoderConfig, spec: DataSpec, _: Mapping[str, Model]) -> EncoderDecoder:
    """The module that ``config`` asks for on data of ``spec``.

    Raises:
        ConfigError: network, decoder or condition do not fit the data.
    """
    check_network(config.network, spec)
    if config.conditional and spec.classes is None:
        raise ConfigError("conditional=true, but the data has no classes. Use conditional: false.")
    if isinstance(config.objective, ReconstructionConfig):
        return Autoencoder(config, spec)
    return VariationalAutoencoder(config, config.objective, spec)
