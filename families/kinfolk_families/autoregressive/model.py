"""The model: tokens in, the distribution of each next token out."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from kinfolk.contract import FIRST_STAGE, ConfigError, DataSpec, Model, RequestError
from kinfolk_families._shared.labels import check_told
from kinfolk_families.autoregressive.config import (
    AutoregressiveConfig,
    GatedPixelCnnConfig,
    NetworkConfig,
    TransformerConfig,
    check,
)
from kinfolk_families.autoregressive.convolution import Cache
from kinfolk_families.autoregressive.distributions import make_distribution
from kinfolk_families.autoregressive.pixelcnn import GatedPixelCnn
from kinfolk_families.autoregressive.pixelcnn_pp import PixelCnnPp
from kinfolk_families.autoregressive.tokens import Tokeniser, make_tokeniser
from kinfolk_families.autoregressive.transformer import CausalTransformer


class Network(Protocol):
    """Outputs at position t are a function of the tokens before t, and of the class."""

    def __call__(self, tokens: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """Outputs at every position. (B, T, G), (B,) -> (B, T, O)"""

    def cache(self, rows: int) -> Cache:
        """What is remembered between positions, before the first. -> (R, *) each"""

    def step(self, tokens: Tensor, position: Tensor, label: Tensor | None, cache: Cache) -> Tensor:
        """Outputs at one position of each row; changes ``cache``. (R, T, G), (R,) -> (R, O)"""


class Autoregressive(nn.Module):
    """A tokeniser, a causal network, and the distribution that its outputs stand for."""

    def __init__(self, config: AutoregressiveConfig, spec: DataSpec, first_stage: Model | None = None) -> None:
        super().__init__()
        self.config, self.spec, self.first_stage = config, spec, first_stage
        learned = learned_spec(spec, first_stage)
        check(config, spec, learned)
        if first_stage is not None:
            check_told(first_stage, config.conditional)
        self.classes = (spec.classes or 0) if config.conditional else 0
        self.tokeniser = make_tokeniser(config, learned)
        if wrong := config.sampler.excess(self.tokeniser.vocabulary):
            raise ConfigError(f"sampler.{wrong}")
        self.distribution = make_distribution(config.output, self.tokeniser)
        self.network = make_network(config.network, self.tokeniser, self.classes, self.distribution.outputs)
        bias = self.network.head.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(self.distribution.bias())

    def _known(self, label: Tensor | None) -> Tensor | None:
        if not self.classes:
            return None
        if label is None:
            raise RequestError("label", f"This model is class-conditional: give labels, 0 to {self.classes - 1}.")
        return label

    def forward(self, tokens: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:
        """log p of the tokens at each position given those before; ``generator`` is of dropout. (B, T, G) -> (B, T)

        Raises:
            RequestError: the model is conditional and there is no label.
        """
        outputs = self.network(tokens, self._known(label), generator)
        return self.distribution.log_prob(outputs.float(), tokens)

    def step(self, tokens: Tensor, position: Tensor, label: Tensor | None, cache: Cache) -> Tensor:
        """Outputs of the network at one position of each row; changes ``cache``. (R, T, G), (R,) -> (R, O)"""
        return self.network.step(tokens, position, self._known(label), cache)


def learned_spec(spec: DataSpec, first_stage: Model | None) -> DataSpec:
    """What the model learns: the data itself, or the tokens a first stage makes of it.

    Raises:
        ConfigError: the first stage makes no tokens, or cannot turn them back.
    """
    if first_stage is None:
        return spec
    tasks = first_stage.tasks
    if tasks.encode is None or tasks.decode is None or tasks.latent_spec is None or tasks.latent_spec.kind != "tokens":
        raise ConfigError(
            f"parents.{FIRST_STAGE} is a {first_stage.family.name} without tokens. Name a model with a codebook, e.g. "
            f"parents: {{{FIRST_STAGE}: digits-vq-vae@champion}}."
        )
    return tasks.latent_spec


def make_network(
    config: NetworkConfig, tokeniser: Tokeniser, classes: int, outputs: int
) -> GatedPixelCnn | PixelCnnPp | CausalTransformer:
    """The network of ``config`` with so many ``outputs`` at a position."""
    if isinstance(config, TransformerConfig):
        return CausalTransformer(config, tokeniser, classes, outputs)
    if isinstance(config, GatedPixelCnnConfig):
        return GatedPixelCnn(config, tokeniser.spec, classes, outputs)
    return PixelCnnPp(config, tokeniser.spec, classes, outputs)


def build(config: AutoregressiveConfig, spec: DataSpec, parents: Mapping[str, Model]) -> Autoregressive:
    """The untrained model of a recipe for ``spec``; draws from torch's global generator.

    Raises:
        ConfigError: the recipe does not fit the data, its tokens, or its first stage: no tokens, or classes that it is
            not told.
    """
    return Autoregressive(config, spec, parents.get(FIRST_STAGE))
