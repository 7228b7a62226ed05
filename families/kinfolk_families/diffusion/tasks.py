"""What a built denoiser can do, and the requests it cannot serve."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from kinfolk.contract import Batch, RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.rng import generator as generator_of
from kinfolk.rng import row_normal
from kinfolk_families._shared.dropout import dropouts
from kinfolk_families._shared.given import check_given
from kinfolk_families._shared.labels import device_of
from kinfolk_families._shared.noise import per_row
from kinfolk_families.diffusion.likelihood import ProbabilityFlow
from kinfolk_families.diffusion.model import Adapted, Diffusion
from kinfolk_families.diffusion.sample import Sampler, lowest_of, options_of

ANOMALY_DRAWS = 16  # noise levels, the same for every row, at which it is denoised
APART = 1.001  # ratio of a run's first level to its last, at least: solvers divide by its logarithm
Start = Callable[[SampleRequest], SamplerState]


def denoising_error(module: Diffusion | Adapted, batch: Batch, seeds: Tensor) -> Tensor:
    """The loss of each sample by itself, over noise of its seed, at levels drawn as in training. -> (B,)

    The class is not told where the model has learnt to do without.
    """
    label = None if module.config.label_dropout else batch.label
    levels = module.preconditioner.draw(ANOMALY_DRAWS, generator_of("denoising error"))
    errors = []
    for draw, level in enumerate(levels.tolist()):
        noise = row_normal(seeds, torch.full_like(seeds, draw), batch.x.shape[1:], "anomaly").to(batch.x.device)
        sigma = torch.full((len(seeds),), level, device=batch.x.device)
        off = (module(batch.x + per_row(sigma, noise) * noise, sigma, label) - batch.x).square().flatten(1).mean(1)
        errors.append(module.preconditioner.weight(sigma) * off)
    return torch.stack(errors).mean(0)


def denoise(
    module: Diffusion | Adapted, x_t: Tensor, sigma: Tensor, label: Tensor | None, generator: Generator | None = None
) -> Tensor:
    """The estimate of x; where sigma is 0, ``x_t`` itself. (B, *), (B,), (B,) -> (B, *)"""
    lowest, _ = module.preconditioner.ends
    estimate = module(x_t, torch.where(sigma > 0, sigma, lowest), label, generator)
    return torch.where(per_row(sigma > 0, x_t), estimate, x_t)


def tasks(module: Diffusion | Adapted) -> Tasks:
    """Sampling and interpolation; where samples are denoised and not latents, also all that takes a sample."""
    device = device_of(module)
    unknown = module.config.label_dropout > 0
    sampler = Sampler(module, module.preconditioner, module.spec.shape, module.classes, device, module.picture, unknown)
    common = Tasks(
        options=module.config.sampler,
        starts={
            "sample": partial(_start, module, sampler.sample),
            "interpolate": partial(_start, module, sampler.sample, needs=("seed_to", "weight")),
        },
        advance=sampler.advance,
        render=sampler.render,
        evaluations=sampler.evaluations,
        conditions=frozenset({"label"} if module.classes else ()),
    )
    return common if module.first_stage else _on_samples(module, sampler, common)


def _on_samples(module: Diffusion | Adapted, sampler: Sampler, common: Tasks) -> Tasks:
    starts: dict[str, Start] = {
        **common.starts,
        "inpaint": partial(_start, module, sampler.inpaint, needs=("x", "mask")),
        "denoise": partial(_restore, module, sampler),
    }
    flow = ProbabilityFlow(module, module.spec, module.preconditioner.ends, module.config.likelihood)
    score = partial(denoising_error, module)
    own = replace(common, starts=starts, log_prob=flow.task, anomaly_score=score, denoise=partial(denoise, module))
    return replace(own, denoise_with_dropout=partial(denoise, module)) if dropouts(module) else own


def _start(
    module: Diffusion | Adapted, start: Start, request: SampleRequest, needs: tuple[str, ...] = ()
) -> SamplerState:
    """Rows of a request that the model can serve and that says all it needs to."""
    _check(module, request)
    check_given(request, module.spec.shape, *needs)
    return start(request)


def _restore(module: Diffusion | Adapted, sampler: Sampler, request: SampleRequest) -> SamplerState:
    options, (lowest, highest) = options_of(request), module.preconditioner.ends
    level, lowest = options.noise_level, APART * max(lowest, lowest_of(options))
    if not lowest < level <= highest:
        raise RequestError("noise_level", f"noise_level={level}: use more than {lowest:g} and at most {highest:g}.")
    return _start(module, sampler.restore, request, ("x",))


def _check(module: Diffusion | Adapted, request: SampleRequest) -> None:
    options, most = options_of(request), module.preconditioner.max_steps
    if most is not None and options.steps > most:
        raise RequestError("steps", f"steps={options.steps}: this model knows {most} noise levels. Use 1 to {most}.")
    lowest, highest = module.preconditioner.ends
    if options.sigma_min is not None and not lowest <= options.sigma_min < highest / APART:
        raise RequestError(
            "sigma_min", f"sigma_min={options.sigma_min}: use {lowest:g} or more and less than {highest / APART:g}."
        )
    if options.guidance != 1 and not (module.classes and module.config.label_dropout):
        raise RequestError(
            "guidance", f"guidance={options.guidance}: this model was not trained with and without labels. Use 1."
        )
    if options.guidance != 1 and request.x is not None and request.label is None:
        raise RequestError(
            "label", f"guidance={options.guidance} leads away from no class and towards one: give labels, or use 1."
        )
    if options.clamp and module.spec.levels is None:
        raise RequestError("clamp", "clamp=true: this model's data has no range to keep to. Leave it out.")
