"""Figures of models that replay known pictures: each number has a value that can be worked out by hand."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kinfolk import sampling
from kinfolk.config import Evaluation
from kinfolk.contract import (
    Config,
    DataSpec,
    Family,
    Likelihood,
    Model,
    RequestError,
    SamplerOptions,
    SamplerState,
    Tasks,
)
from kinfolk.data.modes import Mixture, Stack
from kinfolk.data.source import TensorSource
from kinfolk.errors import ConfigError, DataError
from kinfolk.metrics.frechet import FeatureStatistics, frechet_distance
from kinfolk.metrics.kernel import kernel_distance
from kinfolk.metrics.likelihood import likelihood_figures
from kinfolk.metrics.manifold import manifold_scores
from kinfolk_pipelines import figures
from kinfolk_pipelines.figures import learned_classes, measure
from kinfolk_pipelines.figures_on_modes import on_modes, rule
from kinfolk_pipelines.meaning import MEANING

CLASSES, ROWS = 4, 320  # rows of a split: more than one chunk of evaluation
SPEC = DataSpec(kind="image", shape=(1, 4, 4), levels=17, classes=CLASSES)
STEP = 2 / (SPEC.levels - 1)  # between neighbouring levels


class Options(SamplerOptions):
    shift: float = 0.0
    steps: int = 1
    cost: int = 1


class Replay(nn.Module):
    """Draws the pictures of a bank, which holds the classes in turn; what it was asked is written down."""

    def __init__(self, bank, conditional):
        super().__init__()
        self.bank, self.conditional, self.asked = bank, conditional, []
        self.weight, self.frozen = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2), requires_grad=False)


def replay_tasks(module):
    def start(request):
        module.asked.append(request)
        turn = request.seeds - 1  # evaluation draws seeds 1, 2, ...
        label = turn % CLASSES if request.label is None else request.label
        rows = (turn // CLASSES * CLASSES + label) % len(module.bank)
        x, options = module.bank[rows] + request.options.shift, request.options
        return SamplerState.start(x, request, options.steps, options.cost)

    return Tasks(
        options=Options(),
        starts={"sample": start},
        advance=lambda state: state.step(state.x),
        render=lambda state: state.x,
        conditions=frozenset({"label"} if module.conditional else ()),
    )


def judge_tasks(module):
    """Features are the pixels; the class is told by the first of them."""
    marks = SPEC.from_levels(4 + torch.arange(CLASSES) * 3)
    return Tasks(
        options=SamplerOptions(),
        encode=lambda batch, seeds: batch.x.flatten(1),
        classify=lambda batch, seeds: -(batch.x[:, 0, 0, :1] - marks).square(),
        reconstruct=lambda batch, seeds: batch.x + 0.5,
        complete=lambda batch, seeds: batch.x - 0.25,
        anomaly_score=lambda batch, seeds: batch.x.flatten(1).mean(1),
        importance_bound=lambda batch, seeds, draws: seeds.double() + draws,
        log_prob=Likelihood(lambda batch, seeds: seeds.double(), "exact", "levels"),
    )


def family(tasks):
    return Family("stub", frozenset({"image"}), Config, Options, lambda *_: nn.Identity(), lambda _: [], tasks)


def replaying(bank, conditional=True):
    return Model(family(replay_tasks), Config(), SPEC, Replay(bank, conditional))


JUDGE = Model(family(judge_tasks), Config(), SPEC, nn.Identity())


def pictures(seed):
    """(ROWS, 1, 4, 4) levels well inside the range, the first pixel the mark of the class; classes in turn."""
    x = torch.randint(4, 13, (ROWS, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    label = torch.arange(ROWS) % CLASSES
    x[:, 0, 0, 0] = (4 + 3 * label).to(torch.uint8)
    return x, label


@pytest.fixture(scope="module")
def data():
    x, label = pictures(0)
    splits = {"train": TensorSource(SPEC, x, label), "test": TensorSource(SPEC, x + 1, label)}  # one level brighter
    return SimpleNamespace(spec=SPEC, source=splits.__getitem__)


@pytest.fixture(scope="module")
def bank(data):
    return data.source("train").take(0, ROWS).x


def of(model, data, features=JUDGE, **options):
    return measure(model, data, Evaluation(samples=ROWS, options=options), features).metrics


def test_the_train_split_replayed_is_perfect(data, bank):
    found = of(replaying(bank), data)
    for name in ("precision", "recall", "coverage", "class_accuracy"):
        assert found[name] == 1, name
    assert found["density"] == pytest.approx(1, abs=0.05)  # each ball holds 5, fewer where distances are equal
    assert found["classes_covered"] == CLASSES
    assert found["fd_local"] == pytest.approx(0, abs=1e-6)
    asked = torch.arange(ROWS) % CLASSES
    expected = kernel_distance(bank.flatten(1), bank.flatten(1), stratum=asked)
    assert found["kd_local"] == pytest.approx(expected, rel=1e-4)
    assert found["fd_local_test"] == pytest.approx(16 * STEP**2, rel=1e-3)  # a shift: |difference of means|^2


def test_a_class_counts_as_often_as_the_data_has_it_and_not_as_it_was_asked_for(data, bank):
    """Every class is asked for as often; of the data, half is of the first."""
    x, label = pictures(0)
    rows = torch.cat([(label == 0).nonzero().flatten().repeat(CLASSES - 1), (label != 0).nonzero().flatten()])
    uneven = TensorSource(SPEC, x[rows], label[rows])
    split = SimpleNamespace(spec=SPEC, source=lambda _: uneven)
    found = of(replaying(bank), split)
    assert found["fd_local"] == pytest.approx(0, abs=2e-3)
    as_learned, as_asked = bank.flatten(1)[rows], bank.flatten(1)
    assert frechet_distance(FeatureStatistics.of(as_learned), FeatureStatistics.of(as_asked)) > 0.02
    assert abs(found["kd_local"]) < 0.003 < 0.004 < kernel_distance(as_learned, as_asked)


@pytest.mark.parametrize(
    ("learned", "classes", "words"),
    [((), 10, "all"), ((8, 0, 8), 10, "0, 8"), ((2, 1, 0), 3, "all"), ((), None, "all")],
)
def test_classes_learned_are_told_in_order_and_all_of_them_as_all(learned, classes, words):
    assert learned_classes(learned, classes) == words


def test_one_picture_again_and_again_has_precision_and_nothing_else(data, bank):
    found = of(replaying(bank[:1]), data)
    assert found["precision"] == 1
    assert found["recall"] == 0
    assert found["coverage"] < 0.1
    assert found["vendi"] == pytest.approx(1, abs=1e-3)
    assert found["pairwise_distance"] == pytest.approx(0, abs=1e-3)
    assert found["distance_within_classes"] == pytest.approx(0, abs=1e-3)
    assert found["class_accuracy"] == pytest.approx(1 / CLASSES)
    assert found["classes_covered"] == 1


def test_one_picture_of_each_class_is_diverse_over_classes_alone(data, bank):
    found = of(replaying(bank[:CLASSES]), data)
    assert found["class_accuracy"] == 1
    assert found["distance_within_classes"] == pytest.approx(0, abs=1e-3)
    gaps = torch.cdist(bank[:CLASSES].flatten(1), bank[:CLASSES].flatten(1)).sum() / CLASSES**2
    assert found["pairwise_distance"] == pytest.approx(float(gaps) * ROWS / (ROWS - 1), rel=1e-4)


def test_samples_are_judged_at_the_levels_of_the_data(data, bank):
    between, brighter = (of(replaying(bank), data, shift=shift) for shift in (0.4 * STEP, STEP))
    assert between["fd_local"] == pytest.approx(0, abs=1e-6)
    assert brighter["fd_local"] == pytest.approx(brighter["fd_local_test"], rel=1e-6)
    assert brighter["fd_local"] == pytest.approx(16 * STEP**2, rel=1e-3)


def test_few_samples_are_compared_with_as_many_pictures(data, bank):
    drawn = measure(replaying(bank), data, Evaluation(samples=60), JUDGE)
    assert drawn.samples.shape == (60, *SPEC.shape)
    assert drawn.metrics["class_accuracy"] == 1
    real, equal = data.source("train").batch(0, 0, ROWS).x.flatten(1)[:60], drawn.samples.flatten(1)
    assert drawn.metrics["recall"] == manifold_scores(real, equal).recall
    assert drawn.metrics["precision"] == manifold_scores(real, equal).precision


def test_options_of_the_evaluation_reach_the_sampler_and_its_cost(data, bank):
    model = replaying(bank)
    found = measure(model, data, Evaluation(samples=8, options={"shift": 0.25, "steps": 3, "cost": 2}))
    assert torch.equal(found.samples, bank[:8] + 0.25)
    assert found.metrics["nfe"] == 6
    assert {request.options.steps for request in model.module.asked} == {3}
    assert measure(replaying(bank), data, Evaluation(samples=8)).metrics["nfe"] == 1
    with pytest.raises(RequestError, match="shfit"):
        measure(model, data, Evaluation(samples=8, options={"shfit": 1}))


def test_every_class_is_asked_for_equally_often_where_the_model_can_be_asked(data, bank):
    asked = replaying(bank)
    of(asked, data)
    assert asked.module.asked[1].label.bincount().tolist() == [256 // CLASSES] * CLASSES
    unasked = replaying(bank, conditional=False)
    found = of(unasked, data)
    assert all(request.label is None for request in unasked.module.asked)
    assert found["classes_covered"] == CLASSES
    assert not {"class_accuracy", "distance_within_classes"} & found.keys()


def test_speed_is_that_of_64_samples_by_the_clock(data, bank, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(figures, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2))
    model = replaying(bank)
    assert measure(model, data, Evaluation(samples=8)).metrics["samples_per_second"] == 128
    assert [len(request.seeds) for request in model.module.asked] == [
        1,
        8,
        1,
        64,
        64,
        64,
        64,
    ]  # first tried


def test_without_a_classifier_a_model_still_has_its_cost(data, bank):
    assert of(replaying(bank), data, features=None).keys() == {"parameters", "nfe", "samples_per_second"}
    assert of(replaying(bank), data, features=None)["parameters"] == 7


def test_every_row_of_the_test_split_counts_once_with_its_own_seed(data):
    found = of(JUDGE, data)
    assert found["log_prob_nats"] == (ROWS - 1) / 2
    assert found["reconstruction_mse"] == pytest.approx(0.25)
    assert found["completion_mse"] == pytest.approx(0.0625)
    assert found["test_accuracy"] == 1
    assert "fd_local" not in found


def test_likelihoods_rest_on_as_many_rows_and_draws_as_asked(data):
    found = measure(JUDGE, data, Evaluation(likelihood_samples=300, importance_draws=7)).metrics
    assert found["log_prob_nats"] == 299 / 2
    assert found["importance_bound_nats"] == 299 / 2 + 7
    assert (found["likelihood_rows"], found["importance_draws"]) == (300, 7)
    plain = of(JUDGE, data)
    assert plain["likelihood_rows"] == ROWS
    assert not {"importance_bound_nats", "importance_draws"} & plain.keys()


def test_what_a_model_lacks_is_refused_where_it_is_asked_for(data, bank):
    with pytest.raises(ConfigError, match=r"no bound of many draws: leave evaluation\.importance_draws \("):
        measure(replaying(bank), data, Evaluation(samples=8, importance_draws=7))
    with pytest.raises(ConfigError, match=r"no anomaly score: leave evaluation\.against out"):
        measure(replaying(bank), data, Evaluation(samples=8, against="patches"), against=data.source("test"))
    with pytest.raises(ConfigError, match=r"no likelihood: leave evaluation\.likelihood_samples \(--likelihood\) out"):
        measure(replaying(bank), data, Evaluation(samples=8, likelihood_samples=5))
    measure(replaying(bank), data, Evaluation(samples=8), learned=[0])  # the rest was not asked for


@pytest.mark.parametrize(
    ("options", "against", "named"),
    [
        ({"steps": 1}, SPEC, "draws no samples"),
        ({}, SPEC.model_copy(update={"shape": (1, 5, 5)}), "of shape"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(data, options, against, named):
    def used(*_):
        raise AssertionError

    tasks = Tasks(options=Options(), anomaly_score=used, log_prob=Likelihood(used, "exact", "levels"))
    model = Model(family(lambda _: tasks), Config(), SPEC, nn.Identity())
    strangers = TensorSource(against, torch.zeros(2, *against.shape, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises((ConfigError, DataError), match=named):
        measure(model, data, Evaluation(options=options), against=strangers)


@pytest.mark.parametrize("does_without", [True, False])
def test_a_class_is_told_for_anomalies_where_the_model_cannot_do_without(data, does_without):
    """The score is the distance from the mark of the class told; strange data's own labels mean nothing here."""
    marks = SPEC.from_levels(4 + torch.arange(CLASSES) * 3)

    def score(batch, seeds):
        if batch.label is None:
            if does_without:
                return -batch.x[:, 0, 0, 0]
            raise RequestError("label", "tell one")
        return (batch.x[:, 0, 0, 0] - marks[batch.label]).abs()

    tasks = Tasks(options=SamplerOptions(), anomaly_score=score, conditions=frozenset({"label"}))
    model = Model(family(lambda _: tasks), Config(), SPEC, nn.Identity())
    strangers = SPEC.model_copy(update={"classes": 50})
    x, label = pictures(2)
    x[:, 0, 0, 0] = 16 if does_without else 9  # brightest of all; between two marks, and one level off the nearer
    found = measure(model, data, Evaluation(), against=TensorSource(strangers, x, label + 40), learned=[0, 3])
    assert found.metrics["auroc_against"] == (0 if does_without else 1)


