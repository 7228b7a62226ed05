"""Settings of the networks that are told a noise level: transformer, U-Net, perceptron."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, ConfigError, DataSpec


class TransformerConfig(Config):
    """Patch transformer (DiT); height and width must be multiples of ``patch``."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(2, ge=1)  # pixels
    width: int = Field(64, ge=2, multiple_of=2)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)  # in training, of what attention and perceptron of a block add

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


class UNetConfig(Config):
    """Convolutions at several resolutions; height and width must be multiples of patch * 2^(number of levels - 1)."""

    kind: Literal["unet"] = "unet"
    patch: int = Field(1, ge=1)  # pixels a side that enter and leave as channels of one: above 1 all is done smaller
    channels: int = Field(32, ge=8, multiple_of=8)  # at full resolution; group norm has 8 groups
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 2), min_length=1)  # of channels, a level each
    blocks: int = Field(1, ge=1)  # residual blocks at each level, on the way down and again on the way up
    attention: int = Field(8, ge=0)  # positions: self-attention where the height is at most this; 0: only in the middle
    heads: Literal[1, 2, 4, 8] = 4
    dropout: float = Field(0.0, ge=0, lt=1)  # in training, of what a block's second convolution sees


class MlpConfig(Config):
    """Residual perceptron for vectors."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=2, multiple_of=2)
    depth: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)  # in training, of what a block adds


Network = Annotated[TransformerConfig | UNetConfig | MlpConfig, Field(discriminator="kind")]


def check_network(network: TransformerConfig | UNetConfig | MlpConfig, spec: DataSpec) -> None:
    """Refuse a network for samples it cannot take.

    Raises:
        ConfigError: it is for data of another kind, or does not divide their height and width.
    """
    fits = "mlp" if spec.kind == "vector" else "transformer or unet"
    if (network.kind == "mlp") != (spec.kind == "vector"):
        raise ConfigError(f"network.kind={network.kind} cannot learn {spec.kind} data. Use {fits}.")
    if isinstance(network, TransformerConfig):
        _check_patch(network.patch, *spec.shape[1:])
    if isinstance(network, UNetConfig):
        _check_patch(network.patch, *spec.shape[1:])
        _check_levels(len(network.multipliers), *(side // network.patch for side in spec.shape[1:]))


def _check_patch(patch: int, height: int, width: int) -> None:
    shared = math.gcd(height, width)
    if shared % patch:
        allowed = ", ".join(str(size) for size in range(1, shared + 1) if shared % size == 0)
        raise ConfigError(f"patch={patch} does not divide images of {height} x {width}. Use one of {allowed}.")


def _check_levels(levels: int, height: int, width: int) -> None:
    shared = math.gcd(height, width)
    if shared % 2 ** (levels - 1):
        most = (shared & -shared).bit_length()  # one more than the times 2 divides it
        raise ConfigError(
            f"multipliers has {levels} levels, but {height} x {width} positions can be halved only {most - 1} times. "
            f"Use at most {most} levels."
        )
