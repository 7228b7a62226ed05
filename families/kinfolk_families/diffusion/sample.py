"""Sampling: rows start as noise, each call denoises all of them once, each row by its own solver and guidance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.contract import RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_normal
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families.diffusion.config import Options
from kinfolk_families.diffusion.model import Diffusion
from kinfolk_families.diffusion.preconditioning import Preconditioner, per_row
from kinfolk_families.diffusion.solvers import CODES, SOLVERS, Settings, stage, update

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (R, *), sigma (R,), label (R,) -> estimate of x (R, *)


def guided(denoise: Denoiser, weight: Tensor, unknown: int) -> Denoiser:
    """Classifier-free guidance, ``D_unknown + weight * (D_label - D_unknown)``, where a row's ``weight`` (R,) is not 1.

    Rows to guide are evaluated twice, in the same call as all others.
    Source: Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598 (there w + 1 is what ``weight`` is here).
    """
    (rows,) = (weight != 1).nonzero(as_tuple=True)
    if not len(rows):
        return denoise

    def denoise_guided(x_t: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        labels = torch.cat([label, torch.full_like(rows, unknown)])
        both = denoise(torch.cat([x_t, x_t[rows]]), torch.cat([sigma, sigma[rows]]), labels)
        denoised, without = both.split([len(x_t), len(rows)])
        lifted = without + per_row(weight[rows], x_t) * (denoised[rows] - without)
        return denoised.index_copy(0, rows, lifted)

    return denoise_guided


def clamped(denoise: Denoiser, clamp: Tensor) -> Denoiser:
    """The estimate kept in [-1, 1] in the rows where ``clamp`` (R,) bool is set."""

    def denoise_clamped(x_t: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        denoised = denoise(x_t, sigma, label)
        return torch.where(per_row(clamp, x_t), denoised.clamp(-1, 1), denoised)

    return denoise_clamped


@dataclass(frozen=True, slots=True)
class Sampler:
    """Start, advance and render for any denoiser. ``x`` is x_t in float64; the denoised estimate is in ``carry``."""

    denoise: Denoiser
    preconditioner: Preconditioner
    shape: tuple[int, ...]
    classes: int = 0  # 0: unconditional
    device: torch.device | str = "cpu"

    def start(self, request: SampleRequest) -> SamplerState:
        """Rows of noise at the largest level."""
        options = _options(request)
        carry = {key: self._column(request, value) for key, value in _columns(options).items()}
        call = torch.zeros_like(request.seeds)
        at = stage(_settings(carry), call, self.preconditioner.level)
        noise = row_normal(request.seeds, call, self.shape).double()
        x = (per_row(at.sigma, noise) * noise).to(self.device)
        label = row_labels(request, self.classes) if self.classes else torch.zeros_like(request.seeds)
        return SamplerState.start(
            x,
            request,
            calls=SOLVERS[options.solver].calls(options.steps),
            cost=1 if options.guidance == 1 else 2,
            label=label.to(self.device),
            denoised=torch.zeros_like(x),
            **carry,
        )

    def _column(self, request: SampleRequest, value: float | bool) -> Tensor:
        dtype = torch.float64 if isinstance(value, float) else None
        return torch.full((len(request.seeds),), value, dtype=dtype, device=self.device)

    def advance(self, state: SamplerState) -> SamplerState:
        """One call of the denoiser for all rows, whatever their call and options."""
        carry = state.carry
        settings = _settings(carry)
        at = stage(settings, state.call, self.preconditioner.level)
        factors = update(settings.solver, at)
        denoise = clamped(guided(self.denoise, carry["guidance"], self.classes), carry["clamp"])
        denoised = denoise(state.x, at.evaluated.to(state.x.device), carry["label"])
        x = factors.apply(state.x, denoised, carry["denoised"], _noise(state, factors.noise))
        return state.step(x, denoised=denoised)

    def render(self, state: SamplerState) -> Tensor:
        """The latest denoised estimate, which at the end is the sample; before the first call, zeros."""
        return state.carry["denoised"].float()


def _columns(options: Options) -> Mapping[str, float | bool | int]:
    return {
        "solver": CODES[options.solver],
        "steps": options.steps,
        "eta": options.eta,
        "churn": options.churn,
        "large": options.variance == "large",
        "guidance": options.guidance,
        "clamp": options.clamp,
    }


def _settings(carry: Mapping[str, Tensor]) -> Settings:
    return Settings(*(carry[name].cpu() for name in Settings._fields))


def _noise(state: SamplerState, factor: Tensor) -> Tensor:
    """Noise for the rows whose ``factor`` (R,) is not zero. -> (R, *)"""
    noise = torch.zeros_like(state.x, device="cpu")
    (rows,) = factor.nonzero(as_tuple=True)
    if len(rows):
        noise[rows] = row_normal(state.seed[rows], state.call[rows] + 1, state.x.shape[1:]).double()
    return noise.to(state.x.device)


def tasks(module: Diffusion) -> Tasks:
    """Sampling, and the denoiser itself for models that are built on it."""
    sampler = Sampler(module, module.preconditioner, module.spec.shape, module.classes, device_of(module))

    def start(request: SampleRequest) -> SamplerState:
        _check(module, _options(request))
        return sampler.start(request)

    return Tasks(
        options=module.config.sampler,
        starts={"sample": start},
        advance=sampler.advance,
        render=sampler.render,
        conditions=frozenset({"label"} if module.classes else ()),
        denoise=module,
    )


def _options(request: SampleRequest) -> Options:
    assert isinstance(request.options, Options)
    return request.options


def _check(module: Diffusion, options: Options) -> None:
    most = module.preconditioner.max_steps
    if most is not None and options.steps > most:
        raise RequestError("steps", f"steps={options.steps}: this model knows {most} noise levels. Use 1 to {most}.")
    if options.guidance != 1 and not (module.classes and module.config.label_dropout):
        raise RequestError(
            "guidance", f"guidance={options.guidance}: this model was not trained with and without labels. Use 1."
        )
    if options.clamp and module.spec.levels is None:
        raise RequestError("clamp", "clamp=true: this model's data has no range to keep to. Leave it out.")
