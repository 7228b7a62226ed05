"""The consistency function around any denoiser: its boundary, its scalings, its teacher and its moving average."""

import copy

import pytest
import torch

from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.contract import Batch, ConfigError, DataSpec, Model, Progress, RequestError
from kinfolk.ema import Ema
from kinfolk.families import find_family
from kinfolk.training.state import build
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig
from kinfolk_families.consistency import FAMILY
from kinfolk_families.consistency.config import (
    ConsistencyConfig,
    DistillationConfig,
    EasyTuningConfig,
    ImprovedTrainingConfig,
)
from kinfolk_families.consistency.model import Average

SPEC = DataSpec(kind="vector", shape=(2,), classes=3, data_std=0.7)
MLP = {"kind": "mlp", "width": 8, "depth": 1}
ECT, CD = EasyTuningConfig(), DistillationConfig()
ICT = ImprovedTrainingConfig(network=MlpConfig(width=8, depth=1), curriculum_samples=100)


def stirred(model):
    """``model`` with every weight moved, those that start at zero too."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def of(name, spec=SPEC, parents=None, **values):
    """A stirred model of another family, as a parent may be."""
    family = find_family(name)
    return stirred(build(family, family.config.model_validate(values), spec, 0, parents=parents))


def diffusion(spec=SPEC, **values):
    return of("diffusion", spec, **{"network": MLP, "conditional": True, **values})


def adapted(base):
    return of("diffusion", parents={"base": base}, adapter={"rank": 1})


def adversarial():
    return of("gan", generator={"kind": "mlp"}, critic={"kind": "mlp"})


def energy():
    system = {"kind": "network", "network": {"kind": "mlp"}, "conditional": True, "buffer": {"size": 9}}
    return of("energy", system=system)


def autoencoder():
    objective = {"kind": "denoising", "sigma": 0.5}
    return of("autoencoder", objective=objective, network={"kind": "mlp"}, latent=2)


def consistency(objective, teacher=None, spec=SPEC, **config):
    parents = {} if teacher is None else {"teacher": teacher}
    return build(FAMILY, ConsistencyConfig(objective=objective, **config), spec, 0, parents=parents)


def made():
    """A model of every objective, and of teachers that learn to predict different things."""
    ddpm = {"preconditioning": {"kind": "ddpm"}}
    return {
        "ect": consistency(ECT, diffusion()),
        "ect-ddpm": consistency(ECT, diffusion(**ddpm)),
        "distillation": consistency(CD, diffusion()),
        "distillation-adapter": consistency(CD, adapted(diffusion())),
        "ict": stirred(consistency(ICT)),
        "ict-conditional": stirred(consistency(ICT.model_copy(update={"conditional": True}))),
    }


@pytest.fixture(params=["ect", "ect-ddpm", "distillation", "ict", "ict-conditional"])
def model(request):
    return made()[request.param]


def rows(dtype=torch.float32):
    x_t = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x_t, torch.arange(6) % 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_is_the_identity_where_paths_end_and_nowhere_else(model, dtype):
    x_t, label = rows(dtype)
    for sigma in (0.002, 0.001, 0.0):
        assert torch.equal(model.module(x_t, torch.full((6,), sigma, dtype=dtype), label), x_t)
    moved = model.module(x_t, torch.full((6,), 0.5, dtype=dtype), label)
    assert moved.dtype == dtype
    assert (moved - x_t).abs().max() > 0.01


def test_the_end_of_paths_is_a_setting():
    model, (x_t, label) = consistency(ECT, diffusion(), sigma_min=0.3), rows()
    assert torch.equal(model.module(x_t, torch.full((6,), 0.3), label), x_t)
    assert not torch.equal(model.module(x_t, torch.full((6,), 0.31), label), x_t)


def test_a_fresh_student_takes_its_teachers_euler_step_to_the_end():
    teacher, (x_t, label) = diffusion(), rows(torch.float64)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
    slope = (x_t - teacher.tasks.denoise(x_t, sigma, label)) / sigma[:, None]
    expected = x_t + (0.002 - sigma)[:, None] * slope
    assert torch.allclose(consistency(ECT, teacher).module(x_t, sigma, label), expected, rtol=1e-12)


def test_scalings_of_ones_own_network_are_the_published_ones():
    """c_out is that of Song et al., c_skip theirs to within sigma_min / sigma: read off two known networks."""
    module = consistency(ICT).module
    sigma = torch.logspace(-2.5, 1.9, 12, dtype=torch.float64)
    x_t = torch.full((12, 2), 1.5, dtype=torch.float64)

    def answer(value):
        module.denoiser.network.forward = lambda x, condition, generator: torch.full_like(x, value)
        return module(x_t, sigma)[:, 0]

    out, skip = answer(1.0) - answer(0.0), answer(0.0) / 1.5
    assert torch.allclose(out, (sigma - 0.002) * 0.7 / (sigma**2 + 0.49).sqrt(), rtol=1e-6)
    published = 0.49 / ((sigma - 0.002) ** 2 + 0.49)
    assert ((skip - published).abs() <= 0.002 / sigma).all()


def test_ones_own_network_sees_unit_variance_and_the_logarithm_of_sigma():
    module, heard = consistency(ICT).module, []
    module.denoiser.network.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    module.denoiser.noise_embedding.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    x_t, sigma = torch.full((3, 2), 2.0), torch.tensor([0.1, 1.0, 30.0])
    module(x_t, sigma)
    noise, scaled = heard
    assert torch.allclose(noise, sigma.log() / 4)
    assert torch.allclose(scaled, x_t / (sigma**2 + 0.49).sqrt()[:, None])


def test_sigma_data_is_measured_unless_it_is_given():
    assert consistency(ICT).module.denoiser.sigma_data == 0.7
    assert consistency(ICT.model_copy(update={"sigma_data": 0.5})).module.denoiser.sigma_data == 0.5


def test_the_class_matters_to_a_conditional_model_alone():
    sigma = torch.full((6,), 2.0)
    for name, model in made().items():
        x_t, label = rows()
        changed = model.module(x_t, sigma, label) - model.module(x_t, sigma, (label + 1) % 3)
        assert (changed.abs().max() > 1e-4) == (name != "ict"), name
        assert model.tasks.conditions == (frozenset() if name == "ict" else {"label"})


def test_a_conditional_model_asks_for_a_label():
    x_t, _ = rows()
    with pytest.raises(RequestError, match="give labels, 0 to 2"):
        consistency(ECT, diffusion()).tasks.denoise(x_t, torch.ones(6), None)


def test_an_unconditional_model_tells_its_denoiser_no_label():
    model, heard, (x_t, label) = consistency(ECT, diffusion(conditional=False)), [], rows()
    model.module.denoiser.register_forward_hook(lambda _, given, __: heard.append(given[2]))
    model.tasks.denoise(x_t, torch.ones(6), None)
    model.module(x_t, torch.ones(6), label)
    assert heard == [None, None]


def test_the_average_that_is_served_evaluates_its_own_weights():
    model, (x_t, label) = consistency(ECT, diffusion()), rows()
    ema, sigma = Ema(model.module, 1000, 1.0), torch.ones(6)
    before = model.module(x_t, sigma, label)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.1
    twin = ema.averaged(model.module)
    assert torch.equal(twin(x_t, sigma, label), before)
    assert not torch.allclose(model.module(x_t, sigma, label), before)
    taught, teaches = (each.teacher.module.parameters() for each in (twin, model.module))
    assert all(a is b for a, b in zip(taught, teaches, strict=True))


@pytest.mark.parametrize("teacher", [lambda: diffusion(), lambda: adapted(diffusion())], ids=["whole", "adapter"])
def test_the_target_network_is_f_with_the_averaged_weights(teacher):
    model, (x_t, label) = consistency(CD, teacher()), rows()
    module, sigma = model.module, torch.full((6,), 3.0)
    before = module(x_t, sigma, label)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1
    live = module(x_t, sigma, label)
    assert torch.allclose(module.at_target(x_t, sigma, label), before)
    assert torch.equal(module(x_t, sigma, label), live)
    assert not torch.allclose(live, before)


def test_an_average_holds_buffers_of_the_modules_own_names():
    linear = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    average = Average(linear)
    assert not list(average.parameters())
    assert average.tensors().keys() == dict(linear.named_parameters()).keys()
    start = copy.deepcopy(average.tensors())
    with torch.no_grad():
        linear[0].weight += 1.0
        average.update(linear, 0.75)
    assert torch.allclose(average.tensors()["0.weight"], start["0.weight"] + 0.25)
    assert torch.equal(average.tensors()["1.bias"], start["1.bias"])


def test_student_and_teacher_are_told_the_same_classes():
    model, heard, (x_t, label) = consistency(CD, diffusion()), [], rows()
    for module in (model.module.denoiser, model.parents["teacher"].module):
        module.register_forward_hook(lambda _, given, __: heard.append(given[2]))
    (phase,) = FAMILY.phases(model.module)
    phase.loss(Batch(x_t, label), Progress(0, 0, torch.Generator()))
    assert len(heard) == 4  # two of Heun's step, the target, the student
    assert all(torch.equal(told, label) for told in heard)


@pytest.mark.parametrize("objective", [ECT, CD], ids=["ect", "distillation"])
def test_a_registered_student_is_built_again_with_its_own_weights(objective, tmp_path):
    model, (x_t, label) = stirred(consistency(objective, diffusion())), rows()
    save_bundle(model, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    sigma = torch.full((6,), 2.0)
    assert torch.equal(again.module(x_t, sigma, label), model.module(x_t, sigma, label))
    assert not torch.equal(
        again.module.denoiser.network.embed.weight, again.parents["teacher"].module.network.embed.weight
    )
    names = again.module.state_dict()
    assert not any(name.startswith("teacher") for name in names)
    assert any(name.startswith("target") for name in names) == (objective is CD)


def test_images_are_learned_as_vectors_are():
    spec = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=10, data_std=0.6)
    network = TransformerConfig(width=16, depth=1, heads=2)
    ict = consistency(ImprovedTrainingConfig(network=network, curriculum_samples=100), spec=spec)
    ect = consistency(ECT, diffusion(spec, network=network.model_dump()), spec)
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (ict, ect):
        (phase,) = model.family.phases(model.module)
        assert model.module(x_t, torch.ones(2), torch.tensor([1, 2])).shape == x_t.shape
        assert phase.module is model.module


def other(**changes):
    return DataSpec(**{**SPEC.model_dump(), **changes})


@pytest.mark.parametrize(
    ("objective", "teacher", "spec", "named"),
    [
        (ECT, None, SPEC, "objective.kind=ect starts .* parents: {teacher: mnist-edm@champion}"),
        (CD, None, SPEC, "objective.kind=distillation starts"),
        (ICT, diffusion, SPEC, "without a teacher"),
        (ECT, adversarial, SPEC, "gan family, which is no denoiser"),
        (ECT, lambda: consistency(ECT, diffusion()), SPEC, "consistency family, which is no denoiser"),
        (ECT, energy, SPEC, "energy family, whose denoiser cannot be trained at all noise levels from 0.002 to 80"),
        (CD, energy, SPEC, "energy family, whose denoiser cannot be trained"),
        (ECT, autoencoder, SPEC, "autoencoder family, whose denoiser cannot be trained"),
        (ECT, lambda: diffusion(other(shape=(3,))), SPEC, r"shape=\(3,\); this data has shape=\(2,\)"),
        (ECT, lambda: diffusion(other(classes=4)), SPEC, "classes=4; this data has classes=3"),
        (CD, diffusion, other(levels=5), "levels=None; this data has levels=5"),
        (ICT.model_copy(update={"conditional": True}), None, other(classes=None), "data with classes"),
        (ImprovedTrainingConfig(curriculum_samples=9), None, SPEC, "cannot learn vector data. Use mlp"),
    ],
)
def test_a_teacher_that_is_missing_or_unfit_is_refused(objective, teacher, spec, named):
    with pytest.raises(ConfigError, match=named):
        consistency(objective, teacher and teacher(), spec)


def test_a_teacher_on_latents_is_refused():
    """Only what the contract says of it counts: it has a first stage."""
    teacher = diffusion()
    latent = Model(teacher.family, teacher.config, teacher.spec, teacher.module, {"first_stage": diffusion()})
    with pytest.raises(ConfigError, match="latents of a first stage"):
        FAMILY.build(ConsistencyConfig(objective=ECT), SPEC, {"teacher": latent})


def test_a_teacher_is_tried_with_the_classes_it_asks_for_and_keeps_its_weights_frozen():
    teacher = diffusion(label_dropout=0.0)
    with torch.no_grad():
        student = consistency(ECT, teacher)
    assert student.module.classes == 3
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.module.parameters())


def test_another_spread_of_the_same_data_is_no_reason_to_refuse():
    assert consistency(ECT, diffusion(other(data_std=0.69))).module.classes == 3


def test_a_batch_without_labels_is_refused_where_they_are_needed():
    (phase,) = FAMILY.phases(consistency(ECT, diffusion()).module)
    with pytest.raises(RequestError, match="class-conditional"):
        phase.loss(Batch(torch.zeros(2, 2)), Progress(0, 0, torch.Generator()))
