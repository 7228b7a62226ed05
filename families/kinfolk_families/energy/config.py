"""What a recipe may say about an energy model: an energy network, a composition of them, or the Energy Transformer."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions

SystemKind = Literal["network", "composed", "transformer"]
Role = Literal["first", "second", "third"]
ROLES: tuple[Role, ...] = ("first", "second", "third")  # of the models that a composition adds


class Options(SamplerOptions):
    """How rows are sampled. What is None is as the model was trained."""

    steps: int = Field(100, ge=1, le=10_000, description="Langevin steps; of the Energy Transformer: decoding calls")
    step_size: float | None = Field(None, gt=0, description="Langevin: how far down the gradient a step goes")
    noise: float | None = Field(None, ge=0, description="Langevin: standard deviation of what a step adds")
    temperature: float | None = Field(
        None, ge=0, le=1, description="Energy Transformer: 0 takes the mean of each patch, 1 draws around it"
    )


class ConvConfig(Config):
    """3x3 convolutions at falling resolutions and one hidden layer; images of even height and width only."""

    kind: Literal["conv"] = "conv"
    width: int = Field(16, ge=1)  # channels after the first halving, doubled with each further one
    halvings: int = Field(3, ge=1)  # of height and width, rounded up
    hidden: int = Field(128, ge=1)  # units between the last convolution and the energy


class MlpConfig(Config):
    """Fully connected layers over the flattened sample."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)  # hidden layers


class LangevinConfig(Config):
    """x <- x - step_size dE/dx + noise N(0, 1). Defaults: JEM, train_wrn_ebm.py.

    The two sizes are set apart, where Langevin dynamics of exp(-E) has noise^2 = 2 step_size: what is sampled is
    exp(-E / temperature) with temperature = noise^2 / (2 step_size), far below 1, so that short chains get somewhere.
    """

    steps: int = Field(20, ge=1)  # of a chain in one training step
    step_size: float = Field(1.0, gt=0)
    noise: float = Field(0.01, ge=0)
    gradient_limit: float | None = Field(0.1, gt=0)  # each element of dE/dx is clipped to it; None: not at all

    @property
    def temperature(self) -> float:
        """What divides the energy in the density that endless small steps would sample."""
        return self.noise**2 / (2 * self.step_size)


class BufferConfig(Config):
    """The ends of earlier chains, where later ones start. Defaults: JEM, train_wrn_ebm.py."""

    size: int = Field(10_000, ge=1)  # chains; conditional models share them out evenly over the classes
    fresh_share: float = Field(0.05, ge=0, le=1)  # of the chains that start from noise instead
    storage: Literal["uint8", "float32"] = "float32"  # uint8: images only, rounded to 256 levels; a quarter of the size


class DenoisingConfig(Config):
    """What ``denoise`` weighs noise against: the density exp(-nats E) per element of a sample.

    Langevin dynamics of training is far colder than its short chains make it look, and would end at a mode. Much noise
    is left to the number of steps: they stop long before the descent would end. Some 10 nats and 60 steps were best of
    those tried on the train splits of digits and MNIST.
    """

    nats: float = Field(10.0, gt=0)  # per element, that a unit of energy counts
    steps: int = Field(60, ge=1)  # of gradient descent, each of langevin.step_size


class ContrastiveConfig(Config):
    """Contrastive divergence with persistent chains, and what keeps it from diverging."""

    langevin: LangevinConfig = LangevinConfig()
    buffer: BufferConfig = BufferConfig()
    denoising: DenoisingConfig = DenoisingConfig()
    loss: Literal["difference", "softplus"] = "softplus"  # of E(data) - E(chains); softplus: IGEBM, most stable
    input_noise: float = Field(0.03, ge=0)  # standard deviation added to data in the loss (JEM)
    energy_l2: float = Field(0.1, ge=0)  # weight of the mean squared energy
    energy_limit: float = Field(100.0, gt=0)  # a larger |E| of any sample makes the loss NaN: the platform rolls back
    gap_limit: float = Field(10.0, gt=0)  # so does a larger |mean E(data) - mean E(chains)|


