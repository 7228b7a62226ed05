"""Solvers: how a row gets from one noise level to the next, given the denoised estimate.

Each is linear in what it has seen, ``x_next = a * x_t + b * denoised + c * previous + d * noise`` with ``previous`` the
denoised estimate one call earlier, so a solver is a function from noise levels to the four numbers of an ``Update``.
Rows of different solvers then differ in numbers only, and one expression advances them all. Taking a step again, which
inpainting does, is RePaint's resampling: Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865.

R rows; every tensor here is (R,) float64 unless said otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.config import SolverName

Level = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # that of a preconditioner


class Settings(NamedTuple):
    """What each row was asked for, for as long as it lives."""

    solver: Tensor  # int64, one of ``CODES``
    steps: Tensor  # int64
    eta: Tensor
    churn: Tensor  # S_churn of EDM
    churn_low: Tensor  # S_tmin
    churn_high: Tensor  # S_tmax; infinite: none
    churn_noise: Tensor  # S_noise
    large: Tensor  # bool: the larger variance of ``ddpm``
    resample: Tensor  # int64: how often each step but the last is taken
    top: Tensor  # the noise level to start at; infinite: the highest there is
    bottom: Tensor  # the noise level at which a smooth run's last step starts; 0: the lowest there is


class Stage(NamedTuple):
    """Where each row stands in its step."""

    before: Tensor  # noise level where the step before started; infinite in the first step and in a repeated one
    sigma: Tensor  # where this step starts, churn included
    after: Tensor  # where it ends; 0 in the last step
    lift: Tensor  # standard deviation of the noise put back once the step has ended: churn, or a step again
    correcting: Tensor  # bool: x_t stands at ``after`` already, and its slope there is what the call measures
    eta: Tensor
    large: Tensor

    @property
    def evaluated(self) -> Tensor:
        """The noise level of x_t, at which the network is called."""
        return torch.where(self.correcting, self.after, self.sigma)


class Update(NamedTuple):
    """The four factors of one call."""

    x: Tensor
    denoised: Tensor
    previous: Tensor
    noise: Tensor

    def apply(self, x: Tensor, denoised: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        """x_next, from four tensors (R, *)."""
        a, b, c, d = (per_row(factor.to(x.device), x) for factor in self)
        return a * x + b * denoised + c * previous + d * noise


def towards(keep: Tensor, noise: Tensor) -> Update:
    """x_next = denoised + keep * (x_t - denoised) + noise."""
    return Update(keep, 1 - keep, torch.zeros_like(keep), noise)


def ddpm(at: Stage) -> Update:
    """Ancestral sampling: a draw from q(x_next | x_t, x = denoised) (DDPM eq. 6 and 7, in terms of sigma).

    Large variance is DDPM's beta, right for data of unit variance; small is the posterior's, right for a single point.
    """
    keep = (at.after / at.sigma).square()
    small = at.after.square() * (1 - keep)
    large = (at.sigma.square() - at.after.square()) * (1 + at.after.square()) / (1 + at.sigma.square())
    variance = torch.where(at.large & (at.after > 0), large, small)
    return towards(keep, variance.sqrt())


def ddim(at: Stage) -> Update:
    """DDIM (eq. 12 and 16, in terms of sigma). With eta = 0 it is Euler's method on the probability flow.

    Source: Song et al., 2021, https://arxiv.org/abs/2010.02502.
    """
    return towards(*_kept(at))


def _kept(at: Stage) -> tuple[Tensor, Tensor]:
    """How much of x_t's noise a step keeps, and the noise it adds: eta times as much as ancestral sampling does."""
    new = at.eta * at.after * (1 - (at.after / at.sigma).square()).sqrt()
    return (at.after.square() - new.square()).sqrt() / at.sigma, new


def heun(at: Stage) -> Update:
    """EDM algorithm 2: an Euler step, then in a second call its correction by half the change of slope.

    The slope (x_t - denoised) / sigma is the same at both ends of an Euler step, so after it both slopes follow from
    x_t, the denoised estimate there and the one before.

    With eta the step is DDIM's, noise and all, and its correction that of a denoised estimate which changes evenly in
    ln(sigma): an exponential integrator of the SDE, as in Gonzalez et al., 2023 (SEEDS),
    https://arxiv.org/abs/2305.14267. A step is about twice as long then, too long for the trapezoid in sigma. With
    eta 1 and EDM's levels 18 steps make the standard deviation of Gaussian data of 0.3 to 2 too small by 11 to 7 %,
    35 steps by 4 to 2 %. As eta falls to 0 the correction does not become that of algorithm 2.
    """
    keep, noise = _kept(at)
    change = torch.where(at.eta > 0, 1 + (1 - keep) / keep.log(), (1 / keep - 1) / 2)
    correction = Update(torch.ones_like(keep), change, -change, torch.zeros_like(keep))
    euler = towards(keep, noise)
    return Update(*(torch.where(at.correcting, second, first) for first, second in zip(euler, correction, strict=True)))


