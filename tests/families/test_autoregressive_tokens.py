"""Laws of tokens: data comes back from them, palettes cover it, and a first stage's tokens can be learned."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from kinfolk import sampling
from kinfolk.config import parse
from kinfolk.contract import (
    FIRST_STAGE,
    Batch,
    Config,
    ConfigError,
    DataSpec,
    Family,
    Likelihood,
    Model,
    Progress,
    SamplerOptions,
    Tasks,
)
from kinfolk.families import find_family
from kinfolk.training.state import build
from kinfolk_families.autoregressive import FAMILY
from kinfolk_families.autoregressive.config import AutoregressiveConfig
from kinfolk_families.autoregressive.losses import phases
from kinfolk_families.autoregressive.tokens import PaletteTokeniser, lloyd_step, nearest_colour

COLOUR = DataSpec(kind="image", shape=(3, 4, 4), levels=17, classes=3)
GREY = DataSpec(kind="image", shape=(1, 4, 4), levels=17, classes=3)
TOKENS = DataSpec(kind="tokens", shape=(6,), levels=11, classes=3)
NETWORKS = {
    "transformer": {"kind": "transformer", "width": 8, "depth": 1, "heads": 2},
    "gated": {"kind": "gated_pixelcnn", "channels": 4, "dilations": [1, 1]},
    "plus": {"kind": "pixelcnn_pp", "channels": [4, 4]},
}


def model_of(spec, network="transformer", parents=None, **config):
    values = {"network": NETWORKS[network], **config}
    return build(FAMILY, parse(AutoregressiveConfig, values, "model"), spec, 0, parents=parents)


def random_x(spec, rows=5):
    generator = torch.Generator().manual_seed(2)
    return spec.from_levels(torch.randint(spec.levels, (rows, *spec.shape), generator=generator))


def never():
    pytest.fail("nothing to draw")


@pytest.mark.parametrize(
    ("spec", "network", "output", "shape"),
    [
        (COLOUR, "transformer", "categorical", (48, 1)),
        (COLOUR, "plus", "mixture", (16, 3)),
        (GREY, "gated", "categorical", (16, 1)),
        (TOKENS, "transformer", "categorical", (6, 1)),
    ],
)
def test_levels_come_back_from_their_tokens(spec, network, output, shape):
    tokeniser = model_of(spec, network, output={"kind": output}).module.tokeniser
    x = random_x(spec)
    tokens = tokeniser.observe(x, never)
    assert tokens.shape == (5, *shape)
    assert torch.equal(tokeniser.picture(tokens), x)


def test_tokens_stand_in_raster_order_with_channels_innermost():
    x = COLOUR.from_levels(torch.arange(48).view(1, 3, 4, 4) % 17)
    together = model_of(COLOUR, "plus", output={"kind": "mixture"}).module.tokeniser.nearest(x)
    apart = model_of(COLOUR).module.tokeniser.nearest(x)
    assert together[0, 5].tolist() == [5 % 17, 21 % 17, 37 % 17]  # line 1, column 1
    assert torch.equal(together.flatten(), apart.flatten())


def test_binary_tokens_are_drawn_by_brightness_and_come_back_black_and_white():
    tokeniser = model_of(GREY, "gated", output={"kind": "bernoulli"}).module.tokeniser
    x = torch.full((1, 1, 4, 4), 0.5)
    uniform = torch.linspace(0, 0.9999, 16).view_as(x)
    tokens = tokeniser.observe(x, lambda: uniform)
    assert tokens.sum() == 12  # three quarters of the draws lie below 0.75
    assert torch.equal(tokeniser.picture(tokens), torch.where(uniform < 0.75, 1.0, -1.0))
    assert torch.equal(tokeniser.nearest(2 * x - 1.5), torch.zeros(1, 16, 1).long())


def test_a_training_step_binarises_anew_and_evaluation_by_seed():
    model = model_of(GREY, "gated", output={"kind": "bernoulli"})
    batch, loss = Batch(torch.zeros(8, 1, 4, 4)), phases(model.module)[0].loss
    with torch.no_grad():
        values = [float(loss(batch, Progress(0, 0, torch.Generator().manual_seed(seed))).value) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    nats = [model.tasks.log_prob.nats(batch, torch.arange(8) + first) for first in (0, 0, 8)]
    assert torch.equal(nats[0], nats[1])
    assert not torch.equal(nats[0], nats[2])


def colours(rows=4):
    """Pictures of six colours, unevenly many of each."""
    generator = torch.Generator().manual_seed(0)
    table = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [-1, -1, -1], [0.5, -0.5, 0.5]])
    drawn = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]), rows * 16, True, generator=generator)
    return table, table[drawn].view(rows, 4, 4, 3).movedim(-1, 1)


def progress(**changes):
    return Progress(0, 0, torch.Generator().manual_seed(0), **changes)


def test_a_palette_as_large_as_the_colours_there_are_loses_nothing():
    table, x = colours()
    model = model_of(COLOUR, palette=6)
    FAMILY.initialise(model.module, Batch(x), progress())
    tokeniser = model.module.tokeniser
    torch.testing.assert_close(tokeniser.palette.sort(0).values, table.sort(0).values)
    tokens = tokeniser.observe(x, never)
    assert tokens.shape == (4, 16, 1)
    torch.testing.assert_close(tokeniser.picture(tokens), x)


def test_rounds_of_k_means_never_raise_the_error():
    pixels = torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    palette, errors = pixels[:7], []
    for _ in range(10):
        errors.append(float((pixels - palette[nearest_colour(pixels, palette)]).square().sum()))
        palette = lloyd_step(pixels, palette, lambda value: value)
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_a_colour_moves_to_the_mean_of_its_pixels_and_stays_where_it_has_none():
    pixels = torch.tensor([[0.0], [1.0], [10.0]])
    moved = lloyd_step(pixels, torch.tensor([[0.4], [9.0], [-50.0]]), lambda value: value)
    assert moved.flatten().tolist() == [0.5, 10.0, -50.0]


def test_workers_agree_on_one_palette_of_all_their_pixels():
    """Two workers in step: each sum is over what both gave at that point."""
    _, x = colours(8)
    given, taken = [[], []], []

    def run(rank, sums):
        def all_reduce(value):
            given[rank].append(value.clone())
            return sums[len(given[rank]) - 1] if len(given[rank]) <= len(sums) else value

        given[rank].clear()
        tokeniser = PaletteTokeniser(COLOUR, 4)
        tokeniser.initialise(x[4 * rank : 4 * rank + 4], progress(rank=rank, workers=2, all_reduce=all_reduce))
        return tokeniser.palette

    for _ in range(21):  # one pick and 20 rounds, each known once the ones before it are
        palettes = [run(rank, taken) for rank in (0, 1)]
        taken.append(given[0][len(taken)] + given[1][len(taken)])
    palettes = [run(rank, taken) for rank in (0, 1)]
    assert torch.equal(*palettes)
    assert (given[0][-1] != given[1][-1]).any()
    assert float(taken[-1][:, -1].sum()) == 8 * 16


class CodebookConfig(Config):
    """Nothing to set."""


def codebook(shape=(4,)):
    """A first stage that names each quarter of a 4x4 picture by the level of its first pixel."""

    def encode(batch, seeds):
        return GREY.to_levels(batch.x[:, 0, ::2, ::2]).flatten(1)

    def decode(batch, seeds):
        quarters = GREY.from_levels(batch.x).view(-1, 1, 2, 2)
        return quarters.repeat_interleave(2, 2).repeat_interleave(2, 3)

    spec = DataSpec(kind="tokens", shape=shape, levels=17, classes=3)
    tasks = Tasks(options=SamplerOptions(), encode=encode, decode=decode, latent_spec=spec)
    return Model(family_of(tasks), CodebookConfig(), GREY, torch.nn.Linear(1, 1))


def family_of(tasks):
    return Family(
        "codebook",
        frozenset({"image"}),
        CodebookConfig,
        CodebookConfig,
        lambda *_: torch.nn.Linear(1, 1),
        lambda _: [],
        lambda _: tasks,
    )


def test_a_prior_learns_draws_and_weighs_the_tokens_of_its_first_stage():
    parent = codebook()
    model = model_of(GREY, parents={FIRST_STAGE: parent}, conditional=True)
    module, tasks = model.module, model.tasks
    assert (module.tokeniser.length, module.tokeniser.vocabulary) == (4, 17)
    assert not any(name.startswith("first_stage") for name in module.state_dict())
    x = sampling.sample(model, 3, label=[0, 1, 2])
    assert x.shape == (3, 1, 4, 4)
    assert torch.equal(x[:, :, ::2, ::2], x[:, :, 1::2, 1::2])  # quarters of one level: what the parent decodes
    batch = Batch(random_x(GREY), torch.arange(5) % 3)
    tokens = parent.tasks.encode(batch, torch.arange(5))
    nats = module(tokens[..., None], batch.label).sum(1)
    torch.testing.assert_close(tasks.anomaly_score(batch, torch.arange(5)), -nats)
    torch.testing.assert_close(tasks.log_prob.nats(batch, torch.arange(5)), nats)
    loss = phases(module)[0].loss(Batch(tokens, batch.label), progress())
    torch.testing.assert_close(loss.value, -nats.mean() / 4)
    torch.testing.assert_close(loss.logs["nats"], nats.mean())


def test_tokens_that_are_not_the_data_have_a_log_prob_of_codes_and_complete_nothing_they_cannot():
    prior = model_of(GREY, parents={FIRST_STAGE: codebook()}).tasks
    assert prior.log_prob.of == "codes"
    assert set(prior.starts) == {"sample"}
    palette = model_of(COLOUR, palette=4).tasks
    assert palette.log_prob.of == "codes"
    assert set(palette.starts) == {"sample", "inpaint"}


def test_the_probabilities_of_all_codes_sum_to_one():
    """Two colours for four pixels: sixteen pictures of the palette's own colours hold every code once."""
    spec = DataSpec(kind="image", shape=(3, 2, 2), levels=17)
    model = model_of(spec, palette=2)
    codes = torch.tensor(list(product(range(2), repeat=4)))[..., None]
    x = model.module.tokeniser.picture(codes)
    with torch.no_grad():
        nats = model.tasks.log_prob.nats(Batch(x), torch.arange(16))
        other = model.tasks.log_prob.nats(Batch(x + 0.01), torch.arange(16))
    assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(nats, other)  # of the code, not of x