def test_a_model_of_some_classes_is_asked_for_and_measured_on_those(data, bank):
    model = replaying(bank)
    found = measure(model, data, Evaluation(samples=160), JUDGE, learned=[2, 1]).metrics
    assert model.module.asked[1].label.bincount().tolist() == [0, 80, 80]
    assert found["class_accuracy"] == 1
    assert found["precision"] == 1
    assert found["classes_covered"] == 2
    assert measure(JUDGE, data, Evaluation(), learned=[0]).metrics["log_prob_nats"] == (ROWS / CLASSES - 1) / 2


def test_strange_data_is_what_was_not_learned_and_what_is_given(data):
    brighter = TensorSource(SPEC, pictures(2)[0] + 2, pictures(2)[1])
    marks = TensorSource(SPEC, *(torch.cat([part, part]) for part in pictures(3)))
    found = measure(JUDGE, data, Evaluation(), learned=[0, 1], against=brighter).metrics
    assert found["auroc_rest"] > 0.5  # brighter by their mark alone
    assert found["auroc_against"] > found["auroc_rest"]
    rest = measure(JUDGE, data, Evaluation(), learned=[2, 3]).metrics["auroc_rest"]
    assert rest == pytest.approx(1 - measure(JUDGE, data, Evaluation(), learned=[0, 1]).metrics["auroc_rest"])
    assert not {"auroc_rest", "auroc_against"} & of(JUDGE, data).keys()
    other = DataSpec(kind="image", shape=(1, 2, 8), levels=17, classes=CLASSES)
    with pytest.raises(DataError, match=r"shape \(1, 2, 8\), the model's of \(1, 4, 4\)"):
        measure(
            JUDGE, data, Evaluation(), against=TensorSource(other, marks.rows.x.reshape(-1, 1, 2, 8), marks.rows.label)
        )


