import asyncio
from dataclasses import replace

import httpx
import pytest
import torch
from kinfolk_walk import WALK

from kinfolk.contract import DataSpec
from kinfolk.sampling import make_request, run
from kinfolk.serving.config import Limits, Rollout, ServedModel
from kinfolk.serving.directory import build_app
from kinfolk.serving.host import ModelHost

NPY = {"Accept": "application/x-npy"}


@pytest.fixture
def make_hosted():
    def make(model, **rollout):
        served = ServedModel(name="walk", max_rows=8, limits=Limits(), rollout=Rollout(**rollout))
        return ModelHost(served, model, "3")

    return make


async def rolled_out(host, model):
    """A roll-out under way, its trial begun."""
    task = asyncio.create_task(host.roll_out(model, "4"))
    while host.trial is None:
        await asyncio.sleep(0)
    return task


def test_a_new_version_takes_new_requests_while_the_old_one_finishes_its_own(make_hosted, make_walk):
    old, new = make_walk(), make_walk()
    new.module.weight.data.fill_(2.0)
    request = make_request(old, n=3, options={"steps": 5})

    async def scenario():
        host = make_hosted(old, trial_s=0)
        old.module.watch.gate.clear()
        before = asyncio.create_task(host.current.batcher.run(request))
        while not old.module.watch.entered.is_set():
            await asyncio.sleep(0.001)
        retiring = host.current.batcher
        assert await host.roll_out(new, "4") is None
        after = await host.current.batcher.run(request)
        assert not before.done()
        while retiring.alive:
            await asyncio.sleep(0.001)
        old.module.watch.gate.set()
        results = (await before).samples, after.samples, host.current.version
        await host.close()
        assert not host.ready
        return results

    before, after, version = asyncio.run(scenario())
    assert version == "4"
    assert torch.equal(before, run(old.tasks, request))
    assert torch.equal(after, run(new.tasks, request))
    assert not torch.equal(before, after)


def test_each_version_has_the_request_body_of_its_own_model(make_hosted, make_walk):
    wide = make_walk(DataSpec(kind="image", shape=(1, 4, 4), levels=256, classes=99))

    async def scenario():
        host = make_hosted(make_walk(), trial_s=0)
        bodies = [host.current.services["sample"].body]
        await host.roll_out(wide, "4")
        bodies.append(host.current.services["sample"].body)
        await host.close()
        return bodies

    narrow_body, wide_body = asyncio.run(scenario())
    assert wide_body.model_validate({"label": 50}).label == 50
    with pytest.raises(ValueError, match="less than 10"):
        narrow_body.model_validate({"label": 50})


@pytest.mark.parametrize(("share", "expected"), [(1.0, 40), (0.25, 10), (0.1, 4), (0.01, 0)])
def test_a_version_on_trial_answers_its_share(make_hosted, make_walk, share, expected):
    async def scenario():
        host = make_hosted(make_walk(), share=share, trial_s=30)
        task = await rolled_out(host, make_walk())
        asked = [host.choose().version for _ in range(40)]
        host.trial.end("enough")
        assert await task == "enough"
        assert host.choose().version == "3"
        await host.close()
        return asked

    assert asyncio.run(scenario()).count("4") == expected


def test_what_a_version_on_trial_fails_the_one_before_answers_and_stays(make_hosted, make_walk):
    """The new version fails every request that asks for it to; nobody hears of it."""

    async def scenario():
        host = make_hosted(make_walk(), trial_s=30, max_failures=1)
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        broken = make_walk()
        broken.module.weight.data.fill_(float("nan"))  # its samples are not finite
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            task = await rolled_out(host, broken)
            answers = [await client.post("/sample", json={"seed": seed}, headers=NPY) for seed in range(5)]
            streamed = await client.post("/sample", json={"seed": 1}, headers={"Accept": "text/event-stream"})
        refused = await asyncio.wait_for(task, 10)
        trial = host.trial
        await host.close()
        return answers, streamed, refused, trial

    answers, streamed, refused, trial = asyncio.run(scenario())
    assert [(answer.status_code, answer.headers["Kinfolk-Version"]) for answer in answers] == [(200, "3")] * 5
    assert "2 of its requests failed" in refused
    assert "event: done" in streamed.text
    assert trial is None


