import json
import math
from dataclasses import replace

import pytest
import torch
from kinfolk_toy import FAMILY as TOY
from kinfolk_toy import Gaussian, GaussianConfig

from kinfolk.checkpoint import Snapshot
from kinfolk.config import Training
from kinfolk.errors import ConfigError, DivergenceError
from kinfolk.families import find_family
from kinfolk.step import World
from kinfolk.training.loop import initialise, judged_together, take_step, train
from kinfolk.training.state import build, prepare
from kinfolk_families.gan.config import GANConfig
from kinfolk_families.gan.network_config import MLPNetwork
from kinfolk_families.gan.spectral import SpectrallyNormalised

GAN = find_family("gan")


def training(**changes):
    return Training(**{"samples": 640, "batch_size": 32, "ema_halflife_samples": 200, **changes})


def state_of(digits, plan, **config):
    return prepare(build(TOY, GaussianConfig(**config), digits.spec, seed=3), plan)


def same(a: Snapshot, b: Snapshot) -> bool:
    return a.values == b.values and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors | b.tensors)


def run(state, digits, plan, **more):
    return list(train(state, digits.source("train"), plan, seed=3, **more))


def test_training_is_a_function_of_the_seed(digits):
    plan = training()
    first, second = state_of(digits, plan), state_of(digits, plan)
    run(first, digits, plan)
    run(second, digits, plan)
    assert same(first.snapshot(), second.snapshot())


def test_resuming_from_any_checkpoint_gives_the_same_bits(digits):
    plan = training(checkpoint_every_samples=160)
    whole = state_of(digits, plan)
    stored = [report.snapshot for report in run(whole, digits, plan) if report.snapshot]
    assert len(stored) == 4
    for snapshot in stored[:-1]:
        again = state_of(digits, plan)
        again.load(snapshot)
        run(again, digits, plan)
        assert same(again.snapshot(), whole.snapshot())


def test_gradient_descent_reaches_the_closed_form_maximum(digits):
    plan = training(samples=120_000, batch_size=256, ema_halflife_samples=4000)
    state = state_of(digits, plan, dequantise=0.3)
    run(state, digits, plan)
    x = digits.source("train").take(0, len(digits.source("train"))).x
    served = state.served().module
    variance = x.var(0, unbiased=False) + 0.3**2
    assert torch.allclose(served.mean, x.mean(0), atol=0.03)
    assert torch.allclose(served.log_std.exp().square(), variance, rtol=0.12)


def test_a_nan_rolls_back_to_the_last_checkpoint_with_a_lower_rate_and_other_noise(digits):
    plan = training(checkpoint_every_samples=160, divergence_retries=8)
    state = state_of(digits, plan, poison_step=14)
    reports = run(state, digits, plan)
    rollbacks = [report for report in reports if report.kind == "rollback"]
    assert rollbacks
    assert all(report.samples_seen == 320 for report in rollbacks)
    assert state.samples_seen == 640
    final = state.optimizers["gaussian"].param_groups[0]["lr"]
    assert final == pytest.approx(0.02 * 0.5 ** len(rollbacks))
    assert all(value.isfinite().all() for value in state.snapshot().tensors.values())


def test_divergence_that_stays_is_an_error_and_leaves_finite_weights(digits):
    plan = training(divergence_retries=2)
    state = state_of(digits, plan, optimizer={"lr": 1e6, "kind": "sgd", "betas": (0, 0)})
    with pytest.raises(DivergenceError, match="2 roll-backs"):
        run(state, digits, plan)
    assert all(value.isfinite().all() for value in state.snapshot().tensors.values())


def test_microbatches_average_to_the_whole_batch(digits):
    grads = []
    for accumulate in (1, 4):
        plan = training(accumulate=accumulate)
        state = state_of(digits, plan, dequantise=0.0)
        take_step(state, digits.source("train"), plan, 3, World())
        grads.append(torch.cat([p.grad.flatten() for p in state.model.module.parameters()]))
    assert torch.allclose(grads[0], grads[1], atol=1e-6)
    assert not torch.equal(grads[0], torch.zeros_like(grads[0]))