@pytest.mark.parametrize(
    ("spec", "network", "output", "of"),
    [
        (GREY, "gated", "bernoulli", "binary"),
        (GREY, "gated", "categorical", "levels"),
        (COLOUR, "plus", "mixture", "levels"),
        (TOKENS, "transformer", "categorical", "levels"),
        (COLOUR, "transformer", "bernoulli", "binary"),
    ],
)
def test_log_prob_is_exact_and_says_of_what(spec, network, output, of):
    found = model_of(spec, network, output={"kind": output}).tasks.log_prob
    assert isinstance(found, Likelihood)
    assert (found.kind, found.of) == ("exact", of)


@pytest.mark.parametrize(
    ("spec", "network", "config", "named"),
    [
        (GREY.model_copy(update={"levels": None}), "gated", {}, "continuous"),
        (GREY.model_copy(update={"classes": None}), "gated", {"conditional": True}, "conditional: false"),
        (TOKENS, "gated", {}, "Use kind: transformer"),
        (TOKENS, "transformer", {"output": {"kind": "mixture"}}, "Use kind: categorical"),
        (TOKENS, "transformer", {"output": {"kind": "bernoulli"}}, "Use kind: categorical"),
        (TOKENS, "transformer", {"palette": 4}, "Leave it out"),
        (COLOUR, "gated", {}, "kind: mixture"),
        (COLOUR, "gated", {"output": {"kind": "bernoulli"}}, "kind: mixture"),
        (GREY, "transformer", {"palette": 18}, "have only 17 colours. Use at most 17"),
        (COLOUR.model_copy(update={"levels": 2}), "transformer", {"palette": 9}, "Use at most 8"),
        (GREY, "gated", {"palette": 4}, "network.kind=transformer"),
        (GREY, "transformer", {"palette": 4, "output": {"kind": "mixture"}}, "output.kind=categorical"),
    ],
)
def test_a_recipe_that_does_not_fit_its_data_is_refused(spec, network, config, named):
    with pytest.raises(ConfigError, match=named):
        model_of(spec, network, **config)


