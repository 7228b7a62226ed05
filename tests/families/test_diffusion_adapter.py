"""LoRA: what is stored and trained, where it starts, what it computes, and bases it refuses."""

import copy

import pytest
import torch
from pydantic import ValidationError

from kinfolk import sampling
from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.config import Training
from kinfolk.contract import Batch, ConfigError, DataSpec, OptimizerConfig, RequestError
from kinfolk.data.source import TensorSource
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_families._shared.network_config import MlpConfig, TransformerConfig, UNetConfig
from kinfolk_families._shared.networks import PixelAttention
from kinfolk_families.diffusion import FAMILY
from kinfolk_families.diffusion.adapter import LowRank
from kinfolk_families.diffusion.config import AdapterConfig, DdpmConfig, DiffusionConfig, LikelihoodConfig, Options

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17, classes=3, data_std=0.7)
UNET = UNetConfig(channels=8, multipliers=(1, 2), heads=2)
TRANSFORMER = TransformerConfig(width=16, depth=1, heads=2)
NETWORKS = pytest.mark.parametrize("network", [UNET, TRANSFORMER], ids=["unet", "transformer"])


def stirred(module, seed=1):
    """``module`` with every weight moved off where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


def base_of(network=UNET, spec=SPEC, **config):
    model = build(FAMILY, DiffusionConfig(network=network, conditional=True, **config), spec, seed=0)
    stirred(model.module)
    return model


def adapted(base, spec=SPEC, adapter=None, parents=None, **config):
    config = DiffusionConfig(adapter=adapter or low_rank(), **config)
    return build(FAMILY, config, spec, seed=3, parents={"base": base} if parents is None else parents)


def low_rank(**values):
    return AdapterConfig(rank=2, alpha=3.0, **values)


def inputs(rows=4):
    x_t = torch.randn(rows, *SPEC.shape, generator=torch.Generator().manual_seed(2))
    return x_t, torch.linspace(0.1, 3, rows), torch.arange(rows) % 3


@NETWORKS
def test_an_untrained_adapter_is_its_base_to_the_bit(network):
    base = base_of(network)
    assert torch.equal(adapted(base).module(*inputs()), base.module(*inputs()))


def test_an_adapter_trains_on_its_base_as_it_is_without_the_bases_dropout():
    base = base_of(TRANSFORMER.model_copy(update={"dropout": 0.5}))
    module, generator = adapted(base).module.train(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(module(*inputs(), generator), base.module(*inputs()))
    assert torch.equal(generator.get_state(), before)
    assert adapted(base).tasks.denoise_with_dropout is None


@NETWORKS
def test_merged_weights_compute_what_two_more_layers_beside_each_would(monkeypatch, network):
    """Unmerged, a layer gives W x + alpha / rank B (A x); biases are the base's."""
    monkeypatch.setattr(PixelAttention, "forward", layer_by_layer)
    base = base_of(network)
    module = stirred(adapted(base).module)
    unmerged = copy.deepcopy(base.module)
    for name, change in module.changes.items():
        layer = unmerged.get_submodule(name.replace("/", ".").removesuffix(".weight"))
        layer.register_forward_hook(beside(layer, change))
    merged = copy.deepcopy(base.module)
    merged.load_state_dict(merged.state_dict() | module.merged())
    plain = base.module(*inputs())
    assert torch.allclose(module(*inputs()), unmerged(*inputs()), atol=1e-5)
    assert torch.allclose(module(*inputs()), merged(*inputs()), atol=1e-5)
    assert not torch.allclose(module(*inputs()), plain, atol=1e-2)


def layer_by_layer(self, x):
    """What pixel attention computes, its layers called, not their weights used."""
    return x + self.attention(self.norm(x).flatten(2).mT).mT.reshape(x.shape)


def beside(layer, change):
    """A hook that adds the low-rank path of ``change``, alpha 3 and rank 2, to what ``layer`` gives."""

    def hook(_, arguments, output):
        if isinstance(layer, torch.nn.Linear):
            return output + 3.0 / 2 * arguments[0] @ change.a.T @ change.b.T
        down = change.a.view(-1, *layer.weight.shape[1:])
        inner = torch.nn.functional.conv2d(arguments[0], down, padding=layer.padding)
        return output + 3.0 / 2 * torch.einsum("or,brhw->bohw", change.b, inner)

    return hook