def test_codes_are_counted_over_the_whole_test_split(data):
    codes = DataSpec(kind="tokens", shape=(1,), levels=8)

    def encode(batch, seeds):
        return torch.div(seeds, ROWS / 2, rounding_mode="floor").long()[:, None]  # code 0, then code 1

    coder = Model(
        family(lambda _: Tasks(options=SamplerOptions(), encode=encode, latent_spec=codes)),
        Config(),
        SPEC,
        nn.Identity(),
    )
    found = of(coder, data, features=None)
    assert found["codebook_usage"] == 2 / 8
    assert found["codebook_perplexity"] == pytest.approx(2)


def test_accuracy_is_the_share_of_right_answers(data):
    x, label = pictures(1)
    wrong = torch.where(torch.arange(ROWS) % 8 == 0, (label + 1) % CLASSES, label)
    flawed = SimpleNamespace(spec=SPEC, source={"test": TensorSource(SPEC, x, wrong)}.__getitem__)
    assert of(JUDGE, flawed)["test_accuracy"] == pytest.approx(7 / 8)


def test_samples_of_a_seed_are_the_same_every_time(data, bank):
    model = replaying(bank)
    drawn = measure(model, data, Evaluation(samples=12)).samples
    assert torch.equal(drawn, sampling.sample(model, 12, 1, [index % CLASSES for index in range(12)]))


