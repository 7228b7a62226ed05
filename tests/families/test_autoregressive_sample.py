"""Laws of drawing: by probability, by seed alone, within the tokens allowed, and around what is given."""

from itertools import product

import pytest
import torch

from kinfolk import sampling
from kinfolk.config import parse
from kinfolk.contract import Batch, DataSpec, Progress, RequestError, SampleRequest, SamplerState
from kinfolk.rng import row_uniform
from kinfolk.training.state import build
from kinfolk_families.autoregressive import FAMILY
from kinfolk_families.autoregressive.config import AutoregressiveConfig, MixtureConfig, Options, PixelCnnPpConfig
from kinfolk_families.autoregressive.losses import phases
from kinfolk_families.autoregressive.sample import allowed, race

TINY = DataSpec(kind="image", shape=(1, 2, 2), levels=3, classes=2)
DOTS = DataSpec(kind="image", shape=(3, 1, 2), levels=2)
GREY = DataSpec(kind="image", shape=(1, 6, 6), levels=9, classes=3)
COLOUR = DataSpec(kind="image", shape=(3, 4, 4), levels=5, classes=3)
NETWORKS = {
    "transformer": {"kind": "transformer", "width": 8, "depth": 2, "heads": 2},
    "gated": {"kind": "gated_pixelcnn", "channels": 6, "dilations": [1, 1]},
    "plus": {"kind": "pixelcnn_pp", "channels": [4, 6]},
}
SYSTEMS = [
    ("gated", "bernoulli", TINY),
    ("gated", "categorical", TINY),
    ("plus", "mixture", TINY),
    ("transformer", "categorical", TINY),
    ("gated", "mixture", DOTS),
]


def model_of(network="transformer", output="categorical", spec=GREY, **config):
    """A model whose weights are far from where they began, so that its probabilities differ."""
    values = {"network": NETWORKS[network], "output": {"kind": output}, **config}
    model = build(FAMILY, parse(AutoregressiveConfig, values, "model"), spec, 0)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.module.requires_grad_(False).parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def every_picture(model, label=None):
    """All pictures of a small space, and the log-probability of each."""
    spec, binary = model.spec, model.config.output.kind == "bernoulli"
    values = torch.tensor([-1.0, 1.0]) if binary else spec.from_levels(torch.arange(spec.levels))
    index = torch.tensor(list(product(range(len(values)), repeat=spec.dims)))
    x = values[index].view(-1, *spec.shape)
    labels = None if label is None else torch.full((len(x),), label)
    return x, model.tasks.log_prob.nats(Batch(x, labels), torch.arange(len(x)))


@pytest.mark.parametrize(("network", "output", "spec"), SYSTEMS)
def test_probabilities_of_all_pictures_sum_to_one(network, output, spec):
    _, nats = every_picture(model_of(network, output, spec))
    assert abs(float(nats.exp().sum()) - 1) < 1e-5


def test_probabilities_of_all_pictures_sum_to_one_for_each_class():
    model = model_of("plus", "mixture", TINY, conditional=True)
    first, second = (every_picture(model, label)[1] for label in (0, 1))
    assert abs(float(first.exp().sum()) - 1) < 1e-5
    assert abs(float(second.exp().sum()) - 1) < 1e-5
    assert not torch.allclose(first, second)


def chi_square(counts, expected):
    """Pearson's statistic over its degrees of freedom, rare cells taken together; about 1 if drawn as expected."""
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    keep = wanted > 0
    return float(((observed - wanted).square() / wanted)[keep].sum() / max(int(keep.sum()) - 1, 1))


@pytest.mark.parametrize(("network", "output", "spec"), SYSTEMS)
def test_pictures_are_drawn_as_often_as_the_model_says(network, output, spec):
    model, n = model_of(network, output, spec), 3000
    x, nats = every_picture(model)
    drawn = sampling.sample(model, n, max_rows=n)
    match = (drawn.flatten(1)[:, None] == x.flatten(1)[None]).all(2)  # (n, pictures)
    assert match.sum(1).tolist() == [1] * n
    assert 0.5 < chi_square(match.sum(0).double(), n * nats.double().exp()) < 1.6


