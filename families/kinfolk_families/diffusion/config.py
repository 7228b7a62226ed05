"""Settings of a diffusion model: network, preconditioning, conditioning, optimiser and default sampler."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, ConfigError, DataSpec, OptimizerConfig

SolverName = Literal["ddpm", "ddim", "heun", "dpmpp_2m"]


class Options(Config):
    """How rows are sampled. Every solver runs over every trained model."""

    solver: SolverName = Field("heun", description="ddpm: ancestral; ddim; heun: of EDM; dpmpp_2m: DPM-Solver++(2M)")
    steps: int = Field(18, ge=1, le=1000, description="noise levels visited; heun calls the network 2 steps - 1 times")
    guidance: float = Field(
        1.0, ge=0, le=20, description="1: conditional as trained; 0: unconditional; above 1: guided"
    )
    clamp: bool = Field(False, description="keep each denoised estimate within the data's range")
    eta: float = Field(0.0, ge=0, le=1, description="ddim: 0 adds no noise, 1 as much as ddpm")
    variance: Literal["small", "large"] = Field("small", description="ddpm: variance of a step, least or largest")
    churn: float = Field(0.0, ge=0, description="heun: S_churn, noise put back over all steps; 0 is deterministic")


class TransformerConfig(Config):
    """Patch transformer (DiT); height and width must be multiples of ``patch``."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(2, ge=1)  # pixels
    width: int = Field(64, ge=2, multiple_of=2)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


class UNetConfig(Config):
    """Convolutions at several resolutions; height and width must be multiples of 2^(number of levels - 1)."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(32, ge=8, multiple_of=8)  # at full resolution; group norm has 8 groups
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 2), min_length=1)  # of channels, a level each
    blocks: int = Field(1, ge=1)  # residual blocks at each level of the way down; one more on the way up
    attention: int = Field(8, ge=0)  # pixels: self-attention where the height is at most this; 0: only in the middle
    heads: Literal[1, 2, 4, 8] = 4


class MlpConfig(Config):
    """Residual perceptron for vectors."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=2, multiple_of=2)
    depth: int = Field(4, ge=1)


class EdmConfig(Config):
    """Preconditioning, noise levels and time steps of EDM. Defaults: Karras et al., 2022, Table 1, last column."""

    kind: Literal["edm"] = "edm"
    sigma_data: float | None = Field(None, gt=0)  # None: the standard deviation measured on the train split
    p_mean: float = -1.2  # ln(sigma) ~ N(p_mean, p_std^2) in training
    p_std: float = Field(1.2, gt=0)
    sigma_min: float = Field(0.002, gt=0)  # noise levels of sampling
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, ge=1)  # larger puts more steps at low noise

    @model_validator(mode="after")
    def _ordered(self) -> "EdmConfig":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        return self


class DdpmConfig(Config):
    """A network that predicts the noise at discrete times. Defaults: Ho et al., 2020, section 4."""

    kind: Literal["ddpm"] = "ddpm"
    timesteps: int = Field(1000, ge=2)
    schedule: Literal["linear", "cosine"] = "linear"
    beta_first: float = Field(1e-4, gt=0, lt=1)  # linear: variance added at the first time
    beta_last: float = Field(0.02, gt=0, lt=1)  # linear: variance added at the last time
    cosine_offset: float = Field(0.008, gt=0)  # cosine: s, keeps the first steps from vanishing
    beta_limit: float = Field(0.999, gt=0, lt=1)  # cosine: no step adds more variance


class DiffusionConfig(Config):
    """A diffusion model as a recipe writes it."""

    network: Annotated[TransformerConfig | UNetConfig | MlpConfig, Field(discriminator="kind")] = TransformerConfig()
    preconditioning: Annotated[EdmConfig | DdpmConfig, Field(discriminator="kind")] = EdmConfig()
    max_frequency: float = Field(
        8.0, gt=1
    )  # of the sinusoids that embed ln(sigma) / 4; high ones make D(x, sigma) rough
    conditional: bool = False
    label_dropout: float = Field(0.1, ge=0, lt=1)  # share of labels hidden in training, which guidance needs
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam")
    sampler: Options = Options()

    @model_validator(mode="after")
    def _sampler_fits(self) -> "DiffusionConfig":
        noising, steps = self.preconditioning, self.sampler.steps
        if isinstance(noising, DdpmConfig) and steps > noising.timesteps:
            raise ValueError(f"sampler.steps={steps} is more than preconditioning.timesteps={noising.timesteps}")
        if self.sampler.guidance != 1 and not (self.conditional and self.label_dropout):
            raise ValueError("sampler.guidance other than 1 needs conditional: true and label_dropout above 0")
        return self


def check(config: DiffusionConfig, spec: DataSpec) -> None:
    """Refuse a recipe for data it cannot learn.

    Raises:
        ConfigError: the network does not fit the samples, or classes or a range are asked of data without.
    """
    network, fits = config.network, "mlp" if spec.kind == "vector" else "transformer or unet"
    if (network.kind == "mlp") != (spec.kind == "vector"):
        raise ConfigError(f"network.kind={network.kind} cannot learn {spec.kind} data. Use {fits}.")
    if isinstance(network, TransformerConfig):
        _check_patch(network.patch, *spec.shape[1:])
    if isinstance(network, UNetConfig):
        _check_levels(len(network.multipliers), *spec.shape[1:])
    if config.conditional and not spec.classes:
        raise ConfigError("conditional=true needs data with classes, and this has none. Set model.conditional=false.")
    if config.sampler.clamp and spec.levels is None:
        raise ConfigError("sampler.clamp=true needs data in [-1, 1], and this has no range. Leave it out.")


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
            f"multipliers has {levels} levels, but images of {height} x {width} can be halved only {most - 1} times. "
            f"Use at most {most} levels."
        )
