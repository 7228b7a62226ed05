import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kinfolk.config import load_recipe, parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.data.prepared import Prepared
from kinfolk.metrics.accuracy import class_accuracy
from kinfolk.rng import generator, seeded_initialisation
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
from kinfolk_families.classifier import FAMILY
from kinfolk_families.classifier.losses import classification_loss, random_shift
from kinfolk_families.classifier.model import Classifier

IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3)
VECTOR = DataSpec(kind="vector", shape=(2,), classes=3)
RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"


def network(spec: DataSpec, **config: object) -> Classifier:
    with seeded_initialisation(0):
        return FAMILY.build(parse(FAMILY.config, {"width": 8, "features": 6, **config}, "model"), spec, {})


def samples(spec: DataSpec, rows: int = 5) -> Tensor:
    return torch.rand(rows, *spec.shape, generator=generator("samples")) * 2 - 1


def progress() -> Progress:
    return Progress(0, 0, generator("progress"))


SPECS = [
    IMAGE,
    VECTOR,
    DataSpec(kind="image", shape=(3, 28, 28), classes=3),
    DataSpec(kind="image", shape=(1, 5, 9), classes=3),
    DataSpec(kind="image", shape=(1, 3, 3), classes=3),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}{spec.shape}")
def test_features_are_normalised_and_decide_linearly(spec: DataSpec) -> None:
    module, batch = network(spec, depth=2), Batch(samples(spec))
    tasks, seeds = FAMILY.tasks(module), torch.arange(5)
    features = tasks.encode(batch, seeds)
    assert features.shape[1:] == tasks.latent_spec.shape == (6,)
    assert features.mean(1).tolist() == pytest.approx([0] * 5, abs=1e-5)
    assert features.square().mean(1).tolist() == pytest.approx([1] * 5, abs=1e-2)
    decided = features @ module.head.weight.T + module.head.bias
    assert torch.allclose(tasks.classify(batch, seeds), decided, atol=1e-6)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=lambda spec: spec.kind)
def test_a_sample_is_judged_without_its_batch(spec: DataSpec) -> None:
    module, x = network(spec), samples(spec)
    alone = torch.cat([module(row[None]) for row in x])
    assert torch.allclose(module(x), alone, atol=1e-5)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=lambda spec: spec.kind)
def test_data_of_another_scale_is_judged_alike(spec: DataSpec) -> None:
    x, scaled = samples(spec), spec.model_copy(update={"data_std": 4.0})
    assert torch.allclose(network(scaled)(4 * x), network(spec)(x), atol=1e-5)


@pytest.mark.parametrize("spec", [IMAGE, VECTOR], ids=lambda spec: spec.kind)
def test_every_parameter_is_in_the_phase_and_gets_a_gradient(spec: DataSpec) -> None:
    module = network(spec)
    (phase,) = FAMILY.phases(module)
    phase.loss(Batch(samples(spec), torch.arange(5) % 3), progress()).value.backward()
    assert {id(p) for p in phase.module.parameters()} == {id(p) for p in module.parameters()}
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def constant(bias: list[float], **config: object) -> Classifier:
    """A network that gives every sample the same logits."""
    module = network(VECTOR, **config)
    with torch.no_grad():
        module.head.weight.zero_()
        module.head.bias.copy_(torch.tensor(bias))
    return module


def test_loss_is_the_mean_cross_entropy() -> None:
    batch = Batch(samples(VECTOR, 4), torch.tensor([0, 0, 0, 2]))
    loss = classification_loss(constant([math.log(6), math.log(3), 0.0]), batch, progress())
    assert loss.value.item() == pytest.approx((3 * math.log(10 / 6) + math.log(10)) / 4, rel=1e-6)
    assert loss.logs["accuracy"].item() == 0.75


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    batch = Batch(samples(VECTOR, 1), torch.tensor([0]))
    loss = classification_loss(constant([math.log(6), math.log(3), 0.0], label_smoothing=0.3), batch, progress())
    assert loss.value.item() == pytest.approx(
        0.8 * math.log(10 / 6) + 0.1 * math.log(10 / 3) + 0.1 * math.log(10), rel=1e-6
    )


def test_shifts_are_crops_of_the_image_with_its_border_repeated() -> None:
    x = samples(DataSpec(kind="image", shape=(2, 5, 7)), 400)
    moved = random_shift(x, 1, generator("shift"))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    crops = torch.stack([padded[:, :, i : i + 5, j : j + 7] for i in range(3) for j in range(3)])  # (9, B, C, H, W)
    hits = (crops == moved).flatten(2).all(2)  # (9, B)
    assert hits.any(0).all()
    assert (hits.sum(1) > 20).all()  # each of 9 moves is drawn 44 times on average


def test_shifts_draw_from_the_generator_alone() -> None:
    before, x = torch.random.get_rng_state(), samples(IMAGE, 50)
    first, again, other = (random_shift(x, 2, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_shifts_images_and_judging_does_not() -> None:
    module, batch = network(IMAGE, max_shift=2), Batch(samples(IMAGE), torch.zeros(5, dtype=torch.int64))
    losses = {classification_loss(module, batch, Progress(0, 0, generator(seed))).value.item() for seed in range(5)}
    tasks = FAMILY.tasks(module)
    assert len(losses) == 5
    assert torch.equal(tasks.classify(batch, torch.arange(5)), module(batch.x))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers wait for a second thread longer than they compute, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_digits_are_learned_by_a_narrow_network_in_a_twelfth_of_the_recipe(digits: Prepared) -> None:
    recipe = load_recipe(RECIPES / "digits" / "features.yaml", ["training.samples=6400", "model.width=8"])
    model = build(FAMILY, parse(FAMILY.config, recipe.model, "model"), digits.spec, recipe.seed)
    state = prepare(model, recipe.training)
    for _ in train(state, digits.source("train"), recipe.training, recipe.seed):
        pass
    test = digits.source("test").take(0, 300)
    with torch.no_grad():
        logits = state.served().tasks.classify(test, torch.arange(300))
    assert class_accuracy(logits, test.label).accuracy > 0.85


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_recipes_name_only_what_the_family_knows(data: str) -> None:
    recipe = load_recipe(RECIPES / data / "features.yaml")
    config = parse(FAMILY.config, recipe.model, "model")
    assert (recipe.family, recipe.data) == (FAMILY.name, data)
    assert config.optimizer.decay_samples == recipe.training.samples


@pytest.mark.parametrize("classes", [None, 1])
def test_data_without_classes_is_refused(classes: int | None) -> None:
    with pytest.raises(ConfigError, match=f"classes={classes}.*Use a data set with class labels"):
        network(IMAGE.model_copy(update={"classes": classes}))


@pytest.mark.parametrize(("spec", "most"), [(IMAGE, 4), (VECTOR, 0)], ids=["image", "vector"])
def test_a_shift_beyond_half_the_image_is_refused(spec: DataSpec, most: int) -> None:
    network(spec, max_shift=most)
    with pytest.raises(ConfigError, match=f"max_shift={most + 1}.*Use 0 to {most}"):
        network(spec, max_shift=most + 1)


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="Use a labelled data set"):
        classification_loss(network(VECTOR), Batch(samples(VECTOR)), progress())


@pytest.mark.parametrize("mistake", [{"widht": 8}, {"width": 12}, {"label_smoothing": 1.0}, {"depth": 0}])
def test_a_setting_that_is_not_allowed_is_refused(mistake: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(mistake))):
        network(IMAGE, **mistake)
