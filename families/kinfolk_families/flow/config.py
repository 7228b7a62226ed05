"""What a recipe may say about a flow."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kinfolk.contract import Config, ConfigError, DataSpec, OptimizerConfig, SamplerOptions, no_effect


class Options(SamplerOptions):
    """What a user may ask of one sample."""

    temperature: float = Field(1.0, ge=0, le=2, description="standard deviation of the noise; 0 gives the mode's image")


class RealNvpConfig(Config):
    """Couplings under alternating masks: checkerboards, then channels, at each scale; single elements of vectors."""

    kind: Literal["realnvp"] = "realnvp"
    levels: int = Field(2, ge=1)  # scales; each halves height and width. Vectors have one
    steps: int = 3  # couplings with each kind of mask at a level
    width: int = Field(64, ge=1)  # hidden channels of a coupling's network
    log_scale_bound: float = Field(2.0, gt=0)  # of one coupling, in nats; keeps sampling from running away

    @field_validator("steps")
    @classmethod
    def _every_element_moves(cls, steps: int) -> int:
        if steps < 2:
            raise ValueError("a coupling leaves what its mask keeps, and the next has the opposite mask: use 2 or more")
        return steps


class GlowConfig(Config):
    """ActNorm, an invertible 1x1 convolution and an affine coupling at each step."""

    kind: Literal["glow"] = "glow"
    levels: int = Field(2, ge=1)  # scales; half of the channels leave after each but the last. Vectors have one
    steps: int = Field(8, ge=1)  # at each level
    squeeze: int = Field(2, ge=2)  # pixels on the side of the block that each level turns into channels
    width: int = Field(64, ge=1)  # hidden channels of a coupling's network
    log_scale_bound: float = Field(2.0, gt=0)  # of one coupling, in nats; keeps sampling from running away


BijectionConfig = Annotated[RealNvpConfig | GlowConfig, Field(discriminator="kind")]


class NoDequantisationConfig(Config):
    """Continuous data is learnt as it is; its log_prob is an exact density."""

    kind: Literal["none"] = "none"


class UniformConfig(Config):
    """Noise spread evenly over each level's bin. Source: Theis et al., 2016, https://arxiv.org/abs/1511.01844."""

    kind: Literal["uniform"] = "uniform"


class VariationalConfig(Config):
    """Noise from a small flow told the levels. Source: Ho et al., 2019 (Flow++), https://arxiv.org/abs/1902.00275."""

    kind: Literal["variational"] = "variational"
    steps: int = Field(4, ge=1)  # couplings
    width: int = Field(32, ge=1)  # hidden channels of a coupling's network
    log_scale_bound: float = Field(2.0, gt=0)


DequantisationConfig = Annotated[
    NoDequantisationConfig | UniformConfig | VariationalConfig, Field(discriminator="kind")
]


class LogitConfig(Config):
    """The whole line from [0, 1): logit(alpha + (1 - 2 alpha) y)."""

    kind: Literal["logit"] = "logit"
    alpha: float = Field(0.05, gt=0, lt=0.5)  # RealNVP, section 4.1


class MarginalConfig(Config):
    """The map that makes elements of the first batch normal: the Gaussian quantile of their distribution function."""

    kind: Literal["marginal"] = "marginal"
    smoothing: float = Field(0.05, gt=0, le=1)  # share of evenly spread levels in that distribution


PreprocessingConfig = Annotated[LogitConfig | MarginalConfig, Field(discriminator="kind")]


class FlowConfig(Config):
    """A flow as a recipe writes it."""

    flow: BijectionConfig = GlowConfig()
    dequantisation: DequantisationConfig = UniformConfig()
    preprocessing: PreprocessingConfig | None = None  # of dequantised levels; None: y in [0, 1) as it is
    conditional: bool = False  # couplings and the top prior are told the class
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=1e-3, clip_norm=50.0, warmup_samples=10_000)
    sampler: Options = Options()


def check(config: FlowConfig, spec: DataSpec) -> None:
    """Refuse a recipe for data it cannot learn.

    Raises:
        ConfigError: classes, dequantisation, preprocessing or the number of levels do not fit the data.
    """
    if config.conditional and spec.classes is None:
        raise ConfigError("conditional=true, but the data has no classes. Use conditional: false.")
    _check_dequantisation(config, spec)
    if spec.kind == "image":
        side = config.flow.squeeze if isinstance(config.flow, GlowConfig) else 2
        _check_levels(config.flow.levels, side, *spec.shape[1:])
    else:
        _check_vector(config.flow, spec)


def _check_dequantisation(config: FlowConfig, spec: DataSpec) -> None:
    kind = config.dequantisation.kind
    if (kind == "none") != (spec.levels is None):
        data, fits = (
            ("continuous", "kind: none")
            if spec.levels is None
            else (f"of {spec.levels} levels, whose density has no bound", "kind: uniform or variational")
        )
        raise ConfigError(f"dequantisation.kind={kind!r}, but the data is {data}. Use {fits}.")
    if config.preprocessing is not None and spec.levels is None:
        raise ConfigError(
            f"preprocessing.kind={config.preprocessing.kind!r} is for levels, and the data is continuous. Leave it out."
        )
    if kind == "variational" and spec.kind == "image" and any(side % 2 for side in spec.shape[1:]):
        height, width = spec.shape[1:]
        raise ConfigError(
            f"dequantisation.kind='variational' needs even sides, images are {height} x {width}. Use kind: uniform."
        )


def _check_levels(levels: int, side: int, height: int, width: int) -> None:
    if height % side**levels == 0 and width % side**levels == 0:
        return
    most = max(level for level in range(levels) if height % side**level == 0 and width % side**level == 0)
    remedy = f"Use levels: 1 to {most}" if most else f"Pad the images so that {side} divides both sides"
    raise ConfigError(
        f"flow.levels={levels} needs sides that are multiples of {side}**{levels} = {side**levels}, "
        f"images are {height} x {width}. {remedy}."
    )


def _check_vector(flow: RealNvpConfig | GlowConfig, spec: DataSpec) -> None:
    if flow.levels != 1:
        raise ConfigError(f"flow.levels={flow.levels}, but vectors have one scale. Use levels: 1.")
    if isinstance(flow, GlowConfig) and flow.squeeze != GlowConfig.model_fields["squeeze"].default:
        raise ConfigError(f"{no_effect(f'flow.squeeze={flow.squeeze}', 'images')}.")
    if spec.dims < 2:
        raise ConfigError(f"A coupling needs two elements or more, the data has {spec.dims}. Use another family.")
