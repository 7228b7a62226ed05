"""Settings of a diffusion model: network, preconditioning, conditioning, adapter, optimiser, sampler, likelihood."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kinfolk.contract import Config, ConfigError, DataSpec, OptimizerConfig, SamplerOptions
from kinfolk_families._shared.network_config import Network, TransformerConfig, check_network

SolverName = Literal["ddpm", "ddim", "heun", "dpmpp_2m"]
SOLVERS_OF: dict[str, tuple[SolverName, ...]] = {  # options that some solvers read
    "eta": ("ddim", "heun", "dpmpp_2m"),
    "variance": ("ddpm",),
    "churn": ("heun",),
    "sigma_min": ("heun", "dpmpp_2m"),
}
GUIDED = ("guidance_low", "guidance_high")
CHURNED = ("churn_low", "churn_high", "churn_noise")
OF_AN_ADAPTER = {"adapter", "optimizer"}  # settings of an adapted model that are not its base's


class Options(SamplerOptions):
    """How rows are sampled. Every solver runs over every trained model."""

    task_of: ClassVar[Mapping[str, str]] = {"resample": "inpaint", "noise_level": "denoise"}
    solver: SolverName = Field("heun", description="ddpm: ancestral; ddim; heun: of EDM; dpmpp_2m: DPM-Solver++(2M)")
    steps: int = Field(18, ge=1, le=1000, description="noise levels visited; heun calls the network 2 steps - 1 times")
    guidance: float = Field(
        1.0, ge=0, le=20, description="1: conditional as trained; 0: unconditional; above 1: guided"
    )
    guidance_low: float = Field(0.0, ge=0, description="noise level at and below which nothing is guided")
    guidance_high: float | None = Field(None, gt=0, description="noise level above which nothing is guided")
    sigma_min: float | None = Field(
        None, gt=0, description="heun, dpmpp_2m: noise level at which the last step starts; none: the model's lowest"
    )
    clamp: bool = Field(False, description="keep each denoised estimate within the data's range")
    eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="ddim, heun, dpmpp_2m: 0 adds no noise, 1 as much as ddpm; heun wants 18 steps then",
    )
    variance: Literal["small", "large"] = Field("small", description="ddpm: variance of a step, least or largest")
    churn: float = Field(0.0, ge=0, description="heun: S_churn, noise put back over all steps; 0: none")
    churn_low: float = Field(0.0, ge=0, description="heun: S_tmin, noise level below which nothing is churned")
    churn_high: float | None = Field(None, gt=0, description="heun: S_tmax, noise level above which nothing is churned")
    churn_noise: float = Field(1.0, ge=0.9, le=1.1, description="heun: S_noise, standard deviation of churn's noise")
    resample: int = Field(4, ge=1, le=100, description="inpaint: how often each step but the last is taken")
    noise_level: float = Field(0.5, gt=0, description="denoise: standard deviation of the noise in the given x")

    @model_validator(mode="after")
    def _interval(self) -> "Options":
        for part in ("guidance", "churn"):
            low, high = getattr(self, f"{part}_low"), getattr(self, f"{part}_high")
            if high is not None and low >= high:
                raise ValueError(f"{part}_low={low} must be below {part}_high={high}")
        return self

    def idle(self) -> dict[str, str]:
        """The settings of the other solvers; where to guide and to churn if nothing is."""
        others = {
            name: f"solver={' or '.join(solvers)}" for name, solvers in SOLVERS_OF.items() if self.solver not in solvers
        }
        unguided = dict.fromkeys(GUIDED, "guidance other than 1") if self.guidance == 1 else {}
        still = dict.fromkeys(CHURNED, "churn above 0") if self.solver != "heun" or not self.churn else {}
        return {**others, **unguided, **still}


class Levels(Config):
    """Noise levels of sampling. Defaults: Karras et al., 2022, Table 1, last column."""

    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, ge=1)  # larger puts more steps at low noise

    @model_validator(mode="after")
    def _ordered(self) -> "Levels":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        return self


class EdmConfig(Levels):
    """Preconditioning and noise levels of EDM. Defaults: Karras et al., 2022, Table 1, last column."""

    kind: Literal["edm"] = "edm"
    sigma_data: float | None = Field(None, gt=0)  # None: the standard deviation measured on the train split
    p_mean: float = -1.2  # ln(sigma) ~ N(p_mean, p_std^2) in training
    p_std: float = Field(1.2, gt=0)


class FlowConfig(Levels):
    """Flow matching: the velocity of the straight way from noise at t = 0 to data at t = 1, sigma = (1 - t) / t."""

    kind: Literal["flow"] = "flow"
    times: Literal["uniform", "skewed"] = "uniform"  # of training; skewed: ln((1 - t) / t) ~ N(p_mean, p_std^2)
    p_mean: float = -1.2  # the flow_matching library's values for CIFAR-10
    p_std: float = Field(1.2, gt=0)

    def idle(self) -> dict[str, str]:
        """What skews."""
        return {} if self.times == "skewed" else dict.fromkeys(("p_mean", "p_std"), "times=skewed")


class DdpmConfig(Config):
    """A network that predicts the noise at discrete times. Defaults: Ho et al., 2020, section 4."""

    kind: Literal["ddpm"] = "ddpm"
    timesteps: int = Field(1000, ge=2)
    schedule: Literal["linear", "cosine"] = "linear"
    beta_first: float = Field(1e-4, gt=0, lt=1)  # linear: variance added at the first of 1,000 times
    beta_last: float = Field(0.02, gt=0, lt=1)  # linear: variance added at the last of 1,000 times
    cosine_offset: float = Field(0.008, gt=0)  # cosine: s, keeps the first steps from vanishing
    beta_limit: float = Field(0.999, gt=0, lt=1)  # no step adds more variance

    @model_validator(mode="after")
    def _grows(self) -> "DdpmConfig":
        if self.beta_first > self.beta_last:
            raise ValueError(f"beta_first={self.beta_first} must not be above beta_last={self.beta_last}")
        return self

    def idle(self) -> dict[str, str]:
        """What the other schedule is made of."""
        if self.schedule == "cosine":
            return dict.fromkeys(("beta_first", "beta_last"), "schedule=linear")
        return {"cosine_offset": "schedule=cosine"}


Preconditioning = Annotated[EdmConfig | FlowConfig | DdpmConfig, Field(discriminator="kind")]


class AdapterConfig(Config):
    """LoRA: what is trained is a matrix of low rank on top of each chosen layer of a frozen base.

    The model is what its base is; how it samples and integrates may be set apart from that, key by key.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0)  # the matrix counts alpha / rank
    targets: tuple[str, ...] = Field(("network",), min_length=1)  # words in a layer's path, e.g. attention, mlp
    label_dropout: float | None = Field(None, ge=0, lt=1)  # None: the base's
    sampler: dict[str, Any] = Field(default_factory=dict)  # what is not as in the base's
    likelihood: dict[str, Any] = Field(default_factory=dict)  # what is not as in the base's


