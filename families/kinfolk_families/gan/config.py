"""What a recipe may say about the GAN: networks, adversarial loss, penalties, and how samples are drawn."""

import math
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions


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


class MLPNetwork(Config):
    """Fully connected layers; for vectors, and for images as Goodfellow et al. first had it."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1)  # units of each hidden layer
    depth: int = Field(3, ge=1)  # hidden layers


Network = Annotated[ConvNetwork | ResidualNetwork | MLPNetwork, Field(discriminator="kind")]


class PenaltyConfig(Config):
    """gamma/2 times the mean squared gradient norm of the critic at real (r1) or generated (r2) samples."""

    kind: Literal["r1", "r2"]
    gamma: float = Field(ge=0)
    final_gamma: float | None = Field(None, ge=0)  # cosine from gamma to this over decay_samples (R3GAN, Sec. 3)
    decay_samples: int | None = Field(None, gt=0)
    every_steps: int = Field(1, ge=1)  # lazy: so much rarer, so much stronger; R3GAN found it harmful

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> "PenaltyConfig":
        if (self.final_gamma is None) != (self.decay_samples is None):
            raise ValueError("final_gamma and decay_samples make one schedule; give both or neither")
        return self

    def gamma_at(self, samples_seen: int) -> float:
        """gamma after ``samples_seen`` samples: constant, or a cosine between its two ends."""
        if self.final_gamma is None or self.decay_samples is None:
            return self.gamma
        done = min(samples_seen / self.decay_samples, 1.0)
        return self.final_gamma + (self.gamma - self.final_gamma) * 0.5 * (1 + math.cos(math.pi * done))


class GANOptions(SamplerOptions):
    """What may be chosen when sampling."""

    truncation: float = Field(1.0, gt=0, le=1.5)  # scale of z: below 1 more typical and less diverse samples


class GANConfig(Config):
    """Networks, losses and optimisers of a generator and its critic."""

    loss: Literal["non_saturating", "relativistic"] = "non_saturating"
    penalties: tuple[PenaltyConfig, ...] = (PenaltyConfig(kind="r1", gamma=0.1),)
    conditional: bool = False  # on the class: generator by embedding, critic by projection
    latent: int = Field(64, ge=1)  # Z, dimensions of the Gaussian noise
    embedding: int = Field(32, ge=1)  # dimensions of a class in the generator's input
    generator: Network = ConvNetwork()
    critic: Network = ConvNetwork()
    generator_optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=2e-4, betas=(0.0, 0.99))
    critic_optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=2e-4, betas=(0.0, 0.99))
    sampler: GANOptions = GANOptions()

    def idle(self) -> dict[str, str]:
        """The size of what says the class."""
        return {} if self.conditional else {"embedding": "conditional=true"}

    @model_validator(mode="after")
    def _one_penalty_of_a_kind(self) -> "GANConfig":
        kind, count = (
            Counter(penalty.kind for penalty in self.penalties).most_common(1)[0] if self.penalties else ("", 0)
        )
        if count > 1:
            raise ValueError(f"penalties names {kind} {count} times; give each kind once, with the sum of its gammas")
        return self