def test_only_low_ranks_are_stored_and_trained_and_the_base_stays():
    base = base_of(TRANSFORMER)
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    model = adapted(base, optimizer=OptimizerConfig(lr=0.01))
    x = torch.randint(0, 17, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = Training(samples=32, batch_size=8, ema_halflife_samples=16)
    state = prepare(model, plan)
    for _ in range(3):
        take_step(state, TensorSource(SPEC, x, torch.arange(32) % 3), plan, 0, World())
    assert all(name.startswith("changes.") and name[-1] in "ab" for name in model.module.state_dict())
    assert all(value.requires_grad for value in model.module.parameters())
    assert sum(p.numel() for p in model.module.parameters()) < 0.6 * sum(v.numel() for v in before.values())
    assert not torch.equal(state.served().module(*inputs()), base.module(*inputs()))
    assert all(torch.equal(value, base.module.state_dict()[name]) for name, value in before.items())
    assert not any(value.requires_grad or value.grad is not None for value in base.module.parameters())


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attention",), {"network/blocks/0/attention/qkv/weight", "network/blocks/0/attention/out/weight"}),
        (("mlp", "embed"), {f"network/{name}/weight" for name in ("embed", "blocks/0/mlp/0", "blocks/0/mlp/2")}),
    ],
)
def test_targets_choose_layers_by_a_word_of_their_path(targets, expected):
    model = adapted(base_of(TRANSFORMER), adapter=AdapterConfig(targets=targets))
    assert set(model.module.changes) == expected


def test_a_change_has_its_rank_and_its_size():
    change = stirred(LowRank(torch.zeros(6, 3, 3, 3), AdapterConfig(rank=2, alpha=6.0)))
    assert change().shape == (6, 3, 3, 3)
    assert int(torch.linalg.matrix_rank(change().view(6, 27))) == 2
    assert torch.allclose(change().view(6, 27), 3.0 * change.b @ change.a)


def test_what_the_recipe_leaves_out_is_the_bases():
    base = base_of(preconditioning=DdpmConfig(timesteps=50), max_frequency=4.0)
    model = adapted(base, adapter=low_rank(sampler={"solver": "ddim", "steps": 20, "guidance": 2.0}))
    module = model.module
    assert module.preconditioner is base.module.preconditioner
    assert module.classes == 3
    assert module.config.network == UNET
    assert sampling.sample(model, 2, label=1).isfinite().all()


def test_an_adapter_samples_as_its_base_but_for_what_it_asks():
    sampler = Options(solver="ddim", steps=50, eta=1.0, guidance=3.0, clamp=True)
    likelihood = LikelihoodConfig(method="adaptive", steps=9, tolerance=1e-5)
    base = base_of(sampler=sampler, likelihood=likelihood)
    assert adapted(base).tasks.options == sampler
    assert adapted(base).module.config.likelihood == likelihood
    asked = low_rank(sampler={"solver": "heun", "steps": 18, "guidance": 1.0}, likelihood={"method": "rk4"})
    model = adapted(base, adapter=asked)
    assert model.tasks.options == Options(solver="heun", steps=18, eta=1.0, guidance=1.0, clamp=True)
    assert model.module.config.likelihood == LikelihoodConfig(method="rk4", steps=9)
    finer = adapted(base, adapter=low_rank(likelihood={"tolerance": 1e-6})).module.config.likelihood
    assert finer == likelihood.model_copy(update={"tolerance": 1e-6})


def test_an_adapter_on_a_base_that_always_knew_the_class_asks_for_it_too():
    model = adapted(base_of(label_dropout=0.0))
    with pytest.raises(RequestError, match="give labels"):
        model.tasks.denoise(*inputs()[:2], None)
    with pytest.raises(RequestError, match="not trained with and without labels"):
        sampling.sample(model, 1, label=0, options={"guidance": 2.0})


def test_another_spread_of_the_data_leaves_the_denoiser_as_the_base_learnt_it():
    base = base_of()
    wider = SPEC.model_copy(update={"data_std": 0.2})
    assert torch.equal(adapted(base, wider).module(*inputs()), base.module(*inputs()))


