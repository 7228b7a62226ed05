"""What a built energy model can do: rows walk by Langevin dynamics, all at their own sizes and lengths.

Shapes: N samples asked, R rows, B batch.
"""

from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_normal, row_uniform
from kinfolk_families._shared.given import given_elements
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families._shared.noise import per_row
from kinfolk_families.energy.completion import check_options, completion_tasks
from kinfolk_families.energy.langevin import energy_gradient, is_bounded, langevin_step, limited
from kinfolk_families.energy.model import EnergyModel
from kinfolk_families.energy.transformer import EnergyTransformer

GRADIENT_COST = 2  # a pass forward and one back


def first_point(module: EnergyModel, seeds: Tensor) -> Tensor:
    """Where rows begin, as fresh chains of training do: a function of each seed. (N,) -> (N, *)"""
    call, shape = torch.zeros_like(seeds), module.spec.shape
    if is_bounded(module.spec):
        return (2 * row_uniform(seeds, call, shape) - 1).float()
    return module.spec.data_std * row_normal(seeds, call, shape)


def start(module: EnergyModel, request: SampleRequest) -> SamplerState:
    """Rows of noise."""
    x = first_point(module, request.seeds)
    return _rows(module, request, x, torch.zeros(x.shape, dtype=torch.bool))


def start_inpaint(module: EnergyModel, request: SampleRequest) -> SamplerState:
    """Rows of noise where nothing is given."""
    x, known = given_elements(request, module.spec.shape)
    return _rows(module, request, torch.where(known, x, first_point(module, request.seeds)), known)


def _rows(module: EnergyModel, request: SampleRequest, x: Tensor, known: Tensor) -> SamplerState:
    options, trained = check_options(request, module.system.kind), module.system.langevin
    step_size = trained.step_size if options.step_size is None else options.step_size
    noise = trained.noise if options.noise is None else options.noise
    label = row_labels(request, module.classes) if module.classes else torch.zeros_like(request.seeds)
    sizes = {"step_size": x.new_full((len(x),), step_size), "noise": x.new_full((len(x),), noise)}
    carry = {key: value.to(device_of(module)) for key, value in {"known": known, "label": label, **sizes}.items()}
    return SamplerState.start(x.to(device_of(module)), request, options.steps, GRADIENT_COST, **carry)


def advance(module: EnergyModel, state: SamplerState) -> SamplerState:
    """One Langevin step of every row where it is free; what is given stays."""
    x, carry = state.x, state.carry
    gradient = limited(energy_gradient(module, x, carry["label"]), module.system.langevin.gradient_limit)
    noise = row_normal(state.seed, state.call + 1, x.shape[1:]).to(x.device)
    moved = langevin_step(x, gradient, noise, per_row(carry["step_size"], x), per_row(carry["noise"], x))
    moved = moved.clamp(-1, 1) if is_bounded(module.spec) else moved
    return state.step(torch.where(carry["known"], x, moved))


def render(state: SamplerState) -> Tensor:
    """The rows as they stand. -> (R, *shape)"""
    return state.x


def denoise(module: EnergyModel, x_t: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    """Gradient descent on E(x) / T + |x - x_t|^2 / (2 sigma^2) from x_t. (B, *), (B,), (B,) -> (B, *)

    Where it goes to is the likeliest clean sample under exp(-E / T) and Gaussian noise; how far it gets in its steps is
    less the larger sigma is. Each step is explicit in the energy and implicit in the distance, which keeps it stable at
    every sigma. Without noise there is nothing to do but to keep images within [-1, 1].
    """
    config, own = module.system.langevin, module.system.denoising
    temperature = 1 / (own.nats * module.spec.dims)
    energy = partial(module, temperature=temperature)
    variance = per_row(sigma.square(), x_t).to(x_t)
    share = variance / (variance + config.step_size * temperature)
    x = x_t
    for _ in range(own.steps):
        gradient = limited(energy_gradient(energy, x, label), config.gradient_limit)
        x = torch.lerp(x_t, x - config.step_size * gradient, share)
        x = x.clamp(-1, 1) if is_bounded(module.spec) else x
    return x


def energy_score(module: EnergyModel, batch: Batch, _: Tensor) -> Tensor:
    """The energy, of all classes together where there are classes. -> (B,)"""
    return module(batch.x)


def classify(module: EnergyModel, batch: Batch, _: Tensor) -> Tensor:
    """log p(label | x) up to a constant of x, at temperature 1: the energies' negatives. -> (B, K)

    Source: Grathwohl et al., 2020, eq. 2, https://arxiv.org/abs/1912.03263.
    """
    return -module.energies(batch.x)


def tasks(module: EnergyModel | EnergyTransformer) -> Tasks:
    """What either system can do. No model of these knows a likelihood: the energy lacks its constant."""
    if isinstance(module, EnergyTransformer):
        return completion_tasks(module)
    return Tasks(
        options=module.config.sampler,
        starts={"sample": partial(start, module), "inpaint": partial(start_inpaint, module)},
        advance=partial(advance, module),
        render=render,
        conditions=frozenset({"label"} if module.classes else ()),
        anomaly_score=partial(energy_score, module),
        classify=partial(classify, module) if module.classes else None,
        denoise=partial(denoise, module),
    )
