"""Settings of a consistency model: how it learns, its noise levels, optimiser and default steps of sampling."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions
from kinfolk_families._shared.network_config import Network, TransformerConfig

MAX_LEVELS = 63  # between steps; rows keep room for as many


class Options(SamplerOptions):
    """How rows are sampled: a step from pure noise, and one more from each of ``sigmas``."""

    sigmas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), max_length=MAX_LEVELS, description="noise levels to go back up to between steps, falling; none: one step"
    )

    @field_validator("sigmas")
    @classmethod
    def _falling(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if any(before <= after for before, after in pairwise(sigmas)):
            raise ValueError("levels must fall, as in [5.0, 0.8]")
        return sigmas


class EasyTuningConfig(Config):
    """ECT: a teacher goes on training at pairs of levels t > r, closer at each stage.

    Defaults: Geng et al., 2024, https://arxiv.org/abs/2406.14548, the run on CIFAR-10.
    """

    kind: Literal["ect"] = "ect"
    p_mean: float = -1.1  # ln(t) ~ N(p_mean, p_std^2)
    p_std: float = Field(2.0, gt=0)
    q: float = Field(2.0, gt=1)  # each stage brings r closer to t by this factor
    k: float = Field(8.0, ge=0)  # r is further away from small t, by up to 1 + k / 2
    b: float = Field(1.0, gt=0)  # how fast that wears off as t grows
    stage_samples: int = Field(3_200_000, gt=0)
    stages: int = Field(8, ge=1)  # the last one goes on to the end of training
    huber: float | None = Field(0.0, ge=0)  # c of the pseudo-Huber distance; 0: Euclidean; None: iCT's
    dropout: float = Field(0.0, ge=0, lt=1)  # of the student, whatever its teacher's was; 0.2 in run_ecm.sh there

    def idle(self) -> dict[str, str]:
        """How fast k wears off where there is none, and how long a stage is that has no next."""
        without_k = {} if self.k else {"b": "k above 0"}
        return without_k if self.stages > 1 else {**without_k, "stage_samples": "stages above 1"}

    @model_validator(mode="after")
    def _levels_differ(self) -> "EasyTuningConfig":
        if self.q**self.stages > 2**16:
            raise ValueError(f"q={self.q} with stages={self.stages} leaves no gap in float32; q^stages is at most 2^16")
        return self


class ImprovedTrainingConfig(Config):
    """iCT: training without a teacher, on levels that double in number.

    Defaults: Song and Dhariwal, 2023, https://arxiv.org/abs/2310.14189, Table 1.
    """

    kind: Literal["ict"] = "ict"
    network: Network = TransformerConfig()  # with dropout: 0.3 there, section 3.1
    conditional: bool = False
    sigma_data: float | None = Field(None, gt=0)  # None: the standard deviation measured on the train split
    max_frequency: float = Field(8.0, gt=1)  # of the sinusoids that embed ln(sigma) / 4
    p_mean: float = -1.1  # levels are drawn as ln(sigma) ~ N(p_mean, p_std^2)
    p_std: float = Field(2.0, gt=0)
    first_intervals: int = Field(10, ge=1)  # s_0, between neighbouring levels
    last_intervals: int = Field(1280, ge=1)  # s_1
    curriculum_samples: int = Field(gt=0)  # K, in samples: all of training
    rho: float = Field(7.0, ge=1)  # larger puts more levels at low noise
    huber: float | None = Field(None, ge=0)  # c of the pseudo-Huber distance; None: 0.00054 sqrt(D)

    @model_validator(mode="after")
    def _intervals_grow(self) -> "ImprovedTrainingConfig":
        if self.first_intervals > self.last_intervals:
            raise ValueError(
                f"first_intervals={self.first_intervals} is more than last_intervals={self.last_intervals}"
            )
        return self


class DistillationConfig(Config):
    """CD: a step of the teacher leads from one level to the next, and f must not change along it.

    Defaults: Song et al., 2023, https://arxiv.org/abs/2303.01469, Table 3; the distance is iCT's, not LPIPS.
    """

    kind: Literal["distillation"] = "distillation"
    levels: int = Field(18, ge=2)  # N
    rho: float = Field(7.0, ge=1)  # larger puts more levels at low noise
    target_decay: float = Field(0.95, ge=0, lt=1)  # of the target network, each step
    dropout: float = Field(0.0, ge=0, lt=1)  # of student and target network, whatever the teacher's was
    huber: float | None = Field(None, ge=0)  # c of the pseudo-Huber distance; None: 0.00054 sqrt(D)


class ConsistencyConfig(Config):
    """A consistency model as a recipe writes it."""

    objective: Annotated[
        EasyTuningConfig | ImprovedTrainingConfig | DistillationConfig, Field(discriminator="kind")
    ] = ImprovedTrainingConfig(curriculum_samples=1_000_000)
    sigma_min: float = Field(0.002, gt=0)  # where paths end
    sigma_max: float = Field(80.0, gt=0)  # where they start
    optimizer: OptimizerConfig = OptimizerConfig(kind="radam", lr=1e-4)
    sampler: Options = Options()

    @model_validator(mode="after")
    def _ordered(self) -> "ConsistencyConfig":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must be below sigma_max={self.sigma_max}")
        outside = [sigma for sigma in self.sampler.sigmas if not self.sigma_min < sigma < self.sigma_max]
        if outside:
            raise ValueError(f"sampler.sigmas holds {outside[0]}, outside {self.sigma_min} to {self.sigma_max}")
        return self
