"""What a recipe may say about an autoregressive model."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, ConfigError, DataSpec, OptimizerConfig, SamplerOptions


class Options(SamplerOptions):
    """How each token is drawn. Temperature comes first, then ``top_k``, then ``top_p`` of what that leaves."""

    temperature: float = Field(1.0, gt=0, le=2, description="divides the log-probabilities; below 1 is likelier")
    top_k: int = Field(0, ge=0, description="draw among so many likeliest tokens; 0: among all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the fewest tokens that hold this probability")

    def excess(self, vocabulary: int) -> str:
        """What is wrong about these for a model that draws among ``vocabulary`` tokens, or nothing."""
        if self.top_k <= vocabulary:
            return ""
        return f"top_k={self.top_k}: this model draws among {vocabulary} tokens. Use 0 to {vocabulary}."


class BernoulliConfig(Config):
    """Pixels on or off; x is binarised anew each time it is seen."""

    kind: Literal["bernoulli"] = "bernoulli"


class CategoricalConfig(Config):
    """A probability for each level or token, with no order among them."""

    kind: Literal["categorical"] = "categorical"


class MixtureConfig(Config):
    """Mixture of discretised logistics over levels (PixelCNN++)."""

    kind: Literal["mixture"] = "mixture"
    components: int = Field(10, ge=1)
    min_log_scale: float = -7.0  # PixelCNN++, nn.py, discretized_mix_logistic_loss


OutputConfig = BernoulliConfig | CategoricalConfig | MixtureConfig


class GatedPixelCnnConfig(Config):
    """Vertical and horizontal stack of gated convolutions at full resolution; images only."""

    kind: Literal["gated_pixelcnn"] = "gated_pixelcnn"
    channels: int = Field(32, ge=1)
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 1, 2, 1, 4, 1), min_length=1)  # one for each layer


class PixelCnnPpConfig(Config):
    """PixelCNN++: down- and down-right-shifted gated residual blocks that go down in resolution and up; images only."""

    kind: Literal["pixelcnn_pp"] = "pixelcnn_pp"
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 48, 64), min_length=2)  # at each resolution
    blocks: int = Field(1, ge=1)  # on the way down and again on the way up, at each resolution
    dropout: float = Field(0.0, ge=0, lt=1)  # after a block's first convolution


class TransformerConfig(Config):
    """A causal transformer over tokens in raster order, channels innermost (ImageGPT)."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(64, ge=1)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


NetworkConfig = GatedPixelCnnConfig | PixelCnnPpConfig | TransformerConfig


class AutoregressiveConfig(Config):
    """An autoregressive model: what a token is, its distribution, the network and how it is trained."""

    network: Annotated[NetworkConfig, Field(discriminator="kind")] = TransformerConfig()
    output: Annotated[OutputConfig, Field(discriminator="kind")] = CategoricalConfig()
    palette: int | None = Field(None, ge=2)  # colours that k-means finds in the first batch; None: every level
    conditional: bool = False  # the network is told the class
    optimizer: OptimizerConfig = OptimizerConfig(kind="adamw", lr=1e-3, betas=(0.9, 0.95), clip_norm=1.0)
    sampler: Options = Options()

    @model_validator(mode="after")
    def _palette_fits(self) -> "AutoregressiveConfig":
        if self.palette is not None and (self.network.kind, self.output.kind) != ("transformer", "categorical"):
            raise ValueError(
                "palette needs network.kind=transformer and output.kind=categorical: its colours are names"
            )
        return self


def check(config: AutoregressiveConfig, spec: DataSpec, learned: DataSpec) -> None:
    """Refuse a recipe for data it cannot learn; ``learned`` is ``spec``, or describes a first stage's tokens of it.

    Raises:
        ConfigError: classes, levels, order, pixels or colours are asked of data without them, or do not divide.
    """
    if learned.levels is None:
        raise ConfigError(
            f"autoregressive draws levels or tokens, and this {learned.kind} data is continuous. Use flow."
        )
    if config.conditional and spec.classes is None:
        raise ConfigError("conditional=true, but the data has no classes. Use conditional: false.")
    if learned.kind == "tokens":
        _check_tokens(config)
    else:
        _check_image(config, *learned.shape)
        _check_palette(config.palette, learned.levels, learned.shape[0])


def _check_tokens(config: AutoregressiveConfig) -> None:
    if config.network.kind != "transformer":
        raise ConfigError(f"network.kind={config.network.kind!r} reads images, not tokens. Use kind: transformer.")
    if config.output.kind != "categorical":
        raise ConfigError(f"output.kind={config.output.kind!r} is over pixels, not tokens. Use kind: categorical.")
    if config.palette is not None:
        raise ConfigError(f"palette={config.palette} is of colours, and tokens have none. Leave it out.")


def _check_image(config: AutoregressiveConfig, channels: int, height: int, width: int) -> None:
    network = config.network
    if network.kind != "transformer" and channels > 1 and config.output.kind != "mixture":
        raise ConfigError(
            f"output.kind={config.output.kind!r} draws one token at a pixel, images of {channels} channels need "
            f"{channels}. Use output: {{kind: mixture}} or network: {{kind: transformer}}."
        )
    if isinstance(network, PixelCnnPpConfig):
        _check_resolutions(len(network.channels), math.gcd(height, width))


def _check_palette(palette: int | None, levels: int, channels: int) -> None:
    colours = levels**channels
    if palette is not None and palette > colours:
        raise ConfigError(
            f"palette={palette}, but pixels of {levels} levels a channel have only {colours} colours. Use at most "
            f"{colours}, or leave it out to learn every level."
        )


def _check_resolutions(resolutions: int, side: int) -> None:
    most = (side & -side).bit_length()  # one more than the times 2 divides both sides
    if resolutions > most:
        raise ConfigError(
            f"network.channels has {resolutions} resolutions, but these images can be halved only {most - 1} times. "
            f"Use at most {most} resolutions."
        )