def test_a_race_is_won_by_probability():
    log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]).log()
    n = 20_000
    seeds = torch.arange(n)
    won = race(log_probs.expand(n, -1), row_uniform(seeds, torch.zeros_like(seeds), (5,)))
    counts = torch.bincount(won, minlength=5).double()
    assert counts[4] == 0
    assert chi_square(counts[:4], n * log_probs[:4].double().exp()) < 3


def kept(probabilities, top_k=0, top_p=1.0):
    log_probs = torch.tensor(probabilities, dtype=torch.float64).log()[None]
    left = allowed(log_probs, torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))[0]
    assert torch.equal(left[left.isfinite()], log_probs[0][left.isfinite()])  # what is kept stays as it is
    return left.isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [(0.01, [2]), (0.49, [2]), (0.5, [2]), (0.51, [0, 2]), (0.75, [0, 2]), (0.76, [0, 1, 2]), (0.99, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(top_p, tokens):
    """Powers of two, so that sums are exact; of two alike the first is kept."""
    assert kept([0.25, 0.125, 0.5, 0.125], top_p=top_p) == tokens


def test_the_nucleus_holds_the_mass_and_one_token_fewer_does_not():
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(200, 30, generator=generator, dtype=torch.float64)).log_softmax(1)
    top_p = torch.rand(200, generator=generator, dtype=torch.float64)
    probabilities = log_probs.exp()
    inside = allowed(log_probs, torch.zeros(200, dtype=torch.int64), top_p).isfinite()
    mass = (probabilities * inside).sum(1)
    smallest = probabilities.masked_fill(~inside, 2).min(1).values
    assert (mass >= top_p).all()
    assert (mass - smallest < top_p).all()
    assert (probabilities.masked_fill(inside, 0).max(1).values <= smallest).all()


def test_top_k_comes_before_top_p_of_what_it_leaves():
    probabilities = [0.4, 0.3, 0.2, 0.1]
    assert kept(probabilities, top_k=3) == [0, 1, 2]
    assert kept(probabilities, top_k=2, top_p=0.57) == [0]  # 0.4 / 0.7 of what is left
    assert kept(probabilities, top_k=2, top_p=0.58) == [0, 1]
    assert kept(probabilities) == [0, 1, 2, 3]


def test_rows_with_other_options_do_not_notice_each_other():
    log_probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double().log().repeat(3, 1)
    left = allowed(log_probs, torch.tensor([0, 1, 0]), torch.tensor([1.0, 1.0, 0.5]).double())
    assert left.isfinite().sum(1).tolist() == [4, 1, 2]


def test_temperature_divides_the_log_probabilities():
    """At temperature T the chance of the first token goes with its probability to the power 1 / T."""
    model, n = model_of("transformer", "categorical", TINY), 3000
    probability = model.module.distribution.choices(
        model.module.network(torch.zeros(1, 4, 1).long(), None)[:, 0], torch.zeros(1, 1).long(), 0
    )[0].exp()
    for temperature in (0.5, 2.0):
        drawn = sampling.sample(model, n, options={"temperature": temperature}, max_rows=n)
        counts = torch.bincount(TINY.to_levels(drawn[:, 0, 0, 0]), minlength=3).double()
        expected = probability.double() ** (1 / temperature)
        assert chi_square(counts, n * expected / expected.sum()) < 3


def test_the_likeliest_token_is_drawn_where_one_alone_is_allowed():
    model = model_of()
    greedy = sampling.sample(model, 3, options={"top_k": 1})
    assert torch.equal(greedy[0], greedy[1])
    assert torch.equal(greedy, sampling.sample(model, 3, options={"top_p": 1e-6}))
    tokens = model.module.tokeniser.nearest(greedy)
    assert torch.equal(model.module.network(tokens, None).argmax(2), tokens[..., 0])


@pytest.mark.parametrize(
    ("network", "output", "spec"),
    [
        ("gated", "bernoulli", GREY),
        ("plus", "mixture", COLOUR),
        ("plus", "mixture", GREY),
        ("transformer", "categorical", GREY),
    ],
)
def test_rows_join_and_leave_at_any_position_and_no_token_changes(network, output, spec):
    """Requests with other options, classes and tasks, each alone and all in one state."""
    model = model_of(network, output, spec, conditional=True)
    tasks = model.tasks
    x = spec.from_levels(torch.randint(spec.levels, (2, *spec.shape), generator=torch.Generator().manual_seed(1)))
    if output == "bernoulli":
        x = x.sign()
    mask = torch.zeros_like(x)
    mask[:, :, :3] = 1
    requests = [
        ("sample", SampleRequest(torch.tensor([1, 2, 3]), Options(), torch.tensor([0, 1, 2]))),
        ("inpaint", SampleRequest(torch.tensor([4, 5]), Options(top_p=0.9), torch.tensor([1, 0]), x=x, mask=mask)),
        ("sample", SampleRequest(torch.tensor([6]), Options(temperature=0.7, top_k=2))),
    ]
    alone = {}
    for task, request in requests:
        drawn = sampling.run(tasks, request, task)
        alone |= dict(zip(request.seeds.tolist(), drawn, strict=True))
    found, waiting, state, calls = {}, requests[1:], sampling.start(tasks, requests[0][1]), 0
    while len(state):
        state, calls = tasks.advance(state), calls + 1
        done = state.select(state.done)
        if len(done):
            found |= dict(zip(done.seed.tolist(), tasks.render(done), strict=True))
        state = state.select(~state.done)
        if calls % 7 == 0 and waiting:
            task, request = waiting.pop(0)
            state = SamplerState.cat([sampling.start(tasks, request, task), state])
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[seed], alone[seed]) for seed in alone)


