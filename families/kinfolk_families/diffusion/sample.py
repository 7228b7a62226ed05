"""Sampling: rows start as noise, each call denoises all of them once, each row by its own solver and guidance."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinfolk.contract import SampleRequest, SamplerState
from kinfolk_families._shared.labels import row_labels
from kinfolk_families._shared.noise import noise_between, per_row
from kinfolk_families.diffusion.config import Options
from kinfolk_families.diffusion.guidance import Denoiser, Guidance, clamped, completed, guided
from kinfolk_families.diffusion.preconditioning import Preconditioner
from kinfolk_families.diffusion.solvers import CODES, SOLVERS, Settings, stage, update

Picture = Callable[[Tensor, Tensor, Tensor], Tensor]  # estimate (R, *), label (R,), seed (R,) -> (R, *shape)


def as_it_is(x: Tensor, label: Tensor, seed: Tensor) -> Tensor:  # noqa: ARG001
    """The picture of an estimate that is one."""
    return x


@dataclass(frozen=True, slots=True)
class Sampler:
    """Start, advance and render for any denoiser. ``x`` is x_t in float64; the denoised estimate is in ``carry``."""

    denoise: Denoiser
    preconditioner: Preconditioner
    shape: tuple[int, ...]
    classes: int = 0  # 0: unconditional
    device: torch.device | str = "cpu"
    picture: Picture = as_it_is
    unknown: bool = False  # whether it learnt to do without labels

    def sample(self, request: SampleRequest) -> SamplerState:
        """Rows of noise at the largest level; with ``seed_to`` and ``weight``, of noise between that of two seeds."""
        return self._rows(request, torch.zeros(len(request.seeds), *self.shape))

    def inpaint(self, request: SampleRequest) -> SamplerState:
        """Rows that complete ``x`` where ``mask`` is 0, taking each step ``resample`` times to make both fit."""
        assert request.x is not None
        assert request.mask is not None
        mask = request.mask.bool()
        given = torch.where(mask, request.x.float(), 0.0)
        options = options_of(request)
        return self._rows(request, given, mask=mask, resample=options.resample)

    def restore(self, request: SampleRequest) -> SamplerState:
        """Rows that start from ``x``, a sample with noise of ``noise_level``: draws of what it may have been."""
        assert request.x is not None
        return self._rows(request, request.x, top=options_of(request).noise_level)

    def _rows(
        self,
        request: SampleRequest,
        origin: Tensor,
        mask: Tensor | None = None,
        resample: int = 1,
        top: float = math.inf,
    ) -> SamplerState:
        """Rows at ``origin`` with noise up to their first level, where ``origin`` has noise of ``top`` or none."""
        options, rows = options_of(request), len(request.seeds)
        columns = {**_columns(options), "resample": resample, "top": top}
        settings = {key: _column(rows, value) for key, value in columns.items()}
        call = torch.zeros_like(request.seeds)
        at = stage(_settings(settings), call, self.preconditioner.level)
        there = 0.0 if math.isinf(top) else top
        missing = (at.sigma.square() - there**2).clamp(min=0).sqrt()
        seed_to, weight = _way(request)
        noise = noise_between(request.seeds, seed_to, weight, call, self.shape).double()
        x = origin.to(noise) + per_row(missing, noise) * noise
        carry = {
            **settings,
            "seed_to": seed_to,
            "weight": weight,
            "label": row_labels(request, self.classes, self.unknown) if self.classes else call,
            "given": origin.float(),
            "mask": torch.zeros(x.shape, dtype=torch.bool) if mask is None else mask,
            "denoised": torch.zeros_like(x),
        }
        carry = {key: value.to(self.device) for key, value in carry.items()}
        calls = SOLVERS[options.solver].calls(options.steps, resample)
        state = SamplerState.start(x.to(self.device), request, calls, 1, **carry)
        return replace(state, cost=self._cost(carry, at.evaluated))

    def _cost(self, carry: Mapping[str, Tensor], sigma: Tensor) -> Tensor:
        """Network evaluations of a call at ``sigma``: two where it is guided. -> (R,) int64"""
        return 1 + _guidance(carry).active(sigma.to(self.device)).long().cpu()

    def evaluations(self, state: SamplerState) -> Tensor:
        """Network evaluations of fresh rows over all their calls, of which those in the interval are guided. -> (R,)"""
        row = torch.arange(len(state)).repeat_interleave(state.calls)
        call = torch.cat([torch.arange(calls) for calls in state.calls.tolist()])
        each = {name: value[row.to(value.device)] for name, value in state.carry.items() if value.dim() == 1}
        at = stage(_settings(each), call, self.preconditioner.level)
        return torch.zeros_like(state.calls).index_add(0, row, self._cost(each, at.evaluated))

    def advance(self, state: SamplerState) -> SamplerState:
        """One call of the denoiser for all rows, whatever their call and options."""
        carry, settings = state.carry, _settings(state.carry)
        at = stage(settings, state.call, self.preconditioner.level)
        factors = update(settings.solver, at)
        denoised = self._wrapped(carry)(state.x, at.evaluated.to(state.x.device), carry["label"])
        x = factors.apply(state.x, denoised, carry["denoised"], _noise(state, factors.noise))
        state = state.step(x, denoised=denoised)
        if not bool((carry["guidance"] != 1).any()):
            return state
        following = stage(settings, state.call, self.preconditioner.level)
        return replace(state, cost=self._cost(carry, following.evaluated))

    def _wrapped(self, carry: Mapping[str, Tensor]) -> Denoiser:
        """The denoiser as the rows asked for it."""
        denoise = clamped(guided(self.denoise, _guidance(carry), self.classes), carry["clamp"])
        return completed(denoise, carry["given"], carry["mask"])

    def render(self, state: SamplerState) -> Tensor:
        """The latest denoised estimate, which at the end is the sample; before the first call, zeros."""
        return self.picture(state.carry["denoised"].float(), state.carry["label"], state.seed)


def _noise(state: SamplerState, factor: Tensor) -> Tensor:
    """Noise for the rows whose ``factor`` (R,) is not zero. -> (R, *)"""
    noise = torch.zeros_like(state.x, device="cpu")
    (rows,) = factor.nonzero(as_tuple=True)
    if len(rows):
        seed_to, weight = (state.carry[name].cpu()[rows] for name in ("seed_to", "weight"))
        between = noise_between(state.seed[rows], seed_to, weight, state.call[rows] + 1, tuple(state.x.shape[1:]))
        noise[rows] = between.double()
    return noise.to(state.x.device)


def _way(request: SampleRequest) -> tuple[Tensor, Tensor]:
    """The seed each row is on its way to, and how far along it is; (R,), (R,) float64."""
    weight = torch.zeros(len(request.seeds), dtype=torch.float64) if request.weight is None else request.weight
    return request.seeds if request.seed_to is None else request.seed_to, weight


def _column(rows: int, value: float | bool) -> Tensor:
    return torch.full((rows,), value, dtype=torch.float64 if isinstance(value, float) else None)


def _columns(options: Options) -> Mapping[str, float | bool | int]:
    return {
        "solver": CODES[options.solver],
        "steps": options.steps,
        "eta": options.eta,
        "churn": options.churn,
        "churn_low": options.churn_low,
        "churn_high": _or_infinite(options.churn_high),
        "churn_noise": options.churn_noise,
        "large": options.variance == "large",
        "guidance": options.guidance,
        "guidance_low": options.guidance_low,
        "guidance_high": _or_infinite(options.guidance_high),
        "clamp": options.clamp,
        "bottom": lowest_of(options),
    }


def _or_infinite(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _settings(carry: Mapping[str, Tensor]) -> Settings:
    return Settings(*(carry[name].cpu() for name in Settings._fields))


def _guidance(carry: Mapping[str, Tensor]) -> Guidance:
    return Guidance(carry["guidance"], carry["guidance_low"], carry["guidance_high"])


def lowest_of(options: Options) -> float:
    """The noise level at which the last step is asked to start, of a solver that reads it; 0: the model's lowest."""
    return options.sigma_min or 0.0 if SOLVERS[options.solver].smooth else 0.0


def options_of(request: SampleRequest) -> Options:
    """What the request asks for, in the room's own terms."""
    assert isinstance(request.options, Options)
    return request.options