class LikelihoodConfig(Config):
    """How the probability-flow ODE is integrated for log_prob."""

    method: Literal["heun", "rk4", "adaptive"] = "rk4"  # adaptive: Bogacki-Shampine, each row by its own error
    steps: int = Field(16, ge=1)  # evenly in ln(sigma); 16 of rk4: 0.0015 bits/dim off on Gaussian data of 784 elements
    tolerance: float = Field(1e-3, gt=0)  # adaptive: error of a step in x of unit size, and in nats per dimension
    exact_dims: int = Field(16, ge=0)  # samples of so many elements have the trace computed, larger ones estimated
    draws: int = Field(1, ge=1)  # of the estimate's probe and of the dequantisation, averaged

    def idle(self) -> dict[str, str]:
        """The tolerance of even steps; adaptive ones start with ``steps``."""
        return {} if self.method == "adaptive" else {"tolerance": "method=adaptive"}


class DiffusionConfig(Config):
    """A diffusion model as a recipe writes it. Beside an adapter stands its optimiser; all else is the base's."""

    network: Network = TransformerConfig()
    preconditioning: Preconditioning = EdmConfig()
    max_frequency: float = Field(
        8.0, gt=1
    )  # of the sinusoids that embed ln(sigma) / 4; high ones make D(x, sigma) rough
    conditional: bool = False
    # Share of labels hidden in training; without, there is no guidance, and tasks on given samples ask for their class.
    label_dropout: float = Field(0.1, ge=0, lt=1)
    adapter: AdapterConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam")
    sampler: Options = Options()
    likelihood: LikelihoodConfig = LikelihoodConfig()

    def idle(self) -> dict[str, str]:
        """What is for labels where there are none."""
        return {} if self.conditional else {"label_dropout": "conditional=true"}

    @model_validator(mode="before")
    @classmethod
    def _base_decides(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("adapter") is not None:
            for name in sorted(values.keys() & cls.model_fields.keys() - OF_AN_ADAPTER):
                own = f"set adapter.{name} instead" if name in AdapterConfig.model_fields else "leave it out"
                raise ValueError(f"{name} is what an adapter's base decides; {own}")
        return values

    @model_serializer(mode="wrap")
    def _without_what_the_base_decides(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.adapter is None:
            return values
        return {name: value for name, value in values.items() if name in OF_AN_ADAPTER}

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
    check_network(config.network, spec)
    if config.conditional and not spec.classes:
        raise ConfigError("conditional=true needs data with classes, and this has none. Set model.conditional=false.")
    if config.sampler.clamp and spec.levels is None:
        raise ConfigError("sampler.clamp=true needs data in [-1, 1], and this has no range. Leave it out.")