def test_two_ranks_together_see_the_batch_of_one(digits):
    source = digits.source("train")
    whole = source.batch(3, 1490, 1522)  # crosses into the second epoch
    halves = [source.batch(3, 1490, 1506), source.batch(3, 1506, 1522)]
    assert torch.equal(whole.x, torch.cat([half.x for half in halves]))
    assert torch.equal(whole.label, torch.cat([half.label for half in halves]))


def test_a_step_leaves_the_global_generator_alone(digits):
    plan = training()
    state = state_of(digits, plan)
    before = torch.random.get_rng_state()
    take_step(state, digits.source("train"), plan, 3, World())
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_last_report_is_a_checkpoint_even_when_intervals_do_not_divide(digits):
    plan = training(samples=650, checkpoint_every_samples=300, log_every_samples=70)
    reports = run(state_of(digits, plan), digits, plan)
    assert reports[-1].kind == "checkpoint"
    assert reports[-1].samples_seen == math.ceil(650 / 32) * 32
    logs = [report for report in reports if report.kind == "log"]
    assert {"gaussian/loss", "gaussian/log_prob", "gaussian/gradient_norm", "samples_per_second"} == set(logs[0].logs)


@pytest.mark.parametrize(
    ("batch", "workers", "accumulate", "hint"), [(33, 2, 1, "32 or 34"), (1, 4, 1, "e.g. 4"), (32, 1, 3, "30 or 33")]
)
def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(digits, batch, workers, accumulate, hint):
    plan = training(batch_size=batch, accumulate=accumulate)
    with pytest.raises(ConfigError, match=hint):
        run(state_of(digits, plan), digits, plan, world=World(0, workers))


def grouped(*groups):
    """The toy with a phase for each group size."""
    return replace(TOY, phases=lambda module: [replace(TOY.phases(module)[0], group=group) for group in groups])


def test_a_batch_is_whole_groups_of_what_each_loss_judges_together(digits):
    plan = training(batch_size=40, accumulate=2)
    state = prepare(build(grouped(4), GaussianConfig(), digits.spec, seed=3), plan)
    before = state.snapshot()
    with pytest.raises(ConfigError, match=r"2 workers.*groups of 4 samples.*multiple of 16, e\.g\. 32 or 48"):
        run(state, digits, plan, world=World(0, 2))
    assert same(state.snapshot(), before)
    assert run(state, digits, plan)[-1].samples_seen == 640  # 20 samples a microbatch of one worker


def test_a_batch_suits_the_groups_of_all_phases(digits):
    assert judged_together(grouped(4, 6).phases(state_of(digits, training()).model.module)) == 12
    assert judged_together(TOY.phases(state_of(digits, training()).model.module)) == 1


def test_a_family_is_refused_for_data_it_cannot_learn(digits):
    tokens = digits.spec.model_copy(update={"kind": "tokens"})
    with pytest.raises(ConfigError, match="gaussian learns image, vector data"):
        build(TOY, GaussianConfig(), tokens, seed=0)


def centred(module, batch, progress):
    """Initialise the mean at that of the first batch, over all workers."""
    total = progress.all_reduce(torch.cat([batch.x.sum(0).flatten(), torch.tensor([float(len(batch.x))])]))
    module.mean.copy_((total[:-1] / total[-1]).view_as(module.mean))


def initialised(digits, plan, seed=3):
    return prepare(build(replace(TOY, initialise=centred), GaussianConfig(), digits.spec, seed), plan)


