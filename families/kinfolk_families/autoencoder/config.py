"""What a recipe may say about an autoencoder."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions


class Options(SamplerOptions):
    """What a user may ask of one sample."""

    temperature: float = Field(1.0, gt=0, le=2)  # standard deviation of z; below 1 is likelier and less diverse


class ConvConfig(Config):
    """Strided convolutions down to the latent and their mirror image; images only."""

    kind: Literal["conv"] = "conv"
    width: int = Field(32, gt=0)  # channels at full resolution, doubled at each halving
    halvings: int = Field(2, ge=1)  # H and W must be divisible by 2**halvings


class TransformerConfig(Config):
    """Transformer blocks over patches on both sides; images only."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(2, gt=0)  # must divide H and W
    width: int = Field(64, gt=0)
    depth: int = Field(2, gt=0)  # blocks of the encoder, and of the decoder
    heads: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        return self


class MlpConfig(Config):
    """Fully connected layers over the flattened sample."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(256, gt=0)
    depth: int = Field(2, ge=0)  # hidden layers of the encoder, and of the decoder; 0 makes both linear


class BernoulliConfig(Config):
    """Each element is on or off, with (x + 1) / 2 as the probability that it is on; images only."""

    kind: Literal["bernoulli"] = "bernoulli"
    binarise: bool = True  # draw x anew each time it is seen; False: grey targets, which have no log_prob


class DiscretisedLogisticConfig(Config):
    """Probability of each level: a logistic's mass between the edges of its bin; data with levels only."""

    kind: Literal["discretised_logistic"] = "discretised_logistic"
    min_log_scale: float = -7.0  # PixelCNN++, nn.py, discretized_mix_logistic_loss


class GaussianConfig(Config):
    """A density around the decoder's output, with one variance for all elements of all samples (sigma-VAE)."""

    kind: Literal["gaussian"] = "gaussian"
    variance: Literal["optimal", "learned"] = "optimal"  # mean squared error of late, or a trained parameter
    halflife_samples: int = Field(2000, gt=0)  # of the average of squared errors, where the variance is optimal

    def idle(self) -> dict[str, str]:
        """The half-life of an average, which a learned variance is not."""
        return {"halflife_samples": "variance=optimal"} if self.variance == "learned" else {}


DistributionConfig = Annotated[
    BernoulliConfig | DiscretisedLogisticConfig | GaussianConfig, Field(discriminator="kind")
]


class ReconstructionConfig(Config):
    """Plain autoencoder: squared error of the reconstruction, no noise and no prior, hence no samples."""

    kind: Literal["reconstruction"] = "reconstruction"


class DenoisingConfig(Config):
    """Denoising autoencoder: squared error of x reconstructed from x plus Gaussian noise of one level."""

    kind: Literal["denoising"] = "denoising"
    sigma: float = Field(0.5, gt=0)  # standard deviation of the noise, in the units of x


class KlRegularisedConfig(Config):
    """First stage of latent diffusion: squared error, and a KL divergence too light for the prior to be sampled."""

    kind: Literal["kl_regularised"] = "kl_regularised"
    weight: float = Field(1e-6, gt=0)  # Rombach et al., 2022, section 3.1: about 1e-6


class VectorQuantisedConfig(Config):
    """VQ-VAE: each latent position is one of K learned codes, which follow the encoder by a moving average."""

    kind: Literal["vector_quantised"] = "vector_quantised"
    codes: int = Field(256, ge=2)  # K
    commitment: float = Field(0.25, ge=0)  # weight of the distance of encoder outputs to their codes; eq. 3 there
    halflife_samples: int = Field(8800, gt=0)  # of the codes' moving average; 0.99 a step at a batch of 128
    restart_below: float = Field(1.0, ge=0)  # tokens a step, on average: a code with fewer is dead (Jukebox: 1.0)


