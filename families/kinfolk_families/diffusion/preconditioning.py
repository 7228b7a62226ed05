"""From a network to a denoiser, and the noise levels it is trained and sampled at.

All of the room speaks EDM's language: ``x_t = x + sigma * noise`` and ``D(x_t, sigma)`` estimates ``x``. A DDPM state
is ``sqrt(abar) * x_t`` with ``sigma = sqrt((1 - abar) / abar)``, a state of flow matching ``t * x_t`` with
``sigma = (1 - t) / t``, so one set of solvers serves all.

Sources: Karras et al., 2022 (EDM), https://arxiv.org/abs/2206.00364; Ho et al., 2020 (DDPM),
https://arxiv.org/abs/2006.11239; Nichol & Dhariwal, 2021 (cosine), https://arxiv.org/abs/2102.09672; Lipman et al.,
2023 (flow matching), https://arxiv.org/abs/2210.02747.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from kinfolk.contract import ConfigError
from kinfolk_families._shared.noise import Scales, edm_scales, log_normal, rho_level
from kinfolk_families.diffusion.config import DdpmConfig, EdmConfig, FlowConfig, Levels


class Preconditioner(Protocol):
    """What a network predicts, and at which noise levels."""

    @property
    def max_steps(self) -> int | None:
        """The most levels ``level`` can tell apart; None for any number."""

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest sigma that a smooth run visits."""

    def scales(self, sigma: Tensor) -> Scales:
        """The four scalings at ``sigma`` (B,) > 0."""

    def weight(self, sigma: Tensor) -> Tensor:
        """What the squared error of D counts in the loss. (B,) -> (B,)"""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Noise levels to train at. -> (count,) on the generator's device"""

    def level(self, step: Tensor, steps: Tensor, smooth: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
        """Sigma where ``step`` of ``steps`` starts: largest at 0, zero at the end. (R,), (R,) int64 -> (R,) float64

        A run starts at ``top`` (R,), or at the highest level there is, if that is lower. Rows that are ``smooth`` (R,)
        bool get levels spaced for a solver of second order, where it makes a difference; their last step starts at
        ``bottom`` (R,), or at the lowest level there is, if that is higher.
        """


@dataclass(frozen=True, slots=True)
class Edm:
    """Unit variance of the network's input and target at every sigma (EDM Table 1, last column)."""

    config: EdmConfig
    sigma_data: float
    max_steps: None = None

    @property
    def ends(self) -> tuple[float, float]:
        """sigma_min and sigma_max."""
        return self.config.sigma_min, self.config.sigma_max

    def scales(self, sigma: Tensor) -> Scales:
        """EDM Table 1, "Network and preconditioning"."""
        return edm_scales(sigma, self.sigma_data)

    def weight(self, sigma: Tensor) -> Tensor:
        """EDM Table 1, "Loss weighting"."""
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()

    def draw(self, count: int, generator: Generator) -> Tensor:
        """EDM Table 1, "Noise distribution"."""
        return log_normal(self.config.p_mean, self.config.p_std, count, generator)

    def level(self, step: Tensor, steps: Tensor, smooth: Tensor, top: Tensor, bottom: Tensor) -> Tensor:  # noqa: ARG002
        """EDM eq. 5, which was made for solvers of second order and serves all."""
        return rho_levels(step, steps, self.config, top, bottom)


@dataclass(frozen=True, slots=True)
class Flow:
    """The network sees (1 - t) noise + t x and predicts the velocity x - noise, in units of its standard deviation.

    With t = 1 / (1 + sigma) what it sees is x_t / (1 + sigma), and x = t x_t + (1 - t) (x - noise).
    """

    config: FlowConfig
    data_std: float
    max_steps: None = None

    @property
    def ends(self) -> tuple[float, float]:
        """sigma_min and sigma_max."""
        return self.config.sigma_min, self.config.sigma_max

    @property
    def velocity_std(self) -> float:
        """Of x - noise, for x of ``data_std``."""
        return math.sqrt(1 + self.data_std**2)

    def scales(self, sigma: Tensor) -> Scales:
        """D = t x_t + (1 - t) velocity."""
        time = 1 / (1 + sigma)
        return Scales(skip=time, out=(1 - time) * self.velocity_std, into=time, noise=sigma.log() / 4)

    def weight(self, sigma: Tensor) -> Tensor:
        """The squared error of the velocity (Lipman et al., eq. 23) over its variance, as D - x is (1 - t) times it."""
        return ((1 + sigma) / (sigma * self.velocity_std)).square()

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Times uniform between the ends, or skewed towards the data."""
        if self.config.times == "skewed":
            return log_normal(self.config.p_mean, self.config.p_std, count, generator)
        first, last = (1 / (1 + sigma) for sigma in reversed(self.ends))
        time = first + (last - first) * torch.rand(count, generator=generator, device=generator.device)
        return 1 / time - 1

    def level(self, step: Tensor, steps: Tensor, smooth: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
        """Times evenly spaced, where DDIM is Euler's method on the velocity; EDM's levels where smooth."""
        first = 1 / (1 + top.clamp(max=self.config.sigma_max))
        time = first + (1 - first) * (step.double() / steps).clamp(0, 1)
        return torch.where(smooth, rho_levels(step, steps, self.config, top, bottom), 1 / time - 1)


@dataclass(frozen=True, slots=True)
class Ddpm:
    """The network predicts the noise (EDM Table 1, column VP).

    Time enters the network as ln(sigma), which is monotone in it, so sigmas between two times are inputs too.
    """

    config: DdpmConfig

    @property
    def max_steps(self) -> int:
        """The number of times."""
        return self.config.timesteps

    @property
    def ends(self) -> tuple[float, float]:
        """EDM's, within what was trained."""
        return self._smooth.sigma_min, self._smooth.sigma_max

    def scales(self, sigma: Tensor) -> Scales:
        """D = x_t - sigma * eps(sqrt(abar) x_t), as sqrt(abar) = 1 / sqrt(1 + sigma^2)."""
        return Scales(
            skip=torch.ones_like(sigma),
            out=-sigma,
            into=1 / (1 + sigma.square()).sqrt(),
            noise=sigma.log() / 4,
        )

    def weight(self, sigma: Tensor) -> Tensor:
        """The plain squared error of the noise (DDPM eq. 14), as D - x = sigma * (noise - eps)."""
        return 1 / sigma.square()

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Times uniform over 1 to T (DDPM algorithm 1)."""
        time = torch.randint(1, self.config.timesteps + 1, (count,), generator=generator, device=generator.device)
        return ddpm_sigmas(self.config).to(generator.device)[time].float()

    def level(self, step: Tensor, steps: Tensor, smooth: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
        """Times evenly spaced from T down to 1, rounded (Nichol & Dhariwal, section 4); EDM's levels where smooth.

        Evenly spaced times end with sigma falling by large factors, which a step of second order cannot follow.
        """
        sigmas = ddpm_sigmas(self.config)
        highest = top.clamp(max=float(sigmas[-1]))
        first = torch.searchsorted(sigmas, highest)  # the first time that is at least as noisy
        time = first - _way(step, steps) * (first - 1)
        trained = torch.where(step < steps, torch.minimum(sigmas[time.round().long()], highest), 0.0)
        return torch.where(smooth, rho_levels(step, steps, self._smooth, top, bottom), trained)

    @property
    def _smooth(self) -> Levels:
        sigmas, edm = ddpm_sigmas(self.config), Levels()
        lowest, highest = max(edm.sigma_min, float(sigmas[1])), min(edm.sigma_max, float(sigmas[-1]))
        return edm.model_copy(update={"sigma_min": lowest, "sigma_max": highest})


def rho_levels(step: Tensor, steps: Tensor, levels: Levels, top: Tensor, bottom: Tensor) -> Tensor:
    """Sigma evenly spaced in its rho-th root (EDM eq. 5), from ``top`` down to ``bottom``; all (R,) -> (R,) float64"""
    lowest, highest = bottom.clamp(min=levels.sigma_min), top.clamp(max=levels.sigma_max)
    sigma = rho_level(_way(step, steps), levels.rho, lowest, highest)
    return torch.where(step < steps, sigma, 0.0)


def _way(step: Tensor, steps: Tensor) -> Tensor:
    """How far ``step`` is between the first and the last of ``steps``, 0 to 1."""
    return (step.double() / (steps - 1).clamp(min=1)).clamp(0, 1)


@lru_cache(maxsize=16)  # a few models of one process; shared, so never write to it
def ddpm_sigmas(config: DdpmConfig) -> Tensor:
    """Sigma at times 0 to T, from abar_t = product of (1 - beta). -> (T + 1,) float64"""
    kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - ddpm_betas(config)).cumprod(0)])  # abar
    return ((1 - kept) / kept).sqrt()


def ddpm_betas(config: DdpmConfig) -> Tensor:
    """Variance added at times 1 to T: linear (DDPM section 4) or cosine (Nichol & Dhariwal eq. 17). -> (T,) float64

    With other than 1,000 times the sum of the linear ones is kept, as in improved-diffusion. Sigma at the end is then
    much the same down to some 50 times, and larger with fewer.
    """
    if config.schedule == "linear":
        betas = torch.linspace(config.beta_first, config.beta_last, config.timesteps, dtype=torch.float64)
        return (betas * 1000 / config.timesteps).clamp(max=config.beta_limit)
    time = torch.arange(config.timesteps + 1, dtype=torch.float64) / config.timesteps
    kept = ((time + config.cosine_offset) / (1 + config.cosine_offset) * math.pi / 2).cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=config.beta_limit)


def preconditioner(config: EdmConfig | FlowConfig | DdpmConfig, data_std: float) -> Preconditioner:
    """The preconditioner a recipe asks for; ``data_std`` is sigma_data unless the recipe says otherwise.

    Raises:
        ConfigError: it asks for more noise than float32 can hold.
    """
    match config:
        case DdpmConfig():
            _check_range(config)
            return Ddpm(config)
        case FlowConfig():
            return Flow(config, data_std)
        case EdmConfig():
            return Edm(config, config.sigma_data or data_std)


def _check_range(config: DdpmConfig) -> None:
    highest = ddpm_sigmas(config)[-1]
    if not bool(highest.float().square().isfinite()):
        raise ConfigError(
            f"preconditioning: the noise of {config.timesteps} times grows to sigma={float(highest):.1e}, which "
            f"float32 cannot square. Lower beta_last={config.beta_last}: it is for 1,000 times, whatever timesteps is."
        )
