"""The network: a trunk for the data kind, normalised features, one linear layer to the classes."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Model
from kinfolk_families.classifier.config import ClassifierConfig

COARSEST = 4  # pixels: images are halved until neither side is longer
WIDEST = 4  # times the width: channels double with each halving up to here


class Residual(nn.Module):
    """x + branch(x). (B, *) -> (B, *)"""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, *)"""
        return x + self.branch(x)


def _convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(8, channels), nn.SiLU())


def _image_trunk(config: ClassifierConfig, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """(B, C, H, W) -> (B, n), and n; positions are kept, not averaged away."""
    channels_in, height, width = shape
    channels = config.width
    layers: list[nn.Module] = [_convolution(channels_in, channels)]
    while max(height, width) > COARSEST:
        wider = min(2 * channels, WIDEST * config.width)
        layers.append(_convolution(channels, wider, stride=2))
        layers += [Residual(_convolution(wider, wider)) for _ in range(config.depth)]
        channels, height, width = wider, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten()), channels * height * width


def _vector_trunk(config: ClassifierConfig, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """(B, D) -> (B, n), and n."""
    sizes = [*shape, *[config.width] * config.depth]
    layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers), config.width


class Classifier(nn.Module):
    """Class logits, and the features they are a linear function of.

    Features have mean 0 and mean square 1 in each sample, so distances in them have the same unit in every network.
    """

    def __init__(self, config: ClassifierConfig, spec: DataSpec, classes: int) -> None:
        super().__init__()
        self.config, self.spec, self.classes = config, spec, classes
        trunk = _image_trunk if spec.kind == "image" else _vector_trunk
        self.trunk, size = trunk(config, spec.shape)
        self.embedding = nn.Sequential(
            nn.Linear(size, config.features), nn.LayerNorm(config.features, elementwise_affine=False)
        )
        self.head = nn.Linear(config.features, classes)

    def embed(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, Z)"""
        return self.embedding(self.trunk(x / self.spec.data_std))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, K)"""
        return self.head(self.embed(x))


def build(config: ClassifierConfig, spec: DataSpec, parents: Mapping[str, Model]) -> Classifier:  # noqa: ARG001
    """The network for ``spec``.

    Raises:
        ConfigError: there are no two classes to tell apart, or images cannot be shifted as far as asked.
    """
    if spec.classes is None or spec.classes < 2:
        raise ConfigError(
            f"A classifier needs labelled data of at least 2 classes, this data set has classes={spec.classes}. "
            "Use a data set with class labels, for example a folder with one subfolder for each class."
        )
    room = min(spec.shape[1:]) // 2 if spec.kind == "image" else 0
    if config.max_shift > room:
        raise ConfigError(
            f"max_shift={config.max_shift} is too far for {spec.kind} data of shape {spec.shape}. Use 0 to {room}."
        )
    return Classifier(config, spec, spec.classes)
