"""Completion by the Energy Transformer: of hidden patches at once, of all patches in turns, and of each by the others.

Shapes: N samples asked, R rows, B batch, C H W pixels, T tokens, F folds.
"""

import math
from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_uniform
from kinfolk_families._shared.given import given_elements
from kinfolk_families._shared.labels import device_of
from kinfolk_families._shared.noise import per_row
from kinfolk_families._shared.transformer import patchify
from kinfolk_families.energy.config import Options, SystemKind, foreign_options
from kinfolk_families.energy.transformer import EnergyTransformer

TEMPERATURE = 1.0  # of patches that are drawn, unless the request or the recipe says otherwise
LEAST_ROOM = 0.01  # for the error of a completed pixel, of 1: none is certain


def start(module: EnergyTransformer, request: SampleRequest) -> SamplerState:
    """Rows of which nothing is known."""
    x = torch.zeros(len(request.seeds), *module.shape)
    return _rows(module, request, x, torch.zeros(x.shape, dtype=torch.bool))


def start_inpaint(module: EnergyTransformer, request: SampleRequest) -> SamplerState:
    """Rows of which some is given; a patch that is given in part is completed from the others, its pixels kept."""
    x, known = given_elements(request, module.shape)
    return _rows(module, request, torch.where(known, x, 0.0), known)


def check_options(request: SampleRequest, kind: SystemKind) -> Options:
    """The request's options.

    Raises:
        RequestError: one of them is for another system.
    """
    options = request.options
    assert isinstance(options, Options)
    if foreign := foreign_options(kind, options):
        allowed = "temperature" if kind == "transformer" else "step_size, noise"
        raise RequestError(
            foreign[0], f"{foreign[0]} is no option where system.kind={kind}. Leave it out; there are steps, {allowed}."
        )
    return options


def _rows(module: EnergyTransformer, request: SampleRequest, x: Tensor, known: Tensor) -> SamplerState:
    options, device = check_options(request, "transformer"), device_of(module)
    temperature = TEMPERATURE if options.temperature is None else options.temperature
    turn = turns(request.seeds, patchify(known.float(), module.system.patch).amin(2) < 1)
    calls = min(options.steps, module.tokens)  # more would find nothing to do
    return SamplerState.start(
        x.to(device),
        request,
        calls,
        known=known.to(device),
        turn=turn.to(device),
        temperature=torch.full((len(x),), temperature, device=device),
    )


def turns(seeds: Tensor, asked: Tensor) -> Tensor:
    """When each patch is drawn: a random order of those asked for, 0 the first; -1 where given. (N,), (N, T) -> (N, T)

    A random order rather than the surest patch first, which would draw background only.
    Source: Li et al., 2024 (MAR), section 3.2, https://arxiv.org/abs/2406.11838.
    """
    drawn = row_uniform(seeds, torch.zeros_like(seeds), asked.shape[1:], "order")
    order = torch.where(asked, drawn, 2.0).argsort(1).argsort(1)  # given ones stand last
    return torch.where(asked, order, -1)


def drawn_after(call: Tensor, calls: Tensor, asked: Tensor) -> Tensor:
    """How many of the ``asked`` patches are drawn once ``call`` of ``calls`` is over, few at first. (R,) each -> (R,)

    Source: Chang et al., 2022 (MaskGIT), section 3.3, cosine schedule, https://arxiv.org/abs/2202.04200.
    """
    masked = (math.pi / 2 * call.double() / calls).cos() * asked
    return asked - masked.floor().long()


def draw(mean: Tensor, uniform: Tensor, temperature: Tensor) -> Tensor:
    """Pixels around their mean in [-1, 1]: on or off with this mean, drawn towards it. (R, *) , (R, *), (R, 1, ...)

    A squared error leaves nothing of the distribution but its mean. Of all pixels between -1 and 1 with that mean,
    those that are on or off vary most; a patch shares one ``uniform``, so that its pixels agree on where strokes end.
    """
    mean = mean.clamp(-1, 1)
    extreme = 2 * (uniform < (mean + 1) / 2).to(mean.dtype) - 1
    return torch.lerp(mean, extreme, temperature)


