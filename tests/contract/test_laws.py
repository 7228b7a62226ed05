"""Laws that every family keeps, on every digits recipe there is and on a third party's family.

Weights are stirred: where a network starts as nothing, rows, classes and parents could not be told apart.
"""

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import kinfolk_toy
import pytest
import torch

from kinfolk import sampling
from kinfolk.abilities import abilities
from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.checkpoint import load_checkpoint, save_checkpoint
from kinfolk.config import parse
from kinfolk.contract import FIRST_STAGE, Batch, Progress, SamplerState
from kinfolk.data.latents import encoded, latent_spec
from kinfolk.data.source import TensorSource
from kinfolk.errors import ConfigError, RequestError
from kinfolk.families import family_names, find_family
from kinfolk.serving.batcher import Batcher, BatchLimits
from kinfolk.serving.schema import ask, body_model, check_values
from kinfolk.step import NonFiniteError, World, trainable, turn
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_pipelines.families import untrained

RECIPES = sorted((Path(__file__).parents[2] / "pipelines" / "recipes" / "digits").glob("*.yaml"))
CASES = [*RECIPES, "toy"]
ROWS = 5
NOISE = {"energy": 0.3}  # standard deviation where a family has no use for 0.5
SCALE = 0.05  # of the noise on weights; at 0.1 rounding in stirred flows is beyond the tolerances here


@pytest.fixture(params=CASES, ids=lambda case: getattr(case, "stem", case))
def case(request, digits):
    """A built model with stirred weights, on parents with stirred weights."""
    if request.param == "toy":
        return stirred(build(kinfolk_toy.FAMILY, kinfolk_toy.FAMILY.config(class_shift=0.5), digits.spec, seed=5))
    fresh = untrained(request.param, digits.spec)
    for parent in fresh.parents.values():
        stirred(parent)
    return again(fresh)


@torch.no_grad()
def stirred(model):
    """``model`` with noise on every weight."""
    noise = torch.Generator().manual_seed(3)
    for parameter in model.module.parameters():
        if parameter.is_floating_point():
            parameter += SCALE * torch.randn(parameter.shape, generator=noise)
    return model


def again(model, seed=5):
    """A model like ``model``, built and stirred anew."""
    return stirred(build(model.family, model.config, model.spec, seed, parents=model.parents))


def learned(model, digits):
    """What the model trains on: the data, or what its first stage makes of it."""
    source, stage = digits.source("train"), model.parents.get(FIRST_STAGE)
    if stage is None:
        return source
    rows = encoded(stage, source.take(0, 128), torch.arange(128))
    return TensorSource(latent_spec(stage, source.spec), rows.x, rows.label)


def plan_of(**changes):
    from kinfolk.config import Training

    return Training(**{"samples": 64, "batch_size": 16, "ema_halflife_samples": 50, **changes})


def trained(case, digits, steps=2, seed=5, **changes):
    plan, source = plan_of(**changes), learned(case, digits)
    state = prepare(again(case), plan)
    for _ in range(steps):
        take_step(state, source, plan, seed, World())
    return state