def test_tokens_do_not_flip_between_alone_and_a_batch_of_64():
    model = model_of()
    together = sampling.sample(model, 64)
    flips = sum(int((sampling.sample(model, 1, seed)[0] != together[seed]).sum()) for seed in range(0, 64, 8))
    assert flips == 0


def first_elements(spec, count):
    """1 at the first elements in raster order, channels innermost. -> (1, C, H, W) bool"""
    channels, height, width = spec.shape
    return (torch.arange(spec.dims) < count).view(1, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("network", "output", "spec"), [("gated", "categorical", GREY), ("plus", "mixture", COLOUR)])
def test_given_elements_come_out_as_given_and_the_rest_follows_from_those_before(network, output, spec):
    model = model_of(network, output, spec)
    generator = torch.Generator().manual_seed(3)
    x = spec.from_levels(torch.randint(spec.levels, (2, *spec.shape), generator=generator))
    mask = first_elements(spec, 2 * spec.dims // 5).expand(x.shape)
    seeds, tasks = torch.tensor([7, 8]), model.tasks
    completed = sampling.run(tasks, SampleRequest(seeds, Options(), x=x, mask=mask.float()), "inpaint")
    assert torch.equal(completed[mask], x[mask])
    assert not torch.equal(completed[~mask], x[~mask])
    again = SampleRequest(seeds, Options(), x=torch.where(mask, x, 1.0), mask=mask.float())
    assert torch.equal(sampling.run(tasks, again, "inpaint"), completed)  # what is not given is not looked at


def inpainting(model, mask):
    request = SampleRequest(torch.arange(len(mask)), Options(), x=torch.zeros(mask.shape), mask=mask.float())
    return sampling.start(model.tasks, request, "inpaint")


@pytest.mark.parametrize(
    ("network", "output", "spec"),
    [("transformer", "categorical", GREY), ("transformer", "categorical", COLOUR), ("plus", "mixture", COLOUR)],
)
def test_a_completion_takes_any_first_part_and_refuses_what_is_given_after_a_gap(network, output, spec):
    model, generator = model_of(network, output, spec), torch.Generator().manual_seed(0)
    for count in range(spec.dims + 1):
        mask = first_elements(spec, count)
        assert len(inpainting(model, mask)) == 1
        later = torch.randint(count + 1, spec.dims, (1,), generator=generator) if count < spec.dims - 1 else None
        if later is not None:
            gap = mask | (first_elements(spec, later + 1) & ~first_elements(spec, later))
            with pytest.raises(RequestError, match="the upper half") as caught:
                inpainting(model, torch.cat([mask, gap]))  # one row of two
            assert caught.value.field == "mask"


LINES, COLUMNS = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")


@pytest.mark.parametrize(
    "part", [LINES >= 3, COLUMNS < 3, COLUMNS >= 3, (LINES - 2.5).abs() + (COLUMNS - 2.5).abs() > 2]
)
def test_the_lower_left_right_and_outer_part_are_refused(part):
    with pytest.raises(RequestError, match="does not look ahead"):
        inpainting(model_of(), part[None, None])
    assert len(inpainting(model_of(), (LINES < 3)[None, None])) == 1


def test_a_palette_takes_whole_pixels_alone():
    """Its token follows from all channels of a pixel, and what is drawn does not look at some of them."""
    model = model_of(spec=COLOUR, palette=4)
    assert len(inpainting(model, first_elements(COLOUR, 9))) == 1
    for part in (10, 11):
        with pytest.raises(RequestError, match="does not look ahead"):
            inpainting(model, first_elements(COLOUR, part))


def test_completion_draws_by_the_probability_given_the_pixels_before():
    """With the first three of four pixels given, the last is drawn by p(x) over the pictures that share them."""
    model, n = model_of("gated", "categorical", TINY), 3000
    x = TINY.from_levels(torch.tensor([[[[2, 0], [1, 0]]]])).repeat(3, 1, 1, 1)
    x[:, 0, 1, 1] = TINY.from_levels(torch.arange(3))
    probability = model.tasks.log_prob.nats(Batch(x), torch.arange(3)).double().softmax(0)
    mask = torch.tensor([[[[1, 1], [1, 0]]]]).expand(n, -1, -1, -1)
    request = SampleRequest(torch.arange(n), Options(), x=x[:1].expand(n, -1, -1, -1), mask=mask)
    drawn = TINY.to_levels(sampling.run(model.tasks, request, "inpaint"))[:, 0, 1, 1]
    assert chi_square(torch.bincount(drawn, minlength=3).double(), n * probability) < 3


def test_grey_given_to_a_binary_model_comes_out_grey():
    model = model_of("gated", "bernoulli")
    x = torch.full((1, 1, 6, 6), 0.25)
    mask = torch.zeros_like(x)
    mask[..., :2, :] = 1
    completed = sampling.run(model.tasks, SampleRequest(torch.tensor([1]), Options(), x=x, mask=mask), "inpaint")
    assert torch.equal(completed[..., :2, :], x[..., :2, :])
    assert set(completed[..., 2:, :].unique().tolist()) <= {-1.0, 1.0}


def test_a_preview_shows_what_is_drawn_so_far():
    model = model_of(spec=GREY)
    request = sampling.make_request(model, 2)
    final = sampling.run(model.tasks, request)
    state = sampling.start(model.tasks, request)
    for _ in range(14):
        state = model.tasks.advance(state)
    preview = model.tasks.render(state)
    assert torch.equal(preview.flatten(1)[:, :14], final.flatten(1)[:, :14])
    assert (preview.flatten(1)[:, 14:] == -1).all()


def test_a_sample_takes_one_call_a_position():
    assert int(sampling.start(model_of(spec=COLOUR).tasks, SampleRequest(torch.tensor([1]), Options())).calls) == 48
    plus = model_of("plus", "mixture", COLOUR)
    assert int(sampling.start(plus.tasks, SampleRequest(torch.tensor([1]), Options())).calls) == 16


def test_an_anomaly_score_is_the_nats_a_sample_costs():
    model = model_of("plus", "mixture")
    batch = Batch(sampling.sample(model, 4))
    seeds = torch.arange(4)
    assert torch.equal(model.tasks.anomaly_score(batch, seeds), -model.tasks.log_prob.nats(batch, seeds))


@pytest.mark.parametrize(
    ("options", "field", "named"),
    [
        ({"temperature": 0}, "temperature", "greater than 0"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
        ({"top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"top_k": 10}, "top_k", "Use 0 to 9"),
        ({"topk": 3}, "topk", "Did you mean 'top_k'"),
    ],
)
def test_options_beyond_their_limits_are_refused_by_name(options, field, named):
    with pytest.raises(RequestError, match=named) as caught:
        sampling.sample(model_of(), 1, options=options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("x", "mask", "field"),
    [
        (None, torch.ones(1, 1, 6, 6), "x"),
        (torch.ones(1, 1, 6, 6), None, "mask"),
        (torch.ones(1, 1, 6, 5), torch.ones(1, 1, 6, 6), "x"),
        (torch.ones(1, 1, 6, 6), torch.ones(1, 6, 6), "mask"),
    ],
)
def test_a_completion_of_nothing_or_of_another_shape_is_refused(x, mask, field):
    with pytest.raises(RequestError, match="one for each row") as caught:
        sampling.start(model_of().tasks, SampleRequest(torch.tensor([1]), Options(), x=x, mask=mask), "inpaint")
    assert caught.value.field == field


def test_evaluation_binarises_by_seed_as_other_families_do():
    model = model_of("gated", "bernoulli")
    x, seeds = torch.linspace(-1, 1, 72).view(2, 1, 6, 6), torch.tensor([3, 4])
    uniform = row_uniform(seeds, torch.zeros_like(seeds), (1, 6, 6), "binarise")
    tokens = (uniform < (x + 1) / 2).long().view(2, 36, 1)
    torch.testing.assert_close(model.tasks.log_prob.nats(Batch(x), seeds), model.module(tokens, None).sum(1))


def test_the_loss_is_the_mean_nats_of_a_token_with_dropout_from_its_generator():
    values = {"network": {**NETWORKS["plus"], "dropout": 0.5}, "output": {"kind": "mixture"}}
    module = build(FAMILY, parse(AutoregressiveConfig, values, "model"), COLOUR, 0).module.requires_grad_(False)
    batch = Batch(COLOUR.from_levels(torch.arange(96).view(2, 3, 4, 4) % 5))
    loss = phases(module)[0].loss

    def value(seed):
        return loss(batch, Progress(0, 0, torch.Generator().manual_seed(seed)))

    assert torch.equal(value(0).value, value(0).value)
    assert not torch.equal(value(0).value, value(1).value)
    torch.testing.assert_close(value(0).value, -value(0).logs["nats"] / 48)


def test_an_untrained_mixture_stands_where_its_distribution_wants_it():
    module = build(
        FAMILY, AutoregressiveConfig(network=PixelCnnPpConfig(channels=(4, 6)), output=MixtureConfig()), GREY, 0
    ).module
    assert torch.equal(module.network.head.bias, module.distribution.bias())


def test_a_conditional_model_is_told_the_class():
    model = model_of(conditional=True)
    assert model.tasks.conditions == {"label"}
    assert model_of().tasks.conditions == frozenset()
    with pytest.raises(RequestError, match="class-conditional") as caught:
        model.tasks.log_prob.nats(Batch(torch.zeros(1, 1, 6, 6)), torch.tensor([0]))
    assert caught.value.field == "label"