@pytest.mark.parametrize(
    ("kind", "of_what"),
    [*product(["exact", "lower_bound", "ode"], ["levels", "binary", "density"]), ("exact", "codes")],
)
def test_every_likelihood_has_its_line_in_the_glossary(kind, of_what):
    found = likelihood_figures(Likelihood(lambda batch, seeds: seeds, kind, of_what), torch.zeros(2), SPEC).keys()
    assert {*found, *(name.replace("elbo", "importance_bound") for name in found)} <= MEANING.keys()


def test_every_figure_of_a_measurement_has_its_line_in_the_glossary(data, bank):
    assert (of(replaying(bank), data).keys() | of(JUDGE, data).keys()) <= MEANING.keys()


MIXTURE = Mixture(centres=((-0.5, 0.0), (0.5, 0.0), (0.0, 0.5)), std=0.01, samples=8)


def points(samples):
    """A model that draws the given points in turn, and the data it is measured on."""
    spec = DataSpec(kind="vector", shape=(2,))
    model = Model(family(replay_tasks), Config(), spec, Replay(torch.tensor(samples), False))
    split = TensorSource(spec, torch.zeros(2, 2))
    return model, SimpleNamespace(spec=spec, source=lambda _: split)


def test_modes_of_a_mixture_are_counted_by_its_own_rule():
    model, data = points([[-0.5, 0.0], [-0.5, 0.029], [0.5, 0.031], [0.5, 0.0]])
    found = measure(model, data, Evaluation(samples=8), modes=MIXTURE).metrics
    assert (found["modes"], found["high_quality"], found["mode_samples"]) == (2, 0.75, 8)
    assert found["kl_to_uniform"] == pytest.approx(math.log(3) - (2 / 3 * math.log(1.5) + math.log(3) / 3))
    assert found["kl_floor"] == 2 / (2 * 6)