def weights(state):
    return {name: value.clone() for name, value in state.model.module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def samplers(case):
    tasks = case.tasks
    if "sample" not in tasks.starts:
        pytest.skip("this model draws no samples")
    return tasks


def labels_for(tasks, n):
    return [i % 10 for i in range(n)] if "label" in tasks.conditions else None


def fewer_calls(case, steps=7):
    """Other sampling options than the default, with fewer calls where the family has steps."""
    return {"steps": steps} if "steps" in case.family.options.model_fields else {}


def test_every_parameter_belongs_to_exactly_one_phase(case):
    owners = [parameter for phase in case.family.phases(case.module) for parameter in trainable(phase.module)]
    assert len({id(p) for p in owners}) == len(owners)
    assert {id(p) for p in owners} == {id(p) for p in trainable(case.module)}


def test_a_turn_gives_gradients_to_its_own_parameters_alone(case, digits):
    batch = learned(case, digits).take(0, 16)
    for index in range(len(case.family.phases(case.module))):
        state = prepare(again(case), plan_of())
        phase = state.phases[index]
        progress = Progress(0, 0, torch.Generator().manual_seed(0))
        turn(phase, state.optimizers[phase.name], [batch], [progress], World())
        own = {id(parameter) for parameter in trainable(phase.module)}
        assert all(p.grad is None for p in state.model.module.parameters() if id(p) not in own)
        assert any(p.grad is not None for p in trainable(phase.module))


def test_a_step_moves_every_phase(case, digits):
    plan, source = plan_of(), learned(case, digits)
    state = prepare(again(case), plan)
    before = {phase.name: [p.detach().clone() for p in trainable(phase.module)] for phase in state.phases}
    for _ in range(max(phase.every_steps for phase in state.phases) + 1):
        take_step(state, source, plan, 5, World())
    for phase in state.phases:
        moved = [not torch.equal(a, b) for a, b in zip(before[phase.name], trainable(phase.module), strict=True)]
        assert any(moved), f"phase {phase.name} stands still"


def test_steps_leave_nothing_behind(case, digits):
    """Memory stays level over steps: a tensor that a hook or a cache holds on to would be there once more each time."""
    plan, source = plan_of(samples=256), learned(case, digits)
    state, alive = prepare(again(case), plan), []
    for _ in range(2):
        for _ in range(4):
            take_step(state, source, plan, 5, World())
        gc.collect()
        alive.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    assert alive[1] < alive[0] + 4  # a phase that is not due at every step may have its first gradients now


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_of_broken_weights_says_that_it_is_not_finite(case, digits, value):
    """Training rolls back on this error and on no other."""
    state = prepare(again(case), plan_of())
    with torch.no_grad():
        for parameter in state.model.module.parameters():
            parameter.fill_(value)
    with pytest.raises(NonFiniteError):
        take_step(state, learned(case, digits), plan_of(), 5, World())


def test_training_is_a_function_of_the_seed(case, digits):
    first, second, other = (trained(case, digits, seed=seed) for seed in (5, 5, 6))
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(other))


def test_building_and_training_leave_the_global_generator_alone(case, digits):
    torch.manual_seed(321)  # not the state that building alone would leave
    before = torch.random.get_rng_state()
    trained(case, digits)
    assert torch.equal(before, torch.random.get_rng_state())


def test_resuming_gives_the_same_bits(case, digits, tmp_path):
    whole = trained(case, digits, steps=4)
    half = trained(case, digits, steps=2)
    plan, resumed = plan_of(), prepare(again(case, seed=99), plan_of())
    save_checkpoint(tmp_path / "state", half.snapshot())
    resumed.load(load_checkpoint(tmp_path / "state"))
    for _ in range(2):
        take_step(resumed, learned(case, digits), plan, 5, World())
    assert equal(dict(whole.snapshot().tensors), dict(resumed.snapshot().tensors))


def test_a_sample_depends_on_its_own_seed_and_class_alone(case):
    model, tasks = case, samplers(case)
    labels = labels_for(tasks, ROWS)
    options = fewer_calls(case)
    together = sampling.sample(model, ROWS, 11, labels, options)
    for row in range(ROWS):
        alone = sampling.sample(model, 1, 11 + row, None if labels is None else labels[row], options)
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_another_class_gives_another_sample(case):
    if "label" not in samplers(case).conditions:
        pytest.skip("this model is told no class")
    of_each = [sampling.sample(case, ROWS, 11, label, fewer_calls(case)) for label in (3, 4)]
    assert not torch.allclose(*of_each, atol=1e-3)


def test_a_row_takes_the_calls_and_evaluations_it_says(case):
    tasks = samplers(case)
    request = sampling.make_request(case, 2, 3, None, fewer_calls(case))
    states = list(sampling.trajectory(tasks, request))
    assert len(states) == 1 + int(states[0].calls[0])
    assert [int(state.call[0]) for state in states] == list(range(len(states)))
    assert sampling.evaluations(tasks, request) == sum(int(state.cost.sum()) for state in states[:-1])