class FiniteScalarConfig(Config):
    """FSQ: each latent position is rounded to a fixed grid, so there is no codebook that could die."""

    kind: Literal["finite_scalar"] = "finite_scalar"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field((8, 6, 5), min_length=1)  # of each channel; Table 1 there

    @field_validator("levels")
    @classmethod
    def _with_a_slope(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if 2 in levels:
            raise ValueError(
                f"levels={levels} holds 2, between which the shifted tanh of this grid stands where it has no slope "
                "left (0.001 at an output of 0); use 3 or more"
            )
        return levels


class CapacityConfig(Config):
    """A KL divergence led along a rising line instead of weighed: more detail is let in as training goes on."""

    nats: float = Field(25.0, gt=0)  # Burgess et al., 2018, section 5: 0 to 25 nats
    samples: int = Field(gt=0)  # over which the line rises from 0
    weight: float = Field(1000.0, gt=0)  # gamma, of the distance to the line; 1000 there

    def at(self, samples_seen: int) -> float:
        """The KL divergence wanted after ``samples_seen`` samples, nats."""
        return self.nats * min(samples_seen / self.samples, 1.0)


class ElboConfig(Config):
    """Evidence lower bound: the VAE at beta 1, the beta-VAE elsewhere."""

    kind: Literal["elbo"] = "elbo"
    decoder: DistributionConfig = GaussianConfig()
    beta: float = Field(1.0, ge=0)  # weight of the KL divergence
    capacity: CapacityConfig | None = None  # leads the KL divergence in place of beta

    @model_validator(mode="after")
    def _one_rule(self) -> "ElboConfig":
        if self.capacity is not None and self.beta != 1:
            raise ValueError(f"capacity takes the place of beta={self.beta}; leave beta out, or capacity")
        return self


class IwaeConfig(Config):
    """Importance-weighted bound, tighter with more draws."""

    kind: Literal["iwae"] = "iwae"
    decoder: DistributionConfig = GaussianConfig(variance="learned")
    draws: int = Field(10, ge=1)  # of z for each sample and step
    growth_samples: int = Field(0, ge=0)  # over which draws grow from 1, each by the same factor; the cost is theirs
    gradient: Literal["standard", "doubly_reparameterised"] = "standard"  # the latter's noise falls with more draws
    backward_draws: int | None = Field(None, ge=1)  # gradients go through so many, taken by weight; None: through all

    def idle(self) -> dict[str, str]:
        """How draws grow where there is one."""
        return {"growth_samples": "draws above 1"} if self.draws == 1 else {}

    def draws_at(self, samples_seen: int) -> int:
        """Draws of z for each sample after ``samples_seen`` samples."""
        if samples_seen >= self.growth_samples:
            return self.draws
        return round(self.draws ** (samples_seen / self.growth_samples))

    @model_validator(mode="after")
    def _backward(self) -> "IwaeConfig":
        if self.backward_draws is not None and self.backward_draws > self.draws:
            raise ValueError(
                f"backward_draws={self.backward_draws} are taken among draws={self.draws}; use at most {self.draws}, "
                "or leave it out for all"
            )
        return self

    @model_validator(mode="after")
    def _variance(self) -> "IwaeConfig":
        if isinstance(self.decoder, GaussianConfig) and self.decoder.variance == "optimal":
            raise ValueError("decoder.variance='optimal' is the optimum of the elbo, not of this bound; use 'learned'")
        return self


Objective = (
    ReconstructionConfig
    | DenoisingConfig
    | KlRegularisedConfig
    | VectorQuantisedConfig
    | FiniteScalarConfig
    | ElboConfig
    | IwaeConfig
)


class AutoencoderConfig(Config):
    """An autoencoder: what it minimises, its networks, its latent and how it is trained."""

    objective: Annotated[Objective, Field(discriminator="kind")] = ElboConfig()
    network: Annotated[ConvConfig | TransformerConfig | MlpConfig, Field(discriminator="kind")] = MlpConfig()
    latent: int = Field(16, gt=0)  # Z: elements of the latent, or its channels where it is spatial
    spatial: bool = False  # a latent of (Z, h, w) on the grid the network ends in; always so where it is quantised
    conditional: bool = False  # encoder and decoder are told the class
    anomaly: Literal["bound", "error", "unexplained"] | None = None  # what scores; None: the bound where there is one
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=1e-3)
    sampler: Options = Options()

    def idle(self) -> dict[str, str]:
        """Options of samples where there is no prior to draw from."""
        has_prior = isinstance(self.objective, ElboConfig | IwaeConfig)
        return {} if has_prior else {"sampler": "objective.kind=elbo or iwae"}

    @property
    def on_grid(self) -> bool:
        """Whether the latent is (Z, h, w), not (Z,)."""
        return self.spatial or isinstance(self.objective, VectorQuantisedConfig | FiniteScalarConfig)

    @model_validator(mode="after")
    def _score(self) -> "AutoencoderConfig":
        if self.anomaly == "bound" and not isinstance(self.objective, ElboConfig | IwaeConfig):
            raise ValueError(f"anomaly='bound', but {self.objective.kind} has none; use 'error' or 'unexplained'")
        return self

    @model_validator(mode="after")
    def _channels(self) -> "AutoencoderConfig":
        if isinstance(self.objective, FiniteScalarConfig) and self.latent != len(self.objective.levels):
            n = len(self.objective.levels)
            raise ValueError(f"latent={self.latent}, but objective.levels has {n} entries: set latent to {n}")
        return self
