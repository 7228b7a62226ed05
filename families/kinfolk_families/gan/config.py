"""What a recipe may say about the GAN: the game, penalties, networks, what stands against collapse, and sampling."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions, cosine
from kinfolk_families.gan.network_config import ConvNetwork, CriticNetwork, GeneratorNetwork, Pyramid

Player = Literal["generator", "critic"]
Transform = Literal["brightness", "saturation", "contrast", "translation", "cutout"]


class PenaltyConfig(Config):
    """What a critic pays for, in multiples of gamma.

    r1, r2: half the mean squared gradient norm at real (r1) or generated (r2) samples. gradient: the mean squared
    distance of the gradient norm from 1, between a real and a generated sample. drift: the mean squared logit of real
    samples.
    """

    kind: Literal["r1", "r2", "gradient", "drift"]
    gamma: float = Field(ge=0)  # of gradient, lambda in WGAN-GP: 10 there
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
        return cosine(self.gamma, self.final_gamma, samples_seen, self.decay_samples)


class DiscriminationConfig(Config):
    """Minibatch discrimination: how near the features of each sample are to those of the others in its group."""

    kind: Literal["discrimination"] = "discrimination"
    group: int = Field(16, ge=2)  # samples that are compared; packs, where samples are packed
    kernels: int = Field(16, ge=1)  # measures of nearness
    dims: int = Field(8, ge=1)  # of the space that each measures in


class DeviationConfig(Config):
    """Minibatch standard deviation: the spread of the features in a group, told to a hidden layer before the logit."""

    kind: Literal["deviation"] = "deviation"
    group: int = Field(4, ge=2)  # samples whose spread it is; packs, where samples are packed
    hidden: int = Field(64, ge=1)  # units of that layer


Minibatch = Annotated[DiscriminationConfig | DeviationConfig, Field(discriminator="kind")]


class UnrolledConfig(Config):
    """Steps of gradient descent that the critic is foreseen to take before it judges the generator."""

    steps: int = Field(5, ge=1)
    lr: float = Field(0.1, gt=0)  # of those steps
    group: int = Field(64, ge=1)  # samples that one foreseen critic learns from and judges


class AugmentationConfig(Config):
    """Differentiable transforms of whatever the critic sees, each applied with the same probability."""

    transforms: tuple[Transform, ...] = Field(("translation", "cutout"), min_length=1)  # in the order they are applied
    probability: float | None = Field(None, ge=0, le=1)  # of each transform; where it is adaptive, at the start
    target: float | None = Field(None, gt=-1, lt=1)  # adaptive: mean sign of the critic on data that it keeps (0.6)
    ramp_samples: int = Field(500_000, gt=0)  # samples over which the probability moves by 1 at most

    @property
    def start(self) -> float:
        """The probability given, by default 1, and where it adapts 0 (Karras et al., 2020, Sec. 3.1)."""
        if self.probability is None:
            return 1.0 if self.target is None else 0.0
        return self.probability

    def idle(self) -> dict[str, str]:
        """How fast a probability moves that stands."""
        return {} if self.target is not None else {"ramp_samples": "target"}

    @model_validator(mode="after")
    def _each_once(self) -> "AugmentationConfig":
        _refuse_repeats("transforms", self.transforms, "give each once")
        return self


class PathLengthConfig(Config):
    """A step in style is to move the picture by the same length everywhere."""

    weight: float = Field(2.0, ge=0)
    every_steps: int = Field(4, ge=1)  # lazy: so much rarer, so much stronger
    decay: float = Field(0.01, gt=0, le=1)  # share of the running mean of lengths that each turn replaces


class GrowthConfig(Config):
    """How resolutions join while training, in samples seen."""

    hold_samples: int = Field(100_000, ge=0)  # at each resolution, before the next
    fade_samples: int = Field(100_000, gt=0)  # over which the next one joins

    def at(self, samples_seen: int) -> float:
        """Resolutions beyond the coarsest that have joined after ``samples_seen``, the one that is joining in part."""
        joined, into = divmod(samples_seen, self.hold_samples + self.fade_samples)
        return joined + max(into - self.hold_samples, 0) / self.fade_samples


class GANOptions(SamplerOptions):
    """What may be chosen when sampling."""

    truncation: float = Field(1.0, ge=0, le=1.5)
    """Scale of the noise, or, in StyleGAN2, of the distance from the mean style: below 1 samples are more typical and
    less diverse."""


class GANConfig(Config):
    """Networks, losses and optimisers of a generator and its critic."""

    loss: Literal["minimax", "non_saturating", "hinge", "least_squares", "wasserstein", "relativistic"] = (
        "non_saturating"
    )
    penalties: tuple[PenaltyConfig, ...] = (PenaltyConfig(kind="r1", gamma=0.1),)
    weight_clip: float | None = Field(None, gt=0)  # the critic's weights stay between minus this and this (WGAN: 0.01)
    spectral: tuple[Player, ...] = ()  # players whose layers have spectral norm 1
    critic_steps: int = Field(1, ge=1)  # steps of the critic to one of the generator
    packing: int = Field(1, ge=1)  # samples, beside each other as channels, that the critic judges as one (PacGAN)
    minibatch: Minibatch | None = None  # what the critic is told of a group of samples
    unrolled: UnrolledConfig | None = None
    augmentation: AugmentationConfig | None = None
    path_length: PathLengthConfig | None = None
    growth: GrowthConfig = GrowthConfig()
    conditional: bool = False  # on the class: generator by embedding, critic by projection
    latent: int = Field(64, ge=1)  # Z, dimensions of the Gaussian noise
    embedding: int = Field(32, ge=1)  # dimensions of a class in the generator's input
    generator: GeneratorNetwork = ConvNetwork()
    critic: CriticNetwork = ConvNetwork()
    generator_optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=2e-4, betas=(0.0, 0.99))
    critic_optimizer: OptimizerConfig = OptimizerConfig(kind="adam", lr=2e-4, betas=(0.0, 0.99))
    sampler: GANOptions = GANOptions()

    @property
    def judged_together(self) -> int:
        """Neighbours in the batch that a logit depends on: the samples of a pack, in the packs of a group."""
        return self.packing * (1 if self.minibatch is None else self.minibatch.group)

    def idle(self) -> Mapping[str, str]:
        """The size of what says the class, and what is of one kind of network."""
        purposes = {} if self.conditional else {"embedding": "conditional=true"}
        if self.generator.kind != "stylegan2":
            purposes["path_length"] = "generator.kind=stylegan2"
        if self.generator.kind != "progressive":
            purposes["growth"] = "generator.kind=progressive"
        return purposes

    @model_validator(mode="after")
    def _each_once(self) -> "GANConfig":
        _refuse_repeats("penalties", [each.kind for each in self.penalties], "give each kind once, with all its gamma")
        _refuse_repeats("spectral", self.spectral, "give each player once")
        return self

    @model_validator(mode="after")
    def _packs_are_of_no_class(self) -> "GANConfig":
        if self.conditional and self.packing > 1:
            raise ValueError(f"packing={self.packing} puts samples of several classes into one; use conditional=false")
        return self

    @model_validator(mode="after")
    def _foreseen_critics_judge_whole_groups(self) -> "GANConfig":
        if self.unrolled is not None and self.unrolled.group % self.judged_together:
            raise ValueError(
                f"unrolled.group={self.unrolled.group} is not a multiple of the {self.judged_together} samples that "
                f"packing and minibatch put together; use e.g. {self.judged_together * 4}"
            )
        return self

    @model_validator(mode="after")
    def _networks_grow_together(self) -> "GANConfig":
        kinds = self.generator.kind, self.critic.kind
        if kinds.count("progressive") == 1:
            raise ValueError(
                f"generator.kind={kinds[0]} and critic.kind={kinds[1]}: both players grow, or neither; "
                "use progressive for both"
            )
        bases = [part.base for part in (self.generator, self.critic) if isinstance(part, Pyramid)]
        if kinds[0] == "progressive" and bases[0] != bases[1]:
            raise ValueError(f"generator.base={bases[0]} and critic.base={bases[1]}: growing needs the same base")
        return self

    @model_validator(mode="after")
    def _styles_have_their_own_norm(self) -> "GANConfig":
        if "generator" in self.spectral and self.generator.kind == "stylegan2":
            raise ValueError("spectral names the generator, whose weights stylegan2 normalises itself; leave it out")
        return self

    @model_validator(mode="after")
    def _adapts_to_what_the_critic_says(self) -> "GANConfig":
        if self.loss == "wasserstein" and self.augmentation is not None and self.augmentation.target is not None:
            raise ValueError(
                "augmentation.target needs a critic whose logit tells real from generated by its sign, that of "
                "loss=wasserstein tells differences only; use another loss, or leave target out"
            )
        return self


def _refuse_repeats(name: str, values: tuple[str, ...] | list[str], advice: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{name} names {value} {count} times; {advice}")