def test_initialisation_from_data_sees_the_first_batch_once_and_the_average_starts_there(digits):
    plan, source = training(ema_halflife_samples=10**9, ema_ramp=10**9), digits.source("train")
    state = initialised(digits, plan)
    take_step(state, source, plan, 3, World())
    assert torch.allclose(state.ema.average["mean"], source.batch(3, 0, 32).x.mean(0), atol=0.01)
    moved = state.model.module.mean.detach().clone()
    take_step(state, source, plan, 3, World())
    assert float((state.model.module.mean.detach() - moved).abs().max()) < 0.05  # a step, not a fresh start


def test_two_workers_initialise_as_one_does(digits):
    plan, source = training(), digits.source("train")
    alone = initialised(digits, plan)
    initialise(alone, source.batch(3, 0, 32), 3, World())
    halves = [source.batch(3, 0, 16), source.batch(3, 16, 32)]
    other = torch.cat([halves[1].x.sum(0).flatten(), torch.tensor([16.0])])
    first = initialised(digits, plan)
    initialise(first, halves[0], 3, World(0, 2, lambda value: value + other))
    assert torch.allclose(first.model.module.mean, alone.model.module.mean, atol=1e-6)


def test_given_weights_are_not_initialised_again(digits):
    plan, source = training(), digits.source("train")
    state = initialised(digits, plan)
    before = state.model.module.mean.detach().clone()
    state.tuned = True
    take_step(state, source, plan, 3, World())
    assert float((state.model.module.mean.detach() - before).abs().max()) < 0.05


def test_a_parent_in_a_role_the_family_lacks_is_refused(digits):
    parent = build(TOY, GaussianConfig(), digits.spec, seed=3)
    with pytest.raises(ConfigError, match=r"'teacher'\. Its roles: none"):
        build(TOY, GaussianConfig(), digits.spec, seed=3, parents={"teacher": parent})


def test_a_parent_is_frozen_and_shared_and_in_no_checkpoint(digits):
    def built_on(config, spec, parents):
        module = Gaussian(config, spec)
        module.teacher = parents["teacher"]
        return module

    parent = build(TOY, GaussianConfig(), digits.spec, seed=4)
    family = replace(TOY, build=built_on, roles=frozenset({"teacher"}))
    state = prepare(build(family, GaussianConfig(), digits.spec, seed=3, parents={"teacher": parent}), training())
    teacher = state.model.parents["teacher"]
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert not teacher.module.training
    assert {name.split(".")[1] for name in state.snapshot().tensors if name.startswith("model.")} == {"mean", "log_std"}
    served = state.served().module.teacher.module.parameters()
    assert all(a is b for a, b in zip(served, teacher.module.parameters(), strict=True))


@pytest.mark.parametrize("every", [320, 224])
def test_what_a_monitor_saw_is_in_the_checkpoint_after_its_look_and_comes_back_with_it(digits, every):
    """Looks come every 160 samples; a run that goes on from a checkpoint, at a look or between two, sees what the
    undisturbed one saw.
    """

    def watched(state):
        for report in train(state, digits.source("train"), plan, 3, look_every=160):
            if report.kind == "look":
                state.looks.append({"samples_seen": report.samples_seen, "loss": report.logs["gaussian/loss"]})
            yield report

    plan = training(checkpoint_every_samples=every)
    whole = state_of(digits, plan)
    first, *_ = [report.snapshot for report in watched(whole) if report.snapshot]
    assert [look["samples_seen"] for look in whole.looks] == [160, 320, 480, 640]
    seen = [look for look in (160, 320) if look <= every]
    assert [look["samples_seen"] for look in first.values["looks"]] == seen
    again = state_of(digits, plan)
    again.load(Snapshot(first.tensors, json.loads(json.dumps(first.values))))
    list(watched(again))
    assert again.looks == whole.looks
    assert len(first.values["looks"]) == len(seen)


def test_without_a_monitor_there_are_no_looks(digits):
    plan = training()
    assert "look" not in {report.kind for report in run(state_of(digits, plan), digits, plan)}