def test_rows_of_different_requests_stand_in_one_state(case):
    """A request that joins in the middle, with other options, changes nobody's picture."""
    model, tasks = case, samplers(case)
    early = sampling.make_request(model, 3, 20, None, fewer_calls(case, 9))
    late = sampling.make_request(model, 2, 40, None, fewer_calls(case))
    with torch.no_grad():
        state, pictures, joined = sampling.start(tasks, early), {}, False
        calls = 0
        while len(pictures) < 5:
            state = tasks.advance(state)
            calls += 1
            if calls == 2 or (bool(state.done.all()) and not joined):
                state, joined = SamplerState.cat([state, sampling.start(tasks, late)]), True
            finished = state.select(state.done)
            if len(finished):
                rendered = tasks.render(finished)
                pictures |= {int(seed): rendered[i] for i, seed in enumerate(finished.seed)}
                if len(pictures) < 5:
                    state = state.select(~state.done)
    for request in (early, late):
        alone = sampling.run(tasks, request)
        for row, seed in enumerate(request.seeds.tolist()):
            assert torch.allclose(pictures[seed], alone[row], atol=1e-5)


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
def test_the_ends_of_a_way_are_the_samples_of_its_seeds(case, told):
    tasks = case.tasks
    if "interpolate" not in tasks.starts:
        pytest.skip("this model does not interpolate")
    label = 3 if told and "label" in tasks.conditions else None
    options = fewer_calls(case)
    request = sampling.make_request(case, 3, 11, label, options, "interpolate")
    way = sampling.draw(tasks, sampling.interpolating(request, 40), "interpolate")
    for row, seed in ((0, 11), (2, 40)):
        assert torch.allclose(way[row], sampling.sample(case, 1, seed, label, options)[0], atol=1e-4)
    assert not torch.allclose(way[1], way[0], atol=1e-3)


def test_given_elements_come_out_as_given_and_the_others_are_not_looked_at(case, digits):
    tasks = case.tasks
    if "inpaint" not in tasks.starts:
        pytest.skip("this model does not complete pictures")
    given = digits.source("test").take(0, 3)
    x, label = given.x, given.label.tolist() if "label" in tasks.conditions else None
    mask = torch.zeros(digits.spec.shape)
    mask[..., :4, :] = 1
    x[..., 4:, :] = torch.nan
    request = sampling.completing(sampling.make_request(case, 3, 7, label, fewer_calls(case)), digits.spec, x, mask)
    completed = sampling.draw(tasks, request, "inpaint")
    assert torch.allclose(completed[..., :4, :], x[..., :4, :], atol=1e-5)
    assert completed.isfinite().all()
    alone = sampling.draw(tasks, sampling.rows_of(request, slice(1, 2)), "inpaint")
    assert torch.allclose(alone[0], completed[1], atol=1e-4)


def test_a_task_names_what_its_request_lacks(case):
    request, rows = sampling.make_request(case, 2), case.spec.shape
    needs = {
        "interpolate": {"seed_to": torch.ones(2, dtype=torch.int64), "weight": torch.ones(3, dtype=torch.float64)},
        "inpaint": {"x": torch.zeros(2, *rows), "mask": torch.ones(1, *rows)},
    }
    for task in case.tasks.starts.keys() & needs:
        (first, value), (second, misshapen) = needs[task].items()
        for field, given in ((first, {}), (second, {first: value}), (second, {first: value, second: misshapen})):
            with pytest.raises(RequestError) as caught:
                sampling.start(case.tasks, replace(request, **given), task)
            assert caught.value.field == field


def test_sampling_leaves_the_global_generator_alone_and_is_finite(case, digits):
    samplers(case)
    before = torch.random.get_rng_state()
    x = sampling.sample(case, 2, 0, None, fewer_calls(case))
    assert torch.equal(before, torch.random.get_rng_state())
    assert x.shape == (2, *digits.spec.shape)
    assert x.isfinite().all()


