"""What a built autoregressive model can do: draw a token of every row in each call, and weigh whole samples.

Tokens race: each has its log-probability and Gumbel noise of (seed, position) alone, in float64, and the highest sum
wins, which draws by probability (Gumbel, 1954). Rounding in the network can change a winner only in a photo finish.
Shapes: N samples asked, R rows, B batch, T positions, G tokens drawn at one, V vocabulary.
"""

from functools import partial

import torch
from torch import Tensor

from kinfolk.contract import Batch, Likelihood, RequestError, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_uniform
from kinfolk_families._shared.given import given_elements
from kinfolk_families._shared.labels import device_of, row_labels
from kinfolk_families.autoregressive.config import Options
from kinfolk_families.autoregressive.model import Autoregressive
from kinfolk_families.autoregressive.tokens import Tokeniser

CACHE = "cache/"  # begins the names of what the network remembers, among what rows carry


def allowed(log_probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """-inf for the tokens that a row may not draw. (R, V), (R,), (R,) -> (R, V)

    A row keeps its ``top_k`` likeliest tokens (0: all), and of these the fewest that hold ``top_p`` of their mass.
    Source: Fan et al., 2018, https://arxiv.org/abs/1805.04833; Holtzman et al., 2020, eqs. 2 and 3,
    https://arxiv.org/abs/1904.09751.
    """
    if not ((top_k > 0) | (top_p < 1)).any():
        return log_probs
    ordered, order = log_probs.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(log_probs.shape[1], device=log_probs.device)
    ordered = ordered.masked_fill((rank >= top_k[:, None]) & (top_k > 0)[:, None], -torch.inf)
    mass = ordered.softmax(1)
    before = mass.cumsum(1) - mass  # of the likelier tokens
    ordered = ordered.masked_fill((before >= top_p[:, None]) & (top_p < 1)[:, None], -torch.inf)
    return torch.empty_like(ordered).scatter_(1, order, ordered)


def race(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """The token with the highest log-probability plus Gumbel noise. (R, V), (R, V) in [0, 1) float64 -> (R,)"""
    return (log_probs.double() - (-uniform.log()).log()).argmax(1)


def _rows(module: Autoregressive, request: SampleRequest, forced: Tensor, **carry: Tensor) -> SamplerState:
    """Rows before their first position; ``forced`` (N, T, G) holds tokens that are given, -1 where one is drawn."""
    options, device = request.options, device_of(module)
    assert isinstance(options, Options)
    if wrong := options.excess(module.tokeniser.vocabulary):
        raise RequestError("top_k", wrong)
    seeds = request.seeds
    carry |= {
        "forced": forced,
        "temperature": torch.full(seeds.shape, options.temperature, dtype=torch.float64),
        "top_p": torch.full(seeds.shape, options.top_p, dtype=torch.float64),
        "top_k": torch.full_like(seeds, options.top_k),
    }
    if module.classes:
        carry["label"] = row_labels(request, module.classes)
    remembered = {CACHE + key: value for key, value in module.network.cache(len(seeds)).items()}
    on_device = {key: value.to(device) for key, value in carry.items()}
    x = torch.zeros_like(on_device["forced"])
    return SamplerState.start(x, request, forced.shape[1], 1, **on_device, **remembered)


def _rows_with(module: Autoregressive, request: SampleRequest, x: Tensor, mask: Tensor) -> SamplerState:
    tokeniser = module.tokeniser
    x, mask = x.to(device_of(module)), mask.to(device_of(module))
    forced = torch.where(tokeniser.given(mask), tokeniser.nearest(x), -1)
    return _rows(module, request, forced, given=x, mask=mask)


def start(module: Autoregressive, request: SampleRequest) -> SamplerState:
    """Rows of which nothing is given."""
    rows = len(request.seeds)
    if module.first_stage is not None:
        tokens = (rows, module.tokeniser.length, module.tokeniser.group)
        return _rows(module, request, torch.full(tokens, -1))
    shape = (rows, *module.spec.shape)
    x = torch.zeros(shape, dtype=torch.int64 if module.spec.kind == "tokens" else torch.float32)
    return _rows_with(module, request, x, torch.zeros(shape, dtype=torch.bool))


def start_inpaint(module: Autoregressive, request: SampleRequest) -> SamplerState:
    """Rows whose first elements are given, in the order they are drawn in: the rest looks at what comes before it.

    Raises:
        RequestError: there is no x or mask, one is not of the data's shape, or something is given after a gap.
    """
    x, mask = given_elements(request, module.spec.shape)
    if not bool(is_prefix(module.tokeniser, mask).all()):
        raise RequestError(
            "mask",
            "mask gives elements that come after one asked for. This model draws line by line, a pixel's channels in "
            "turn, and does not look ahead. Give a first part alone, e.g. the upper half.",
        )
    return _rows_with(module, request, x, mask)


def is_prefix(tokeniser: Tokeniser, mask: Tensor) -> Tensor:
    """Whether every token of which something is given is given whole, and so are all before it. (N, *) bool -> (N,)"""
    whole, nothing = (tokeniser.given(part).flatten(1) for part in (mask, ~mask))
    first = whole.long().cumprod(1).bool()
    return (first | nothing).all(1)


def advance(module: Autoregressive, state: SamplerState) -> SamplerState:
    """Draw the tokens at every row's next position; one step of the network for all rows."""
    carry, tokens = state.carry, state.x
    position = state.call.to(tokens.device)
    cache = {key.removeprefix(CACHE): value for key, value in carry.items() if key.startswith(CACHE)}
    outputs = module.step(tokens, position, carry.get("label"), cache).float()
    rows = torch.arange(len(state), device=tokens.device)
    noise = row_uniform(state.seed, state.call, (module.tokeniser.group, module.tokeniser.vocabulary)).to(tokens.device)
    for place in range(module.tokeniser.group):
        log_probs = module.distribution.choices(outputs, tokens[rows, position], place).double()
        log_probs = allowed(log_probs / carry["temperature"][:, None], carry["top_k"], carry["top_p"])
        forced = carry["forced"][rows, position, place]
        tokens[rows, position, place] = torch.where(forced < 0, race(log_probs, noise[:, place]), forced)
    return state.step(tokens)


def render(module: Autoregressive, state: SamplerState) -> Tensor:
    """The picture so far, given elements as they were given. -> (R, *shape)"""
    if module.first_stage is not None:
        decode = module.first_stage.tasks.decode
        assert decode is not None
        return decode(Batch(state.x.flatten(1), state.carry.get("label")), state.seed)
    picture = module.tokeniser.picture(state.x)
    return torch.where(state.carry["mask"], state.carry["given"].to(picture.dtype), picture)


def _tokens(module: Autoregressive, batch: Batch, seeds: Tensor) -> Tensor:
    def uniform() -> Tensor:
        return row_uniform(seeds, torch.zeros_like(seeds), batch.x.shape[1:], "binarise").to(batch.x.device)

    if module.first_stage is None:
        return module.tokeniser.observe(batch.x, uniform)
    encode = module.first_stage.tasks.encode
    assert encode is not None
    return module.tokeniser.nearest(encode(batch, seeds))


def log_prob(module: Autoregressive, batch: Batch, seeds: Tensor) -> Tensor:
    """Exact log-probability of what the model learns of x, in nats: levels, binarised pixels, or tokens. -> (B,)"""
    return module(_tokens(module, batch, seeds), batch.label).double().sum(1).float()


def surprise(module: Autoregressive, batch: Batch, seeds: Tensor) -> Tensor:
    """Negative log-probability of x, or of its tokens where those leave something out, in nats. -> (B,)"""
    return -log_prob(module, batch, seeds)


def tasks(module: Autoregressive) -> Tasks:
    """``log_prob`` says of what it is: a palette's or a first stage's tokens have a probability that is not that of x.

    Given pixels mean nothing to a first stage's tokens, so such a model completes no picture.
    """
    of = "codes" if module.first_stage is not None else module.tokeniser.of
    starts = {"sample": partial(start, module)}
    if module.first_stage is None:
        starts["inpaint"] = partial(start_inpaint, module)
    return Tasks(
        options=module.config.sampler,
        starts=starts,
        advance=partial(advance, module),
        render=partial(render, module),
        conditions=frozenset({"label"}) if module.classes else frozenset(),
        log_prob=Likelihood(partial(log_prob, module), "exact", of),
        anomaly_score=partial(surprise, module),
    )
