"""Generator and critic: a network for the data kind each, the class where the model is conditional, and what a critic
is told of a group of samples. Shapes: B samples, P packs of m, C channels, Z noise, D features, L W styles.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Model
from kinfolk_families.gan.augmentation import Augmentation
from kinfolk_families.gan.config import DeviationConfig, GANConfig
from kinfolk_families.gan.convolution import LEAK, ConvCritic, ConvGenerator, initialise
from kinfolk_families.gan.minibatch import make_statistics
from kinfolk_families.gan.network_config import (
    ConvNetwork,
    CriticNetwork,
    GeneratorNetwork,
    MLPNetwork,
    ProgressiveNetwork,
    ResidualNetwork,
    ResNetwork,
    StyleCritic,
    StyleGenerator,
)
from kinfolk_families.gan.packing import packed, unpacked
from kinfolk_families.gan.path_length import PathLength
from kinfolk_families.gan.perceptron import MLP, Scaled
from kinfolk_families.gan.progressive import Growing, ProgressiveCritic, ProgressiveGenerator
from kinfolk_families.gan.residual import ResidualCritic, ResidualGenerator
from kinfolk_families.gan.resnet import ResNetCritic, ResNetGenerator
from kinfolk_families.gan.spectral import normalise_spectrally
from kinfolk_families.gan.stylegan import StyledCritic, StyledGenerator


def _image_shape(part: str, config: GeneratorNetwork | CriticNetwork, spec: DataSpec) -> tuple[int, int, int]:
    if spec.kind != "image":
        raise ConfigError(
            f"{part}.kind={config.kind} makes images, this data is {spec.kind} of shape {spec.shape}. "
            f"Use {part}: {{kind: mlp}}."
        )
    channels, height, width = spec.shape
    return channels, height, width


def _generator_network(config: GeneratorNetwork, inputs: int, spec: DataSpec) -> nn.Module:
    if isinstance(config, MLPNetwork):
        mlp = MLP(config, inputs)
        linear, scaled = nn.Linear(mlp.features, spec.dims), Scaled(spec.data_std)
        return nn.Sequential(mlp, linear, scaled, nn.Unflatten(1, spec.shape))
    shape = _image_shape("generator", config, spec)
    match config:
        case ConvNetwork():
            return ConvGenerator(config, inputs, shape)
        case ResNetwork():
            return ResNetGenerator(config, inputs, shape)
        case ResidualNetwork():
            return ResidualGenerator(config, inputs, shape)
        case ProgressiveNetwork():
            return ProgressiveGenerator(config, inputs, shape)
        case StyleGenerator():
            return StyledGenerator(config, inputs, shape)


CriticModule = MLP | ConvCritic | ResNetCritic | ResidualCritic | ProgressiveCritic | StyledCritic


def _critic_network(config: CriticNetwork, spec: DataSpec) -> CriticModule:
    if isinstance(config, MLPNetwork):
        return MLP(config, spec.dims, spec.data_std)
    shape = _image_shape("critic", config, spec)
    match config:
        case ConvNetwork():
            return ConvCritic(config, shape)
        case ResNetwork():
            return ResNetCritic(config, shape)
        case ResidualNetwork():
            return ResidualCritic(config, shape)
        case ProgressiveNetwork():
            return ProgressiveCritic(config, shape)
        case StyleCritic():
            return StyledCritic(config, shape)


class Generator(nn.Module):
    """Noise, with an embedded class beside it, to data."""

    def __init__(self, config: GANConfig, spec: DataSpec, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, config.embedding) if classes else None
        self.network = _generator_network(config.generator, config.latent + (config.embedding if classes else 0), spec)
        self.path_length = None if config.path_length is None else PathLength(config.path_length)

    @property
    def styled(self) -> StyledGenerator | None:
        """The network, if it goes by styles."""
        return self.network if isinstance(self.network, StyledGenerator) else None

    def code(self, z: Tensor, label: Tensor | None) -> Tensor:
        """(B, Z), (B,) int64 on a conditional model -> (B, E), what the network starts from"""
        return z if self.embedding is None else torch.cat([z, self.embedding(label)], dim=1)

    def forward(self, z: Tensor, label: Tensor | None = None, truncation: Tensor | None = None) -> Tensor:
        """(B, Z), (B,) int64 on a conditional model, (B,) of styles or else of noise -> (B, *)"""
        if self.styled is None:
            shrunk = z if truncation is None else z * truncation[:, None]
            return self.network(self.code(shrunk, label))
        styles = self.styled.styles(self.code(z, label))
        return self.styled(styles if truncation is None else self.styled.truncated(styles, truncation))

    def training_samples(self, z: Tensor, label: Tensor | None, draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Samples, and their styles where there are any, with all that is random in training.

        (B, Z), (B,) or None -> (B, *), (B, L, W) or None
        """
        if self.styled is None:
            return self(z, label), None
        styles = self.styled.styles(self.code(z, label))
        if self.styled.config.mixing:
            other = torch.randn(z.shape, generator=draws, device=z.device, dtype=z.dtype)
            styles = self.styled.mixed(styles, self.styled.styles(self.code(other, label)), draws)
        return self.styled(styles, draws), styles


class Critic(nn.Module):
    """A logit that is high for real data: linear in the features, with a direction for each class (projection).

    Source: Miyato and Koyama, 2018, https://arxiv.org/abs/1802.05637, eq. 5.
    """

    def __init__(self, config: GANConfig, spec: DataSpec, classes: int) -> None:
        super().__init__()
        channels, *sides = spec.shape
        seen = spec.model_copy(update={"shape": (config.packing * channels, *sides)})
        self.network = _critic_network(config.critic, seen)
        features = self.network.features
        self.statistics = make_statistics(config.minibatch, features)
        self.hidden: nn.Module = nn.Identity()
        if self.statistics is not None:
            features += self.statistics.outputs
        if isinstance(config.minibatch, DeviationConfig):
            self.hidden = nn.Sequential(nn.Linear(features, config.minibatch.hidden), nn.LeakyReLU(LEAK))
            features = config.minibatch.hidden
            initialise(self.hidden)
        self.head = nn.Linear(features, 1)
        self.directions = nn.Embedding(classes, features) if classes else None
        if self.directions is not None:
            nn.init.normal_(self.directions.weight, std=features**-0.5)

    def forward(self, packs: Tensor, label: Tensor | None = None) -> Tensor:
        """(P, m*C, *), (P,) int64 on a conditional model -> (P,) logits"""
        features = self.network(packs)  # (P, D)
        if self.statistics is not None:
            features = torch.cat([features, self.statistics(features)], dim=1)
        features = self.hidden(features)
        logits = self.head(features)[:, 0]  # (P,)
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
        self.augmentation = None if config.augmentation is None else Augmentation(config.augmentation, spec)
        for player in config.spectral:
            normalise_spectrally(getattr(self, player))

    def noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Standard normal z on the generator's device. -> (rows, Z)"""
        return torch.randn(rows, self.config.latent, generator=generator, device=generator.device)

    def augmented(self, packs: Tensor, draws: torch.Generator) -> Tensor:
        """What the critic sees of packs: each of their samples transformed on its own. (P, m*C, *) -> (P, m*C, *)"""
        if self.augmentation is None:
            return packs
        return packed(self.augmentation(unpacked(packs, self.config.packing), draws), self.config.packing)

    def grow(self, samples_seen: int) -> None:
        """Let both networks have the resolutions that are due."""
        for network in (self.generator.network, self.critic.network):
            if isinstance(network, Growing):
                network.grow(self.config.growth.at(samples_seen))

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
