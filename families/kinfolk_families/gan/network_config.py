"""Settings of the networks that a generator and a critic may be."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config


class Pyramid(Config):
    """Resolutions of a convolutional network: the image's own, halved at least once, sides rounded up."""

    width: int = Field(64, ge=1)  # channels at the finest resolution of features, doubled with each halving
    max_width: int = Field(512, ge=1)  # channels double up to here
    base: int = Field(4, ge=1)  # pixels: halved until the shorter side is no longer than this

    def resolutions(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H, W) of every resolution, the finest first."""
        sizes = [(height, width)]
        while len(sizes) == 1 or min(sizes[-1]) > self.base:
            height, width = (height + 1) // 2, (width + 1) // 2
            sizes.append((height, width))
        return sizes

    def channels(self, count: int) -> list[int]:
        """Channels of ``count`` successive resolutions, the finest first."""
        return [min(self.width * 2**i, self.max_width) for i in range(count)]


class ConvNetwork(Pyramid):
    """Strided convolutions, as in DCGAN."""

    kind: Literal["conv"] = "conv"
    attention: int | None = Field(None, ge=1)  # pixels: self-attention at the finest features no longer a side


class ResNetwork(Pyramid):
    """Residual blocks of two plain convolutions, as in WGAN-GP and SN-GAN."""

    kind: Literal["resnet"] = "resnet"
    attention: int | None = Field(None, ge=1)  # pixels: self-attention at the finest features no longer a side


class ResidualNetwork(Pyramid):
    """Residual blocks of grouped convolutions without normalisation, as in R3GAN."""

    kind: Literal["residual"] = "residual"
    blocks: int = Field(2, ge=1)  # at each resolution
    expansion: int = Field(2, ge=1)  # channels inside a block, in multiples of those outside
    group_width: int = Field(16, ge=1)  # channels that one group of a 3x3 convolution sees

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "ResidualNetwork":
        for name in ("width", "max_width"):
            if getattr(self, name) * self.expansion % self.group_width:
                step = self.group_width // math.gcd(self.group_width, self.expansion)
                raise ValueError(
                    f"{name}={getattr(self, name)} times expansion={self.expansion} does not divide into groups of "
                    f"group_width={self.group_width} channels; use a multiple of {step} for {name}"
                )
        return self


class ProgressiveNetwork(Pyramid):
    """Resolutions that join one after another while training, the coarsest first; both players have it, or neither."""

    kind: Literal["progressive"] = "progressive"


class StyleGenerator(Pyramid):
    """StyleGAN2's generator: noise is mapped to a style, which scales the channels of every convolution."""

    kind: Literal["stylegan2"] = "stylegan2"
    style: int = Field(64, ge=1)  # W, dimensions of a style
    mapping_depth: int = Field(4, ge=1)  # layers from noise to style
    mapping_lr: float = Field(0.01, gt=0)  # of the mapping's layers, in multiples of the optimiser's rate
    mixing: float = Field(0.0, ge=0, le=1)  # share of training samples that change to a second style on the way


class StyleCritic(Pyramid):
    """StyleGAN2's critic: residual blocks with equalised learning rates."""

    kind: Literal["stylegan2"] = "stylegan2"


class MLPNetwork(Config):
    """Fully connected layers; for vectors, and for images as Goodfellow et al. first had it."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1)  # units of each hidden layer
    depth: int = Field(3, ge=1)  # hidden layers
    activation: Literal["leaky_relu", "tanh"] = "leaky_relu"  # tanh makes plateaus: for a generator of narrow modes
    octaves: int = Field(0, ge=0)  # sines and cosines of the input at pi/2, pi, ...; a critic's is in units of data_std


_Either = ConvNetwork | ResNetwork | ResidualNetwork | ProgressiveNetwork | MLPNetwork
GeneratorNetwork = Annotated[_Either | StyleGenerator, Field(discriminator="kind")]
CriticNetwork = Annotated[_Either | StyleCritic, Field(discriminator="kind")]
