"""What a recipe may say about an autoencoder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, OptimizerConfig


class Options(Config):
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


DistributionConfig = Annotated[
    BernoulliConfig | DiscretisedLogisticConfig | GaussianConfig, Field(discriminator="kind")
]


class ReconstructionConfig(Config):
    """Plain autoencoder: squared error of the reconstruction, no noise and no prior, hence no samples."""

    kind: Literal["reconstruction"] = "reconstruction"


class ElboConfig(Config):
    """Evidence lower bound: the VAE at beta 1, the beta-VAE elsewhere."""

    kind: Literal["elbo"] = "elbo"
    decoder: DistributionConfig = GaussianConfig()
    beta: float = Field(1.0, ge=0)  # weight of the KL divergence


class IwaeConfig(Config):
    """Importance-weighted bound, tighter with more draws."""

    kind: Literal["iwae"] = "iwae"
    decoder: DistributionConfig = GaussianConfig(variance="learned")
    draws: int = Field(10, ge=1)  # of z for each sample and step

    @model_validator(mode="after")
    def _variance(self) -> "IwaeConfig":
        if isinstance(self.decoder, GaussianConfig) and self.decoder.variance == "optimal":
            raise ValueError("decoder.variance='optimal' is the optimum of the elbo, not of this bound; use 'learned'")
        return self


class AutoencoderConfig(Config):
    """An autoencoder: what it minimises, its networks, its latent and how it is trained."""

    objective: Annotated[ReconstructionConfig | ElboConfig | IwaeConfig, Field(discriminator="kind")] = ElboConfig()
    network: Annotated[ConvConfig | TransformerConfig | MlpConfig, Field(discriminator="kind")] = MlpConfig()
    latent: int = Field(16, gt=0)  # Z
    conditional: bool = False  # encoder and decoder are told the class
    likelihood_draws: int = Field(1, ge=1)  # importance samples behind each log_prob; more tighten the bound
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=1e-3)
    sampler: Options = Options()
