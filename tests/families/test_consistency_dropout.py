"""Dropout of consistency training: one draw a step, the same masks at both points of a path, none in the teacher."""

import pytest
import torch
from torch import nn

from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.config import Training
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.data.source import TensorSource
from kinfolk.families import find_family
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_families._shared import networks
from kinfolk_families._shared.dropout import dropouts
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig, UNetConfig
from kinfolk_families.consistency import FAMILY
from kinfolk_families.consistency.config import (
    ConsistencyConfig,
    DistillationConfig,
    EasyTuningConfig,
    ImprovedTrainingConfig,
)
from kinfolk_families.consistency.levels import Pair
from kinfolk_families.consistency.losses import distillation_loss, draw_pair, masks, training_loss

VECTOR = DataSpec(kind="vector", shape=(2,), classes=3, data_std=0.7)
IMAGE = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
OBJECTIVES = pytest.mark.parametrize("kind", ["ect", "ict", "distillation"])
NETWORKS = {
    "mlp": (MlpConfig(width=16, depth=2), VECTOR),
    "transformer": (TransformerConfig(width=16, depth=1, heads=2), IMAGE),
    "unet": (UNetConfig(channels=8, multipliers=(1, 1), heads=1), IMAGE),
}


def stirred(model):
    """``model`` with every weight moved, those that start at zero too."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def teacher_of(kind="mlp", dropout=0.0, parents=None, **values):
    family, (config, spec) = find_family("diffusion"), NETWORKS[kind]
    network = {"network": config.model_copy(update={"dropout": dropout}).model_dump(), "conditional": True}
    told = values if "adapter" in values else network | values
    return stirred(build(family, family.config.model_validate(told), spec, 0, parents=parents))


def student_of(kind, share, network="mlp", teacher=None):
    """A student, the same at every share of dropout."""
    config, spec = NETWORKS[network]
    if kind == "ict":
        dropping = config.model_copy(update={"dropout": share})
        objective = ImprovedTrainingConfig(network=dropping, curriculum_samples=100, conditional=True)
        return stirred(build(FAMILY, ConsistencyConfig(objective=objective), spec, 0))
    objective = EasyTuningConfig(dropout=share) if kind == "ect" else DistillationConfig(dropout=share)
    parents = {"teacher": teacher or teacher_of(network)}
    return build(FAMILY, ConsistencyConfig(objective=objective), spec, 0, parents=parents)


def batch_of(spec, rows=6):
    generator = torch.Generator().manual_seed(2)
    return Batch(torch.randn(rows, *spec.shape, generator=generator), torch.arange(rows) % 3)


def one_point(rows=6):
    """Pairs whose levels are one."""
    sigma = torch.linspace(0.3, 3.0, rows)
    return Pair(sigma, sigma)


def turn(model, seed=0):
    """The loss of a step with a fresh generator of ``seed``, and where that generator then stands."""
    (phase,), generator = FAMILY.phases(model.module), torch.Generator().manual_seed(seed)
    loss = phase.loss(batch_of(model.spec), Progress(0, 0, generator)).value
    return loss.detach(), generator.get_state()


@OBJECTIVES
@pytest.mark.parametrize("network", NETWORKS)
def test_where_both_points_of_a_path_are_one_the_same_masks_leave_no_distance(monkeypatch, kind, network):
    """The target, without a gradient, would have gone through a U-Net in parts."""
    monkeypatch.setattr(networks, "PART_BYTES", 1)
    module = student_of(kind, 0.4, network).module
    batch = batch_of(module.spec)
    noise = torch.zeros_like(batch.x)
    if kind == "distillation":
        module.teacher.module.forward = lambda x_t, sigma, label, generator: x_t  # whose step leads nowhere else
        distance = distillation_loss(module, batch, noise, one_point(), seed=5).value
    else:
        distance = training_loss(module, batch, noise, one_point(), seed=5).logs["distance"]
    assert float(distance.detach()) < 1e-5
    f, other, whole = (module(batch.x, one_point().sigma, batch.label, masks(seed, batch.x)) for seed in (5, 6, None))
    assert (f - other).abs().max() > 0.01
    assert (f - whole).abs().max() > 0.01


@OBJECTIVES
def test_a_step_draws_one_number_for_dropout_and_none_without(kind):
    models = {share: student_of(kind, share) for share in (0.0, 0.4)}
    generator = torch.Generator().manual_seed(0)
    draw_pair(models[0.0].module, 6, Progress(0, 0, generator))
    torch.randn(6, 2, generator=generator)
    (plain, after), (dropped, after_dropped) = (turn(model) for model in models.values())
    assert torch.equal(after, generator.get_state())
    torch.randint(2**62, (), generator=generator)
    assert torch.equal(after_dropped, generator.get_state())
    assert not torch.allclose(plain, dropped, rtol=1e-3)


@OBJECTIVES
def test_a_turn_with_dropout_is_a_function_of_its_generator(kind):
    model = student_of(kind, 0.4)
    (first, _), (again, _), (other, _) = (turn(model, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@OBJECTIVES
def test_a_step_is_bit_equal_when_taken_again_and_leaves_the_global_generator_alone(kind):
    plan, batch = Training(samples=64, batch_size=16), batch_of(VECTOR, 32)
    teacher, source = teacher_of(), TensorSource(VECTOR, batch.x, batch.label)
    torch.manual_seed(321)
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        state = prepare(student_of(kind, 0.4, teacher=teacher), plan)
        for _ in range(2):
            take_step(state, source, plan, 5, World())
        found.append(state.snapshot().tensors)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["ect", "distillation"])
def test_layers_of_a_teacher_that_draw_from_the_global_generator_rest_in_its_student(kind):
    teacher = teacher_of()
    teacher.module.noise_embedding = nn.Sequential(teacher.module.noise_embedding, nn.Dropout())
    model, before = student_of(kind, 0.4, teacher=teacher), torch.get_rng_state()
    turn(model)
    assert torch.equal(torch.get_rng_state(), before)


@OBJECTIVES
def test_what_is_served_drops_nothing(kind):
    model, batch = student_of(kind, 0.4), batch_of(VECTOR)
    served = prepare(model, Training(samples=64)).served().module
    sigma, generator = one_point().sigma, torch.Generator()
    whole = served(batch.x, sigma, batch.label)
    assert torch.equal(served(batch.x, sigma, batch.label, generator), whole)
    assert not torch.allclose(model.module(batch.x, sigma, batch.label, generator), whole, atol=1e-3)


def test_the_students_dropout_is_its_own_and_its_teacher_never_drops():
    teacher = teacher_of(dropout=0.7)
    shares = {share: student_of("distillation", share, teacher=teacher) for share in (0.0, 0.4)}
    for share, model in shares.items():
        assert [layer.share for layer in dropouts(model.module)] == [share] * 2
    assert [layer.share for layer in dropouts(teacher.module)] == [0.7] * 2
    for layer in dropouts(teacher.module):
        layer.register_forward_hook(lambda _, given, output: heard.append(torch.equal(given[0], output)))
    heard = []
    turn(shares[0.4])
    assert heard == [True] * 4  # two layers, two calls of Heun's step


def test_a_registered_student_keeps_its_share(tmp_path):
    save_bundle(student_of("ect", 0.4), tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert [layer.share for layer in dropouts(again.module)] == [0.4] * 2
    assert not any(layer.training for layer in dropouts(again.module))


@pytest.mark.parametrize("objective", [EasyTuningConfig, DistillationConfig])
def test_dropout_of_a_teacher_without_any_to_set_is_refused(objective):
    adapted = teacher_of(adapter={"rank": 2}, parents={"base": teacher_of()})
    for share in (0.2, 0.0):
        config = ConsistencyConfig(objective=objective(dropout=share))
        if share:
            with pytest.raises(ConfigError, match="diffusion family has no dropout to set"):
                build(FAMILY, config, VECTOR, 0, parents={"teacher": adapted})
        else:
            assert build(FAMILY, config, VECTOR, 0, parents={"teacher": adapted}).module.dropout == 0