def dpmpp_2m(at: Stage) -> Update:
    """DPM-Solver++(2M): the denoised estimate extrapolated along lambda = -ln(sigma); first and last step first order.

    With eta = 1 it is SDE-DPM-Solver++(2M), whose noise mends what a network gets wrong on the way.
    Source: Lu et al., 2022, algorithm 2 and the SDE solvers there, https://arxiv.org/abs/2211.01095.
    """
    keep, noise = _kept(at)
    ahead = (at.sigma / at.after).log() / (2 * (at.before / at.sigma).log())  # 1 / (2 r)
    ahead = torch.where(at.after > 0, ahead, 0.0)
    return Update(keep, (1 - keep) * (1 + ahead), -(1 - keep) * ahead, noise)


@dataclass(frozen=True, slots=True)
class Solver:
    """A rule, with the network calls that a step takes; the last step, to no noise, takes one."""

    update: Callable[[Stage], Update]
    calls_per_step: int = 1
    smooth: bool = False  # second order: wants noise levels that fall evenly

    def calls(self, steps: int, resample: int = 1) -> int:
        """Network calls of ``steps`` steps, each but the last taken ``resample`` times."""
        return self.calls_per_step * resample * (steps - 1) + 1


SOLVERS: dict[SolverName, Solver] = {
    "ddpm": Solver(ddpm),
    "ddim": Solver(ddim),
    "heun": Solver(heun, calls_per_step=2, smooth=True),
    "dpmpp_2m": Solver(dpmpp_2m, smooth=True),
}
CODES: dict[SolverName, int] = {name: code for code, name in enumerate(SOLVERS)}  # how a row remembers its solver


def update(solver: Tensor, at: Stage) -> Update:
    """The factors of each row's own solver, ``lift`` included; ``solver`` (R,) holds ``CODES``."""
    factors = torch.empty(len(Update._fields), len(solver), dtype=torch.float64)
    for code, rule in enumerate(SOLVERS.values()):
        rows = solver == code
        if rows.any():
            factors[:, rows] = torch.stack(rule.update(at))[:, rows]
    x, denoised, previous, noise = factors
    return Update(x, denoised, previous, torch.hypot(noise, at.lift))


def stage(row: Settings, call: Tensor, level: Level) -> Stage:
    """Where rows stand at their ``call`` (R,) int64.

    Churn lifts sigma to (1 + gamma) sigma before each step (EDM algorithm 2); here that ends the step before. A step
    that is taken again goes back to where it started, by the noise that lies between (RePaint, algorithm 1).
    """
    per_step, smooth = _of_solver(row.solver)
    step, within = call // (per_step * row.resample), call % (per_step * row.resample)
    start, end = (level(at, row.steps, smooth, row.top, row.bottom) for at in (step, step + 1))
    ends = within % per_step == per_step - 1
    again = (within + per_step < per_step * row.resample) & (step < row.steps - 1)
    back = torch.where(again, start, end)  # the level that the next step starts from, before churn
    churned = back.square() * ((1 + _gamma(row, back)).square() - 1) * row.churn_noise.square()
    first = (step > 0) & (within < per_step)
    return Stage(
        before=torch.where(first, level(step - 1, row.steps, smooth, row.top, row.bottom), math.inf),
        sigma=start * (1 + _gamma(row, start)),
        after=end,
        lift=torch.where(ends, (back.square() - end.square() + churned).sqrt(), 0.0),
        correcting=within % per_step == 1,
        eta=row.eta,
        large=row.large,
    )


def _gamma(row: Settings, sigma: Tensor) -> Tensor:
    """By how much of itself ``sigma`` is lifted before a step (EDM algorithm 2, line 4)."""
    churns = (row.solver == CODES["heun"]) & (row.churn_low <= sigma) & (sigma <= row.churn_high)
    return torch.where(churns, (row.churn / row.steps).clamp(max=math.sqrt(2) - 1), 0.0)


def _of_solver(solver: Tensor) -> tuple[Tensor, Tensor]:
    """Calls per step and smoothness of each row's solver."""
    rules = SOLVERS.values()
    per_step, smooth = [rule.calls_per_step for rule in rules], [rule.smooth for rule in rules]
    return torch.tensor(per_step)[solver], torch.tensor(smooth)[solver]