@pytest.mark.parametrize(
    ("spec", "network", "config", "vocabulary"),
    [
        (GREY, "gated", {}, 17),
        (GREY, "transformer", {"palette": 17}, 17),
        (COLOUR, "transformer", {"palette": 30}, 30),
        (GREY, "gated", {"output": {"kind": "bernoulli"}}, 2),
    ],
)
def test_a_recipe_draws_among_as_many_tokens_as_there_are(spec, network, config, vocabulary):
    model = model_of(spec, network, sampler={"top_k": vocabulary}, **config)
    assert sampling.sample(model, 1).shape == (1, *spec.shape)
    with pytest.raises(ConfigError, match=rf"sampler\.top_k={vocabulary + 1}: .* Use 0 to {vocabulary}"):
        model_of(spec, network, sampler={"top_k": vocabulary + 1}, **config)


def test_a_picture_that_cannot_be_halved_so_often_is_refused():
    config = {"network": {"kind": "pixelcnn_pp", "channels": [4, 4, 4, 4]}, "output": {"kind": "mixture"}}
    with pytest.raises(ConfigError, match="at most 3 resolutions"):
        build(FAMILY, parse(AutoregressiveConfig, config, "model"), GREY, 0)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="heads=3 does not divide width=8"):
        parse(AutoregressiveConfig, {"network": {"kind": "transformer", "width": 8, "heads": 3}}, "model")