def test_a_model_with_other_settings_goes_on_from_what_fits(digits):
    """A GAN whose critic sees more channels keeps its generator, with its moments, and starts the critic anew."""
    plan = training(checkpoint_every_samples=160)
    source = digits.source("train")

    def gan_of(width, seed):
        config = GANConfig(generator=MLPNetwork(width=8), critic=MLPNetwork(width=width))
        return prepare(build(GAN, config, digits.spec, seed), plan)

    old, same_settings, other = gan_of(8, 0), gan_of(8, 1), gan_of(12, 1)
    stored = next(report.snapshot for report in train(old, source, plan, 3) if report.snapshot)
    same_settings.adopt(stored)
    changed = {**stored.values, "changed_at": 160}
    assert changed != stored.values
    assert same(same_settings.snapshot(), Snapshot(stored.tensors, changed))
    fresh = other.snapshot().tensors
    other.adopt(stored)
    taken = other.snapshot()
    assert taken.values == changed
    assert {name.split(".")[1] for name in taken.tensors if name.startswith("optimizer.")} == {"generator"}
    for name, value in taken.tensors.items():
        mine = stored.tensors if "critic" not in name or name.endswith("head.bias") else fresh
        assert torch.equal(value, mine[name]), name
    assert list(train(other, source, plan, 3))[-1].samples_seen == 640


def test_an_average_that_a_change_brings_starts_at_the_weights_that_are_taken_over(digits):
    before, after = (state_of(digits, training(ema_halflife_samples=halflife)) for halflife in (0, 200))
    with torch.no_grad():
        before.model.module.mean.add_(1.0)
    after.adopt(before.snapshot())
    assert torch.equal(after.ema.average["mean"], before.model.module.mean)


def test_what_follows_from_weights_of_which_some_are_new_follows_from_them_all(digits):
    """A packed critic's first layer starts anew, beside a singular vector of the shape that it had before."""

    def gan_of(packing):
        config = GANConfig(critic=MLPNetwork(width=8), packing=packing, penalties=(), spectral=("critic",))
        return prepare(build(GAN, config, digits.spec, 0), training())

    other = gan_of(2)
    other.adopt(gan_of(1).snapshot())
    layers = [layer for layer in other.model.module.critic.modules() if isinstance(layer, SpectrallyNormalised)]
    norms = [float(torch.linalg.matrix_norm(layer.weight().detach(), 2)) for layer in layers]
    assert norms == pytest.approx([1.0] * len(layers), abs=1e-4)
    assert layers


@pytest.mark.parametrize(("kind", "kept"), [("rmsprop", {"generator"}), ("radam", {"critic", "generator"})])
def test_an_optimiser_of_another_kind_starts_anew_where_it_keeps_other_things(digits, kind, kept):
    """Adam and RAdam keep the same two moments of each weight, RMSprop keeps another."""

    def gan_with(kind):
        config = GANConfig.model_validate(
            {"generator": {"kind": "mlp"}, "critic": {"kind": "mlp"}, "critic_optimizer": {"kind": kind}}
        )
        return prepare(build(GAN, config, digits.spec, 0), training(samples=64))

    adam, other = gan_with("adam"), gan_with(kind)
    take_step(adam, digits.source("train"), training(), 3, World())
    other.adopt(adam.snapshot())
    slots = [name for name in other.snapshot().tensors if name.startswith("optimizer.")]
    assert {name.split(".")[1] for name in slots} == kept
    take_step(other, digits.source("train"), training(), 3, World())


def test_what_a_monitor_saw_of_other_settings_is_left_behind(digits):
    before, after = (state_of(digits, training()) for _ in range(2))
    before.samples_seen = 160
    before.looks.append({"samples_seen": 160, "measures": None, "logs": {}, "alarm": None})
    after.adopt(before.snapshot())
    assert after.samples_seen == 160
    assert after.looks == []