@pytest.mark.parametrize("accept", ["application/x-npy", "text/event-stream"])
def test_a_version_that_cannot_start_a_row_has_failed_it(make_hosted, make_walk, accept):
    def tasks(module):
        def broken(_):
            raise ValueError("nothing can be started")

        made = WALK.tasks(module)
        return replace(made, starts={**made.starts, "inpaint": broken, "sample": broken})

    async def scenario():
        host = make_hosted(make_walk(), trial_s=30)
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            task = await rolled_out(host, replace(make_walk(), family=replace(WALK, tasks=tasks)))
            failures = host.trial.version.batcher.counts
            answer = await client.post("/sample", json={"seed": 1}, headers={"Accept": accept})
            refused = await asyncio.wait_for(task, 10)
        await host.close()
        return answer, refused, failures.failures

    answer, refused, failures = asyncio.run(scenario())
    assert answer.status_code == 200
    assert "error" not in answer.text
    assert refused.startswith("1 of its requests failed on trial: The model failed while sampling")
    assert failures == 1


def test_requests_that_a_version_fails_just_after_its_trial_are_answered_too(make_hosted, make_walk):
    async def scenario():
        served = ServedModel(name="walk", max_rows=1, rollout=Rollout(trial_s=30))  # one after the other fails
        host = ModelHost(served, make_walk(), "3")
        broken = make_walk()
        broken.module.weight.data.fill_(float("nan"))
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            task = await rolled_out(host, broken)
            asking = (client.post("/sample", json={"seed": seed}, headers=NPY) for seed in range(6))
            answers = await asyncio.gather(*asking)
        refused = await task
        await host.close()
        return answers, refused

    answers, refused = asyncio.run(scenario())
    assert [(answer.status_code, answer.headers["Kinfolk-Version"]) for answer in answers] == [(200, "3")] * 6
    assert refused.startswith("1 of its requests failed on trial: The model failed while sampling")


async def slow_body(seconds):
    """The body of a request, of which the end comes late."""
    yield b'{"seed":'
    await asyncio.sleep(seconds)
    yield b" 1}"


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("asked", "leaves"),
    [
        ({"json": {"seed": 1}}, False),
        ({"json": {"seed": 1}}, True),
        ({"json": {"seed": 1}, "headers": {"Accept": "text/event-stream"}}, False),
        ({"content": slow_body(0.1), "headers": JSON}, False),
        ({"content": slow_body(0.2), "headers": JSON}, True),
    ],
    ids=["whole", "leaves", "events", "slow-body", "too-slow-body"],
)
def test_a_version_that_answers_nothing_on_trial_does_not_take_over(make_walk, asked, leaves):
    """A request that its client gave up, or that came late, says nothing of the version."""

    async def scenario():
        served = ServedModel(
            name="walk", rollout=Rollout(trial_s=0.4), limits=Limits(request_timeout_s=0.3), drain_timeout_s=0.1
        )
        host, stuck = ModelHost(served, make_walk(), "3"), make_walk()
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            task = await rolled_out(host, stuck)
            stuck.module.watch.gate.clear()
            asking = asyncio.create_task(client.post("/sample", **asked))
            if leaves and "json" in asked:
                await asyncio.sleep(0.02)
                asking.cancel()
            status = (await asyncio.gather(asking, return_exceptions=True))[0]
            refused = await task
        stuck.module.watch.gate.set()
        await host.close()
        return getattr(status, "text", ""), refused

    text, refused = asyncio.run(scenario())
    if leaves:
        assert refused is None
    else:
        assert "Not done in time" in text
        assert "answered no request" in refused


def test_a_stream_that_fails_on_trial_goes_on_with_the_version_before(make_hosted, make_walk):
    async def scenario():
        host = make_hosted(make_walk(), trial_s=30, max_failures=9)
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        broken = make_walk()
        broken.module.weight.data.fill_(float("nan"))
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            task = await rolled_out(host, broken)
            streamed = await client.post("/sample", json={"seed": 1}, headers={"Accept": "text/event-stream"})
        failures = host.trial.failures
        host.trial.end("enough")
        await task
        await host.close()
        return streamed.text, failures

    text, failures = asyncio.run(scenario())
    assert text.rstrip().rpartition("event: ")[2].startswith("done")
    assert '"version": "3"' in text
    assert failures == 1


def test_a_fault_without_another_version_is_the_callers_to_know(make_hosted, make_walk):
    async def scenario():
        broken = make_walk()
        broken.module.weight.data.fill_(float("nan"))
        host = make_hosted(broken)
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
            answer = await client.post("/sample", json={"seed": 1})
        await host.close()
        return answer

    assert asyncio.run(scenario()).status_code == 500


def test_a_version_whose_thread_has_died_does_not_take_over(make_hosted, make_walk):
    async def scenario():
        host = make_hosted(make_walk(), trial_s=0.05)
        task = await rolled_out(host, make_walk())
        await host.trial.version.batcher.close()
        refused = await task
        await host.close()
        return refused, host.current.version

    refused, version = asyncio.run(scenario())
    assert "stopped" in refused
    assert version == "3"