def test_a_bundle_draws_the_same_pictures(case, tmp_path, monkeypatch, toy):
    samplers(case)
    save_bundle(case, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    options = fewer_calls(case)
    assert torch.equal(sampling.sample(case, 3, 1, None, options), sampling.sample(loaded, 3, 1, None, options))


def test_a_misspelt_key_is_refused_with_the_nearest_one(case):
    family = case.family
    name = next(iter(family.config.model_fields))
    with pytest.raises(ConfigError, match=f"Did you mean '{name}'"):
        parse(family.config, {f"{name}x": 1}, "model")


def test_an_option_or_class_the_model_lacks_is_refused(case):
    tasks = samplers(case)
    with pytest.raises(RequestError) as caught:
        sampling.make_request(case, 1, options={"flavour": 3})
    assert caught.value.field == "flavour"
    with pytest.raises(RequestError) as caught:
        sampling.make_request(case, 1, label=10)
    assert caught.value.field == "label"
    assert ("label" in tasks.conditions) == ("class-conditional" not in str(caught.value))


def test_a_bound_of_no_draws_is_refused(case, digits):
    bound, batch = case.tasks.importance_bound, digits.source("test").take(0, 2)
    if bound is None:
        pytest.skip("this model has no bound of many draws")
    for draws in (0, -3):
        with pytest.raises(RequestError, match=f"draws={draws}: ") as caught:
            bound(batch, torch.arange(2), draws)
        assert caught.value.field == "draws"


def test_row_tasks_depend_on_their_row_alone(case, digits):
    batch = digits.source("test").take(0, 4)
    seeds = torch.arange(4)
    for task in (each.rows for each in abilities(case).values() if each.rows and each.takes == case.spec):
        with torch.no_grad():
            whole = task(batch, seeds)
            part = task(batch.map(lambda value: value[2:3]), seeds[2:3])
        assert whole.shape[0] == 4
        assert torch.allclose(whole[2:3], part, atol=1e-4, rtol=1e-4)


def test_a_completed_element_does_not_see_itself_and_sees_others(case, digits):
    if case.tasks.complete is None:
        pytest.skip("this model completes nothing")
    dims = digits.spec.dims
    x = digits.source("test").take(0, 1).x.flatten().expand(dims, dims).contiguous()
    changed, seeds = (x + torch.eye(dims)).view(-1, *digits.spec.shape), torch.full((dims,), 3)
    with torch.no_grad():
        moved = case.tasks.complete(Batch(changed), seeds) - case.tasks.complete(Batch(x.view_as(changed)), seeds)
    moved = moved.flatten(1)  # row n: what the change of element n does
    assert torch.allclose(moved.diagonal(), torch.zeros(dims), atol=1e-6)
    assert (moved.abs().amax(1) > 1e-4).all()


def test_latents_are_what_the_model_says_and_decode_to_data(case, digits):
    tasks = case.tasks
    if tasks.encode is None or tasks.decode is None:
        pytest.skip("this model has no latents to decode")
    batch = digits.source("test").take(0, 3)
    with torch.no_grad():
        z = tasks.encode(batch, torch.arange(3))
        x = tasks.decode(Batch(z, batch.label), torch.arange(3))
    assert tasks.latent_spec is not None
    assert z.shape[1:] == tasks.latent_spec.shape
    assert x.shape == batch.x.shape


def test_whatever_a_model_can_do_is_served(case, digits):
    """Two requests for each task, batched together, come out finite and as the task says, each as it does alone."""
    given = digits.source("test").take(0, 1).x
    fields = {"x": case.spec.to_uint8(given).tolist(), "mask": [[[[255] * 8] * 4 + [[0] * 8] * 4]], "seed_to": 5}
    tasks = case.tasks

    def request(ability, seed):
        body = {name: fields[name] for name in ability.needs} | {"seed": seed}
        if ability.takes is not None and ability.takes != case.spec:
            shape, levels = ability.takes.shape, ability.takes.levels
            body["x"] = torch.zeros(1, *shape, dtype=torch.int64 if levels else torch.float32).tolist()
        body |= {"noise_level": NOISE.get(case.family.name, 0.5)} if ability.rows_with_noise else {}
        body |= fewer_calls(case) if ability.samples else {}
        body |= {"label": 3} if "label" in tasks.conditions else {}
        check_values(body, body_model(case, ability, 8))
        return ask(case, ability, body, 8).request

    async def answers():
        batcher = Batcher(tasks, BatchLimits(8, 10**6, 10**7))
        for name, ability in abilities(case).items():
            both = await asyncio.gather(*(batcher.run(request(ability, seed), name) for seed in (1, 2)))
            alone = await batcher.run(request(ability, 2), name)
            yield ability, both[1].samples, alone.samples
        await batcher.close()

    async def check():
        async for ability, together, alone in answers():
            assert together.isfinite().all()
            assert ability.gives is None or together.shape[1:] == ability.gives.shape
            assert torch.allclose(together.float(), alone.float(), atol=1e-3, rtol=1e-3)

    asyncio.run(check())


def test_installed_families_are_found_by_name():
    assert {"autoencoder", "classifier", "diffusion", "gan"} <= set(family_names())
    with pytest.raises(ConfigError, match="Did you mean 'diffusion'"):
        find_family("difusion")