class NetworkConfig(ContrastiveConfig):
    """An energy network."""

    kind: Literal["network"] = "network"
    network: Annotated[ConvConfig | MlpConfig, Field(discriminator="kind")] = MlpConfig()
    spectral_norm: bool = False  # each layer divided by its largest singular value
    conditional: bool = False  # E(x, label): one energy a class, over shared layers


class ComposedConfig(ContrastiveConfig):
    """The weighted sum of the energies of registered models, whose density is the product of theirs.

    With ``learn_weights`` contrastive divergence fits the weights to the data; without, nothing trains, and one step
    registers the composition as the recipe has it.
    """

    kind: Literal["composed"] = "composed"
    weights: dict[Role, float] = Field({"first": 1.0, "second": 1.0}, min_length=1)  # one for each parent, by role
    learn_weights: bool = False

    def idle(self) -> dict[str, str]:
        """What contrastive divergence alone reads, where nothing trains."""
        trained = ("buffer", "loss", "input_noise", "energy_l2", "energy_limit", "gap_limit")
        return {} if self.learn_weights else dict.fromkeys(trained, "learn_weights=true")

    @model_validator(mode="after")
    def _weights_are_positive(self) -> "ComposedConfig":
        for role, weight in self.weights.items():
            if self.learn_weights and weight <= 0:
                raise ValueError(f"weights.{role}={weight}: weights that are learned stay above 0 and must start there")
        return self


class MaskConfig(Config):
    """Which patches are to be completed in training, a share of them drawn for each sample."""

    least: float = Field(0.5, gt=0, le=1)  # smallest share; equal to most: always as many
    most: float = Field(0.5, gt=0, le=1)
    replaced: float = Field(0.9, ge=0, le=1)  # share of those that the network sees as the mask token (Hoover et al.)

    @model_validator(mode="after")
    def _ordered(self) -> "MaskConfig":
        if self.least > self.most:
            raise ValueError(f"least={self.least} must not be above most={self.most}")
        return self


class TransformerConfig(Config):
    """The Energy Transformer over patches of images. Rate and steps: Hoover et al., 2023."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(4, ge=1)  # pixels; must divide height and width
    width: int = Field(64, ge=1)  # D, of a token
    heads: int = Field(8, ge=1)  # H
    head_width: int = Field(16, ge=1)  # Y, of keys and queries; beta = 1 / sqrt(Y)
    memories: int = Field(256, ge=1)  # M, patterns of the Hopfield network; 4 D in the paper
    steps: int = Field(12, ge=1)  # of gradient descent, all with the same weights
    rate: float = Field(0.1, gt=0)  # alpha, of gradient descent
    mask: MaskConfig = MaskConfig()
    anomaly: Literal["completion", "energy"] = "completion"  # what anomaly_score is
    folds: int = Field(4, ge=2)  # groups of patches, each completed from the others, in complete and anomaly_score


class EnergyConfig(Config):
    """An energy model: what it is, how it is trained, and its default sampler."""

    system: Annotated[NetworkConfig | ComposedConfig | TransformerConfig, Field(discriminator="kind")] = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=1e-4)
    sampler: Options = Options()

    @model_validator(mode="after")
    def _sampler_fits(self) -> "EnergyConfig":
        if foreign := foreign_options(self.system.kind, self.sampler):
            raise ValueError(f"sampler.{foreign[0]} is no option of system.kind={self.system.kind}; leave it out")
        return self


def foreign_options(kind: SystemKind, options: Options) -> list[str]:
    """Names of options that are set and mean nothing to a system of ``kind``."""
    foreign = ("step_size", "noise") if kind == "transformer" else ("temperature",)
    return [name for name in foreign if getattr(options, name) is not None]