def test_a_bundle_of_an_adapter_holds_its_base_and_draws_the_same(tmp_path):
    model = adapted(base_of(), adapter=low_rank(sampler={"steps": 4}))
    stirred(model.module)
    save_bundle(model, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert torch.equal(sampling.sample(again, 2, 5, 1, {"steps": 3}), sampling.sample(model, 2, 5, 1, {"steps": 3}))


def test_a_copy_is_called_while_its_original_is_in_a_call():
    """As a preview's thread does beside training: merged weights stand in the base's layers for the time of a call."""
    module = adapted(base_of()).module
    twin, seen = copy.deepcopy(module), []
    module.core.network.register_forward_hook(lambda *_: seen.append(twin(*inputs())))
    assert torch.equal(module(*inputs()), seen[0])
    assert all(a is b for a, b in zip(twin.core.parameters(), module.core.parameters(), strict=True))


def test_a_likelihood_runs_through_the_adapter():
    base = base_of(MlpConfig(width=8, depth=1), DataSpec(kind="vector", shape=(2,), classes=3))
    model = adapted(base, base.spec)
    batch = Batch(torch.tensor([[0.1, 0.2]]), torch.tensor([1]))
    plain, untrained = (each.tasks.log_prob.nats(batch, torch.tensor([0])) for each in (base, model))
    assert torch.equal(plain, untrained)
    stirred(model.module)
    assert not torch.allclose(model.tasks.log_prob.nats(batch, torch.tensor([0])), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "config", "named"),
    [
        (SPEC, {"adapter": AdapterConfig(targets=("atention",))}, "no layer's path holds 'atention'.*attention"),
        (SPEC.model_copy(update={"shape": (1, 4, 4)}), {}, r"learned image of shape \(1, 8, 8\)"),
        (SPEC.model_copy(update={"classes": 5}), {}, "knows 3 classes, the data has 5"),
        (SPEC, {"parents": {}}, "adapter needs a base"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused(spec, config, named):
    with pytest.raises(ConfigError, match=named):
        adapted(base_of(), spec, **config)


@pytest.mark.parametrize(
    ("base", "asked", "named"),
    [
        ({"preconditioning": DdpmConfig(timesteps=50)}, {"sampler": {"steps": 60}}, r"base: sampler\.steps=60 is more"),
        ({}, {"sampler": {"step": 60}}, r"adapter\.sampler\.step is no setting\. Use some of solver, steps"),
        (
            {},
            {"sampler": {"variance": "large"}},
            r"adapter\.sampler: variance=large would have no effect",
        ),
        ({}, {"likelihood": {"tolerance": 0.1}}, r"adapter\.likelihood: tolerance=0\.1 would have no effect"),
        ({"label_dropout": 0.0}, {"label_dropout": 0.3}, r"adapter\.label_dropout=0\.3: the base always knew"),
        ({"label_dropout": 0.0}, {"sampler": {"guidance": 2.0}}, "base: sampler.guidance other than 1 needs"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_before_training(base, asked, named):
    with pytest.raises(ConfigError, match=named) as caught:
        adapted(base_of(**base), adapter=low_rank(**asked))
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("beside", "instead"),
    [
        ({"network": TRANSFORMER}, "leave it out"),
        ({"conditional": False}, "leave it out"),
        ({"label_dropout": 0.1}, "set adapter.label_dropout instead"),
        ({"sampler": Options()}, "set adapter.sampler instead"),
    ],
)
def test_what_the_base_decides_is_refused_beside_an_adapter_even_at_its_default(beside, instead):
    with pytest.raises(ValidationError, match=f"{next(iter(beside))} is what an adapter's base decides; {instead}"):
        DiffusionConfig(adapter=low_rank(), **beside)


def test_a_base_without_an_adapter_or_with_one_of_its_own_is_refused():
    base = base_of()
    with pytest.raises(ConfigError, match=r"there is none\. Set model.adapter"):
        build(FAMILY, DiffusionConfig(network=UNET), SPEC, seed=0, parents={"base": base})
    with pytest.raises(ConfigError, match="without an adapter"):
        adapted(adapted(base))
