"""Generator and critic: a network for the data kind each, and the class where the model is conditional."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Model
from kinfolk_families.gan.config import ConvNetwork, GANConfig, MLPNetwork, Network, ResidualNetwork
from kinfolk_families.gan.convolution import LEAK, ConvCritic, ConvGenerator, initialise
from kinfolk_families.gan.residual import ResidualCritic, ResidualGenerator


class MLP(nn.Sequential):
    """Hidden layers with leaky ReLU. (B, *) -> (B, width)"""

    def __init__(self, config: MLPNetwork, inputs: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise([inputs, *[config.width] * config.depth]):
            layers += [nn.Linear(before, after), nn.LeakyReLU(LEAK)]
        super().__init__(*layers)
        self.features = config.width
        initialise(self)


def _mlp_generator(config: MLPNetwork, inputs: int, spec: DataSpec) -> nn.Module:
    return nn.Sequential(MLP(config, inputs), nn.Linear(config.width, spec.dims), nn.Unflatten(1, spec.shape))


def _image_shape(part: str, config: ConvNetwork | ResidualNetwork, spec: DataSpec) -> tuple[int, int, int]:
    if spec.kind != "image":
        raise ConfigError(
            f"{part}.kind={config.kind} makes images, this data is {spec.kind} of shape {spec.shape}. "
            f"Use {part}: {{kind: mlp}}."
        )
    channels, height, width = spec.shape
    return channels, height, width


def _generator_network(config: Network, inputs: int, spec: DataSpec) -> nn.Module:
    if isinstance(config, MLPNetwork):
        return _mlp_generator(config, inputs, spec)
    shape = _image_shape("generator", config, spec)
    if isinstance(config, ConvNetwork):
        return ConvGenerator(config, inputs, shape)
    return ResidualGenerator(config, inputs, shape)


def _critic_network(config: Network, spec: DataSpec) -> MLP | ConvCritic | ResidualCritic:
    if isinstance(config, MLPNetwork):
        return MLP(config, spec.dims)
    shape = _image_shape("critic", config, spec)
    return ConvCritic(config, shape) if isinstance(config, ConvNetwork) else ResidualCritic(config, shape)


class Generator(nn.Module):
    """Noise, with an embedded class beside it, to data."""

    def __init__(self, config: GANConfig, spec: DataSpec, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, config.embedding) if classes else None
        self.network = _generator_network(config.generator, config.latent + (config.embedding if classes else 0), spec)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, Z), (B,) int64 on a conditional model -> (B, *)"""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], dim=1)
        return self.network(z)


class Critic(nn.Module):
    """A logit that is high for real data: linear in the features, with a direction for each class (projection).

    Source: Miyato and Koyama, 2018, https://arxiv.org/abs/1802.05637, eq. 5.
    """

    def __init__(self, config: GANConfig, spec: DataSpec, classes: int) -> None:
        super().__init__()
        self.network = _critic_network(config.critic, spec)
        features = self.network.features
        self.head = nn.Linear(features, 1)
        self.directions = nn.Embedding(classes, features) if classes else None
        if self.directions is not None:
            nn.init.normal_(self.directions.weight, std=features**-0.5)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, *), (B,) int64 on a conditional model -> (B,) logits"""
        features = self.network(x)  # (B, D)
        logits = self.head(features)[:, 0]  # (B,)
        if self.directions is not None:
            logits = logits + (self.directions(label) * features).sum(1)
        return logits


class GAN(nn.Module):
    """The two players, and what they were built from. ``classes`` is 0 on an unconditional model."""

    def __init__(self, config: GANConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.classes = (spec.classes or 0) if config.conditional else 0
        self.generator = Generator(config, spec, self.classes)
        self.critic = Critic(config, spec, self.classes)

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Standard normal z on the generator's device. -> (rows, Z)"""
        return torch.randn(rows, self.config.latent, generator=generator, device=generator.device)

    def condition(self, label: Tensor | None) -> Tensor | None:
        """The classes both players are told: ``label`` on a conditional model, else None.

        Raises:
            ConfigError: the model is conditional and the batch has no labels.
        """
        if not self.classes:
            return None
        if label is None:
            raise ConfigError("This model is conditional and the batch has no labels. Use a labelled data set.")
        return label


def build(config: GANConfig, spec: DataSpec, parents: Mapping[str, Model]) -> GAN:  # noqa: ARG001
    """Both networks for ``spec``.

    Raises:
        ConfigError: a network does not fit the data kind, or classes are asked of data that has none.
    """
    if config.conditional and not spec.classes:
        raise ConfigError(
            "conditional=true needs classes, this data set has none. "
            "Use conditional: false, or a data set with class labels, for example a folder with one subfolder for each."
        )
    return GAN(config, spec)