def test_samples_near_no_mode_have_no_divergence():
    found = measure(*points([[9.0, 9.0]]), Evaluation(samples=8), modes=MIXTURE).metrics
    assert (found["modes"], found["high_quality"]) == (0, 0)
    assert not {"kl_to_uniform", "kl_floor"} & found.keys()


def test_the_rule_is_of_so_many_samples_whatever_the_other_figures_rest_on():
    model, data = points([[-0.5, 0.0]] * 6 + [[0.5, 0.0]] * 2)
    for samples in (6, 8, 50):
        found = measure(model, data, Evaluation(samples=samples), modes=MIXTURE)
        assert (found.metrics["modes"], found.metrics["mode_samples"]) == (2, 8)
        assert len(found.samples) == samples


@pytest.mark.parametrize("samples", [6, ROWS])
def test_classes_are_read_by_the_judge_and_left_to_the_seeds(data, bank, samples):
    known = Stack(judge="marks", samples=ROWS)
    model = replaying(bank[:2])  # asked for no class, seed 1 + i draws picture i % 4 of two
    found = measure(model, data, Evaluation(samples=samples), JUDGE, modes=known).metrics
    assert any(request.label is None and len(request.seeds) == 256 for request in model.module.asked)
    assert (found["modes"], found["mode_samples"]) == (2, ROWS)
    assert found["kl_to_uniform"] == pytest.approx(math.log(2))
    assert found["kl_floor"] == (CLASSES - 1) / (2 * ROWS)
    model.module.asked.clear()
    assert "modes" not in measure(model, data, Evaluation(samples=6), None, modes=known).metrics
    assert max(len(request.seeds) for request in model.module.asked) == 64  # for speed alone


def test_the_judge_sees_samples_at_the_levels_of_data(bank):
    def off_level(batch, seeds):
        level = (batch.x + 1).flatten(1) / STEP
        away = (level - level.round()).abs().amax(1)
        return torch.stack([torch.full_like(away, 0.1), away], dim=1)

    judge = Model(family(lambda _: Tasks(options=SamplerOptions(), classify=off_level)), Config(), SPEC, nn.Identity())
    mixed = torch.cat([bank[:8], bank[:8] + 0.3 * STEP])
    assert on_modes(Stack(judge="marks", samples=16), lambda n: mixed[:n], SPEC, judge)["modes"] == 1


def test_modes_are_those_of_a_model_of_all_classes(data, bank):
    known = Stack(judge="marks", samples=ROWS)
    assert (
        "modes" not in measure(replaying(bank), data, Evaluation(samples=160), JUDGE, learned=[0], modes=known).metrics
    )


def test_the_rule_of_counting_is_told():
    assert rule(MIXTURE, "none") == (
        "8 samples; of high quality, and of a mode, within 3 standard deviations of 0.01 of the nearest of 3 centres"
    )
    assert rule(Stack(judge="mnist"), "mnist-features/1 on each channel") == (
        "26,000 samples; the class of every channel by mnist-features/1 on each channel"
    )


def test_every_figure_of_modes_has_its_line_in_the_glossary():
    model, data = points([[-0.5, 0.0]])
    assert measure(model, data, Evaluation(samples=8), modes=MIXTURE).metrics.keys() <= MEANING.keys()