def advance(module: EnergyTransformer, state: SamplerState) -> SamplerState:
    """Complete every row, and draw the patches whose turn it is; the rest of ``x`` is a preview."""
    turn, device = state.carry["turn"], state.x.device
    asked = (turn >= 0).sum(1).cpu()
    before, after = (drawn_after(call, state.calls, asked).to(device)[:, None] for call in (state.call, state.call + 1))
    mean = module(state.x, turn >= before)
    uniform = row_uniform(state.seed, state.call + 1, turn.shape[1:], "threshold").to(mean)
    sampled = draw(mean, module.pixels(uniform), state.carry["temperature"].view(-1, 1, 1, 1))
    free = ~state.carry["known"] & module.pixels(turn >= before)
    value = torch.where(module.pixels(turn < after), sampled, mean)
    return state.step(torch.where(free, value, state.x))


def render(state: SamplerState) -> Tensor:
    """What is drawn, and the mean of what is not. -> (R, C, H, W)"""
    return state.x


def complete(module: EnergyTransformer, batch: Batch, seeds: Tensor) -> Tensor:
    """Each patch as the others have it: F groups of patches, random by seed, are hidden in turn. -> (B, C, H, W)"""
    folds = module.system.folds
    group = turns(seeds, torch.ones(len(seeds), module.tokens, dtype=torch.bool)).to(batch.x.device) % folds
    completed = torch.zeros_like(batch.x)
    for fold in range(folds):
        hidden = group == fold
        completed = torch.where(module.pixels(hidden), module(batch.x, hidden), completed)
    return completed


def denoise(module: EnergyTransformer, x_t: Tensor, sigma: Tensor, _: Tensor | None) -> Tensor:
    """x_t and its completion, each weighed by the other's squared error. (B, C, H, W), (B,) -> (B, C, H, W)

    A completed patch has not seen its own noise, so its mean squared distance to x_t is its error plus sigma^2: each
    row tells its error by itself. Pixels share it by the most that one in [-1, 1] of their mean can vary, 1 - mean^2.
    Source: Batson & Royer, 2019 (Noise2Self), Proposition 1, https://arxiv.org/abs/1901.11365.
    """
    same_groups = torch.zeros(len(x_t), dtype=torch.int64)
    completed = complete(module, Batch(x_t.clamp(-1, 1)), same_groups).clamp(-1, 1)
    variance = sigma.square().to(x_t)
    error = ((completed - x_t).square().flatten(1).mean(1) - variance).clamp(min=0)
    room = (1 - completed.square()).clamp(min=LEAST_ROOM)
    error = per_row(error / room.flatten(1).mean(1), x_t) * room
    share = per_row(variance, x_t) / (per_row(variance, x_t) + error).clamp(min=torch.finfo(x_t.dtype).tiny)
    return torch.lerp(x_t, completed, share).clamp(-1, 1)


def completion_error(module: EnergyTransformer, batch: Batch, seeds: Tensor) -> Tensor:
    """Mean squared error of patches completed from the others. -> (B,)"""
    return (complete(module, batch, seeds) - batch.x).square().flatten(1).mean(1)


def final_energy(module: EnergyTransformer, batch: Batch, _: Tensor) -> Tensor:
    """The energy at which the tokens arrive. -> (B,)"""
    return module.energy(batch.x)


def completion_tasks(module: EnergyTransformer) -> Tasks:
    """What an Energy Transformer can do."""
    score = completion_error if module.system.anomaly == "completion" else final_energy
    return Tasks(
        options=module.config.sampler,
        starts={"sample": partial(start, module), "inpaint": partial(start_inpaint, module)},
        advance=partial(advance, module),
        render=render,
        complete=partial(complete, module),
        anomaly_score=partial(score, module),
        denoise=partial(denoise, module),
    )
