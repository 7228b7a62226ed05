"""Sampling: noise goes on top of the estimate so far and f takes it off; from an empty estimate, one call is a sample.

    x <- f(x + sqrt(sigma^2 - sigma_min^2) noise, sigma)

Source: Song et al., 2023, algorithm 1 and, for given elements, algorithm 4, https://arxiv.org/abs/2303.01469. R rows.
"""

from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import RequestError, SampleRequest, SamplerState, Tasks
from kinfolk_families._shared.given import check_given
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families._shared.noise import noise_between, per_row
from kinfolk_families.consistency.config import MAX_LEVELS, Options
from kinfolk_families.consistency.model import Consistency

_COLUMNS = MAX_LEVELS + 2  # sigma_max before the levels a user may give, 0 behind


def start(module: Consistency, request: SampleRequest) -> SamplerState:
    """Rows with an empty estimate, or one that holds only what is given; ``x`` is the estimate in float64.

    Raises:
        RequestError: a level lies outside the model's.
    """
    options = request.options
    assert isinstance(options, Options)
    _check_levels(module, options)
    device, shape = device_of(module), (len(request.seeds), *module.spec.shape)
    nothing = torch.zeros(shape, dtype=torch.float64)
    given = nothing if request.x is None else request.x.double()
    mask = nothing.bool() if request.mask is None else request.mask.bool()
    seed_to = request.seeds if request.seed_to is None else request.seed_to
    weight = torch.zeros(len(seed_to), dtype=torch.float64) if request.weight is None else request.weight.double()
    label = row_labels(request, module.classes) if module.classes else torch.zeros_like(request.seeds)
    carry = {
        "sigmas": _schedule(module.config.sigma_max, options).expand(len(weight), -1),
        "given": given,
        "mask": mask,
        "seed_to": seed_to,
        "weight": weight,
        "label": label,
    }
    x = torch.where(mask, given, nothing).to(device)
    calls = 1 + len(options.sigmas)
    return SamplerState.start(x, request, calls, 1, **{key: value.to(device) for key, value in carry.items()})


def _schedule(sigma_max: float, options: Options) -> Tensor:
    """The level of each call, then zeros. -> (S,) float64"""
    levels = torch.tensor([sigma_max, *options.sigmas], dtype=torch.float64)
    return torch.cat([levels, levels.new_zeros(_COLUMNS - len(levels))])


def _check_levels(module: Consistency, options: Options) -> None:
    low, high = module.config.sigma_min, module.config.sigma_max
    for sigma in options.sigmas:
        if not low < sigma < high:
            raise RequestError("sigmas", f"sigmas holds {sigma}: this model's levels lie between {low} and {high}.")


def _noise(state: SamplerState) -> Tensor:
    """Noise of each row for its next call: its own, or on the arc to that of the seed it is on its way to. -> (R, *)"""
    seed_to, weight = state.carry["seed_to"].cpu(), state.carry["weight"].cpu()
    return noise_between(state.seed, seed_to, weight, state.call, tuple(state.x.shape[1:])).to(state.x)


def advance(module: Consistency, state: SamplerState) -> SamplerState:
    """One call of f for all rows, each at its own level; given elements are put back afterwards."""
    carry = state.carry
    sigma = carry["sigmas"].gather(1, state.call[:, None].to(state.x.device))[:, 0]  # (R,)
    spread = (sigma.square() - module.config.sigma_min**2).clamp(min=0).sqrt()
    estimate = module(state.x + per_row(spread, state.x) * _noise(state), sigma, carry["label"])
    return state.step(torch.where(carry["mask"], carry["given"], estimate))


def start_way(module: Consistency, request: SampleRequest) -> SamplerState:
    """Rows with noise between that of two seeds.

    Raises:
        RequestError: it is not said which, or how far between them.
    """
    check_given(request, module.spec.shape, "seed_to", "weight")
    return start(module, request)


def start_inpainting(module: Consistency, request: SampleRequest) -> SamplerState:
    """Rows whose given elements are put back after every call, for the next one to fill in the rest around them.

    Raises:
        RequestError: nothing is given, or there is no second call that could see it.
    """
    check_given(request, module.spec.shape, "x", "mask")
    assert isinstance(request.options, Options)
    if not request.options.sigmas:
        raise RequestError(
            "sigmas",
            "One step from pure noise sees nothing that is given. Give levels, e.g. [20, 5, 1, 0.3].",
        )
    return start(module, request)


def tasks(module: Consistency) -> Tasks:
    """Sampling in one or more calls, interpolation, inpainting, and f itself.

    ``denoise`` is f: it ends the path through x_t in one draw of what x can be, where a diffusion model's ends in the
    mean of all of them.
    """
    starts = {"sample": start, "interpolate": start_way, "inpaint": start_inpainting}
    return Tasks(
        options=module.config.sampler,
        starts={task: partial(begin, module) for task, begin in starts.items()},
        advance=partial(advance, module),
        render=lambda state: state.x.float(),
        conditions=frozenset({"label"} if module.classes else ()),
        denoise=module,
    )
