import pytest
import torch
from pydantic import ValidationError

from kinfolk.contract import DataSpec, SampleRequest, SamplerState
from kinfolk.rng import row_normal
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.config import GANConfig, GANOptions

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10)
SEEDS = torch.arange(40, 46)
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])


def build(conditional=True, **changes):
    network = {"kind": "conv", "width": 8}
    values = {"conditional": conditional, "latent": 6, "generator": network, "critic": network, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FAMILY.build(GANConfig.model_validate(values), SPEC, {})


def draw(gan, seeds=SEEDS, label=None, **options):
    tasks = FAMILY.tasks(gan)
    with torch.no_grad():
        state = tasks.advance(tasks.starts["sample"](SampleRequest(seeds, GANOptions(**options), label)))
        assert bool(state.done.all())
        return tasks.render(state)


def test_a_sample_is_one_pass_of_the_generator_over_the_rows_noise():
    gan = build()
    z = row_normal(SEEDS, torch.zeros_like(SEEDS), (6,))
    with torch.no_grad():
        assert torch.equal(draw(gan, label=LABELS), gan.generator(z, LABELS))
        assert torch.equal(draw(gan, label=LABELS, truncation=0.5), gan.generator(0.5 * z, LABELS))


def test_truncation_of_nothing_is_the_sample_of_no_noise():
    gan = build()
    with torch.no_grad():
        assert torch.equal(draw(gan, label=LABELS, truncation=0), gan.generator(torch.zeros(6, 6), LABELS))


def test_a_sample_depends_on_its_own_seed_and_class_alone():
    gan = build()
    together = draw(gan, label=LABELS)
    for row in range(len(SEEDS)):
        assert torch.allclose(draw(gan, SEEDS[row : row + 1], LABELS[row : row + 1])[0], together[row], atol=1e-6)
    assert not torch.allclose(draw(gan, label=LABELS + 1 - 2 * (LABELS == 9)), together, atol=1e-3)


def test_a_row_without_a_class_draws_one_from_its_seed():
    gan = build()
    tasks = FAMILY.tasks(gan)
    label = tasks.starts["sample"](SampleRequest(torch.arange(200), GANOptions())).carry["label"]
    assert set(label.tolist()) == set(range(10))
    assert torch.equal(draw(gan, torch.arange(200)), draw(gan, torch.arange(200), label))


def test_rows_with_other_options_and_at_other_calls_stand_in_one_state():
    gan = build()
    tasks = FAMILY.tasks(gan)
    with torch.no_grad():
        early = tasks.advance(tasks.starts["sample"](SampleRequest(SEEDS, GANOptions(), LABELS)))
        late = tasks.starts["sample"](SampleRequest(SEEDS, GANOptions(truncation=0.5)))
        both = tasks.advance(SamplerState.cat([early, late]))
        pictures = tasks.render(both.select(torch.arange(len(both)).flip(0))).flip(0)
    assert torch.allclose(pictures[:6], draw(gan, label=LABELS), atol=1e-6)
    assert torch.allclose(pictures[6:], draw(gan, truncation=0.5), atol=1e-6)


def test_a_preview_before_the_only_call_is_grey():
    tasks = FAMILY.tasks(build())
    state = tasks.starts["sample"](SampleRequest(SEEDS, GANOptions()))
    assert state.cost.tolist() == state.calls.tolist() == [1] * 6
    assert torch.equal(tasks.render(state), torch.zeros(6, *SPEC.shape))


def test_only_a_conditional_model_takes_a_class():
    assert FAMILY.tasks(build()).conditions == {"label"}
    unconditional = FAMILY.tasks(build(conditional=False))
    assert unconditional.conditions == frozenset()
    assert "label" not in unconditional.starts["sample"](SampleRequest(SEEDS, GANOptions())).carry


def test_default_options_are_those_of_the_recipe():
    assert FAMILY.tasks(build(sampler={"truncation": 0.7})).options == GANOptions(truncation=0.7)


@pytest.mark.parametrize("options", [{"truncation": -0.1}, {"truncation": 1.6}, {"truncatoin": 1}, {"guidance": 2}])
def test_an_option_beyond_its_limits_or_unknown_is_refused(options):
    with pytest.raises(ValidationError):
        GANOptions.model_validate(options)