def test_a_first_stage_without_tokens_is_refused():
    parent = codebook()
    tasks = replace(parent.tasks, latent_spec=DataSpec(kind="vector", shape=(4,)))
    with pytest.raises(ConfigError, match="first_stage: digits-vq-vae@champion"):
        model_of(GREY, parents={FIRST_STAGE: replace(parent, family=family_of(tasks))})


@pytest.mark.parametrize(
    "objective", [{"kind": "vector_quantised", "codes": 8}, {"kind": "finite_scalar", "levels": [4, 4]}]
)
def test_a_first_stage_that_wants_labels_is_refused_by_a_prior_without(objective):
    family = find_family("autoencoder")
    values = {"objective": objective, "network": {"kind": "conv", "width": 4, "halvings": 1}, "latent": 2}
    told, untold = (
        build(family, parse(family.config, {**values, "conditional": conditional}, "model"), GREY, 0)
        for conditional in (True, False)
    )
    with pytest.raises(ConfigError, match="wants labels to decode"):
        model_of(GREY, parents={FIRST_STAGE: told})
    for stage, conditional in ((told, True), (untold, True), (untold, False)):
        model = model_of(GREY, parents={FIRST_STAGE: stage}, conditional=conditional)
        assert sampling.sample(model, 2).shape == (2, *GREY.shape)
        assert model.tasks.anomaly_score(Batch(random_x(GREY), torch.arange(5) % 3), torch.arange(5)).isfinite().all()
