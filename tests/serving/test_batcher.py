import asyncio
import threading
import time
from dataclasses import replace

import pytest
import torch

from kinfolk.contract import RequestError
from kinfolk.sampling import make_request, row_seeds, run
from kinfolk.serving.batcher import Batcher, BatchLimits, OverloadError, SamplingError
from kinfolk.serving.rows import RowRequest


def batcher_of(model, max_rows=8, max_evaluations=100_000, max_evaluations_queued=200_000, sizes=()):
    return Batcher(model.tasks, BatchLimits(max_rows, max_evaluations, max_evaluations_queued, sizes))


def in_batcher(model, requests, **limits):
    """Results of all requests at once, in order, errors as values; no call is done before all have come."""

    async def everything():
        batcher = batcher_of(model, **limits)
        model.module.watch.gate.clear()
        jobs = [batcher.take(request) for request in requests]
        model.module.watch.gate.set()
        try:
            outcomes = await asyncio.gather(*map(batcher.finished, jobs), return_exceptions=True)
            return [getattr(outcome, "samples", outcome) for outcome in outcomes]
        finally:
            await batcher.close()

    return asyncio.run(everything())


async def drawn(batcher, request, task="sample"):
    return (await batcher.run(request, task)).samples


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_row_is_the_same_alone_and_beside_rows_at_other_calls_and_options(walk):
    requests = [
        make_request(walk, n=5, seed=0, options={"steps": 4}),
        make_request(walk, n=1, seed=40, label=3, options={"steps": 9, "cost": 2}),
        make_request(walk, n=30, seed=100, options={"steps": 2, "scale": 0.3}),
        make_request(walk, n=3, seed=2, label=[1, 2, 3]),
    ]
    for request, together in zip(requests, in_batcher(walk, requests), strict=True):
        assert torch.equal(together, run(walk.tasks, request))
    assert any(len(set(call)) > 1 and {40, 100} <= set(call) for call in walk.module.watch.calls)


def test_results_come_in_the_order_of_the_request_however_rows_end(walk):
    options = {"pace": "uneven"}
    (result,) = in_batcher(walk, [make_request(walk, n=20, seed=5, options=options)], max_rows=3)
    alone = [run(walk.tasks, make_request(walk, n=1, seed=seed, options=options))[0] for seed in range(5, 25)]
    assert torch.equal(result, torch.stack(alone))


def test_a_call_holds_at_most_max_rows_and_no_row_that_is_done(walk):
    in_batcher(walk, [make_request(walk, n=21, options={"steps": steps}) for steps in (1, 2, 5)], max_rows=4)
    assert max(len(call) for call in walk.module.watch.calls) == 4
    assert walk.module.watch.done_rows_seen == 0
    assert not walk.module.watch.grad_seen


def test_rows_are_started_only_when_their_turn_comes(walk):
    async def scenario():
        batcher = batcher_of(walk, max_rows=4)
        walk.module.watch.gate.clear()
        task = asyncio.create_task(drawn(batcher, make_request(walk, n=1000, options={"steps": 2})))
        await until(walk.module.watch.entered.is_set)
        started = sum(len(rows) for rows in walk.module.watch.started)
        walk.module.watch.gate.set()
        await task
        await batcher.close()
        return started

    assert asyncio.run(scenario()) == 1 + 4  # the row that told the price, and the first call's


def test_a_small_request_does_not_wait_for_a_large_one(walk):
    """500 rows of 50 calls hold every slot; one row of 3 calls is done three calls after it came."""
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk, max_rows=8)
        watch.gate.clear()
        large = asyncio.create_task(drawn(batcher, make_request(walk, n=500, options={"steps": 50})))
        await until(watch.entered.is_set)
        small = asyncio.create_task(drawn(batcher, make_request(walk, n=1, seed=10_000)))
        await until(lambda: batcher.requests == 2)
        watch.gate.set()
        await small
        calls = [10_000 in call for call in watch.calls]
        large.cancel()
        await batcher.close()
        return calls

    calls = asyncio.run(scenario())
    assert calls[:4] == [False, True, True, True]


def test_rows_set_aside_for_others_are_taken_up_again_where_they_stood(walk):
    watch = walk.module.watch
    requests = [make_request(walk, n=8, seed=seed, options={"steps": 6}) for seed in (0, 100, 200, 300, 400)]

    async def scenario():
        batcher = batcher_of(walk, max_rows=8)
        watch.gate.clear()
        tasks = [asyncio.create_task(drawn(batcher, requests[0]))]
        await until(watch.entered.is_set)
        tasks += [asyncio.create_task(drawn(batcher, request)) for request in requests[1:]]
        await until(lambda: batcher.requests == 5)
        watch.gate.set()
        results = await asyncio.gather(*tasks)
        await batcher.close()
        return results

    results = asyncio.run(scenario())
    rows = [len(call) for call in watch.calls]
    assert max(rows) == 8
    assert sum(rows) == 5 * 8 * 6  # no call was made twice
    for request, result in zip(requests, results, strict=True):
        assert torch.equal(result, run(walk.tasks, request))


def test_evaluations_go_down_by_the_cost_of_each_call(walk):
    seen = []

    async def scenario():
        batcher = batcher_of(walk)
        walk.module.watch.on_call = lambda: seen.append(batcher.evaluations)
        await drawn(batcher, make_request(walk, n=3, options={"steps": 4, "cost": 2}))
        await batcher.close()

    asyncio.run(scenario())
    assert seen == [24, 18, 12, 6]


def test_a_caller_who_leaves_frees_the_rows_before_the_next_call(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk, max_rows=8)
        watch.gate.clear()
        leaver = asyncio.create_task(drawn(batcher, make_request(walk, n=100, options={"steps": 100})))
        stayer = asyncio.create_task(drawn(batcher, make_request(walk, n=1, seed=777, options={"steps": 5})))
        await until(lambda: watch.entered.is_set() and batcher.requests == 2)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        at = len(watch.calls)
        queued = batcher.evaluations
        watch.gate.set()
        await stayer
        await batcher.close()
        return watch.calls[at:], queued, batcher.evaluations

    calls, queued, left = asyncio.run(scenario())
    assert calls
    assert all(call == [777] for call in calls)
    assert (queued, left) == (5, 0)


def test_after_one_who_leaves_before_anything_is_done_others_are_served(walk):
    async def scenario():
        batcher = batcher_of(walk)
        await drawn(batcher, make_request(walk, n=1))
        for _ in range(3):
            batcher.leave(batcher.take(make_request(walk, n=1)))
            await asyncio.sleep(0.05)
            await asyncio.wait_for(drawn(batcher, make_request(walk, n=1)), 10)
        await batcher.close()

    asyncio.run(scenario())


def test_limits_count_network_evaluations_of_rows_calls_and_cost(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk, max_rows=4, max_evaluations=60, max_evaluations_queued=100)
        with pytest.raises(RequestError, match="makes 80"):
            await drawn(batcher, make_request(walk, n=4, options={"steps": 10, "cost": 2}))
        watch.gate.clear()
        first = asyncio.create_task(drawn(batcher, make_request(walk, n=3, options={"steps": 10, "cost": 2})))
        await until(watch.entered.is_set)
        assert batcher.evaluations == 60
        batcher._engine.speed.add(4, 4, 2.0)  # 2 evaluations a second
        with pytest.raises(OverloadError) as overloaded:
            await drawn(batcher, make_request(walk, n=5, options={"steps": 9}))
        second = asyncio.create_task(drawn(batcher, make_request(walk, n=4, options={"steps": 10})))
        await until(lambda: batcher.evaluations == 100)
        watch.gate.set()
        await asyncio.gather(first, second)
        assert batcher.evaluations == 0
        await batcher.close()
        return overloaded.value.retry_after_s

    assert asyncio.run(scenario()) == 3  # of 60 and 45 evaluations 5 are above the limit


def test_a_fault_in_a_call_ends_the_requests_in_it_and_no_other(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk, max_rows=2)
        watch.gate.clear()
        bad = asyncio.create_task(drawn(batcher, make_request(walk, n=2, options={"poison": True})))
        await until(watch.entered.is_set)
        good = asyncio.create_task(drawn(batcher, make_request(walk, n=3, seed=50)))
        await until(lambda: batcher.requests == 2)
        watch.gate.set()
        with pytest.raises(SamplingError):
            await bad
        result = await good
        assert batcher.alive
        await batcher.close()
        return result

    assert torch.equal(asyncio.run(scenario()), run(walk.tasks, make_request(walk, n=3, seed=50)))


def test_a_task_that_gives_too_few_rows_fails_its_own_request_and_no_other(walk):
    async def scenario():
        batcher = batcher_of(walk)
        asked = RowRequest(
            "encode", lambda batch, seeds: batch.x[:1], torch.zeros(2, 1, 4, 4), row_seeds(0, 2), None, None
        )
        walk.module.watch.gate.clear()
        other = asyncio.create_task(drawn(batcher, make_request(walk, n=3, seed=50)))
        await until(walk.module.watch.entered.is_set)
        short = asyncio.create_task(batcher.run(asked, "encode"))
        await until(lambda: batcher.requests == 2)
        walk.module.watch.gate.set()
        with pytest.raises(SamplingError):
            await short
        result = await other
        await batcher.close()
        return result

    assert torch.equal(asyncio.run(scenario()), run(walk.tasks, make_request(walk, n=3, seed=50)))


def test_where_the_device_is_lost_nothing_more_is_taken(walk):
    async def scenario():
        batcher = batcher_of(walk)
        walk.module.watch.on_call = lost_device
        with pytest.raises(SamplingError):
            await drawn(batcher, make_request(walk, n=1))
        with pytest.raises(OverloadError) as overloaded:
            await drawn(batcher, make_request(walk, n=1))
        assert not batcher.alive
        await batcher.close()
        return overloaded.value.retry_after_s

    assert asyncio.run(scenario()) == 1


def lost_device():
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_fault_in_a_preview_ends_nobodys_request(walk, caplog):
    def render(state):
        if not bool(state.done.all()):
            raise ValueError("half-way there is nothing to see")
        return walk.tasks.render(state)

    shown = []

    async def scenario():
        batcher = Batcher(replace(walk.tasks, render=render), BatchLimits(8, 1000, 1000))
        request = make_request(walk, n=1, options={"steps": 10})
        seen = batcher.take(request, previews=3, on_preview=shown.append)
        outcomes = await asyncio.gather(*map(batcher.finished, [seen, batcher.take(request)]))
        counts = batcher.counts
        await batcher.close()
        return request, outcomes, counts

    request, outcomes, counts = asyncio.run(scenario())
    for outcome in outcomes:
        assert torch.equal(outcome.samples, run(walk.tasks, request))
    assert (shown, counts.failures) == ([], 0)
    assert caplog.text.count("A preview failed.") == 4  # after calls 2, 4, 6 and 8 of 10


def test_a_fault_at_the_start_of_a_row_ends_only_its_request(walk):
    requests = [
        make_request(walk, n=6, seed=10, options={"poison_start": True}),  # seed 13 is its fourth row
        make_request(walk, n=6, seed=10),
        make_request(walk, n=6, seed=20, options={"poison_start": True}),  # started together with the first
    ]
    bad, *good = in_batcher(walk, requests, max_rows=9)
    assert isinstance(bad, SamplingError)
    for request, samples in zip(requests[1:], good, strict=True):
        assert torch.equal(samples, run(walk.tasks, request))


def test_requests_of_one_kind_are_started_as_one(walk):
    started = []
    begin = walk.tasks.starts["sample"]
    counting = {"sample": lambda request: started.append(request.seeds.tolist()) or begin(request)}
    tasks = replace(walk.tasks, starts=counting)

    async def scenario():
        batcher = Batcher(tasks, BatchLimits(8, 1000, 1000))
        given = [{"seed": 1}, {"seed": 5, "label": 2}, {"seed": 7}, {"seed": 3, "options": {"steps": 2}}]
        jobs = [batcher.take(make_request(walk, n=1, **each)) for each in given]
        started.clear()  # of rows that were started for their price
        outcomes = await asyncio.gather(*map(batcher.finished, jobs))
        await batcher.close()
        return given, outcomes

    given, outcomes = asyncio.run(scenario())
    assert sorted(started) == [[1, 7], [3], [5]]
    for each, outcome in zip(given, outcomes, strict=True):
        assert torch.equal(outcome.samples, run(walk.tasks, make_request(walk, n=1, **each)))


def test_closing_finishes_what_was_taken_and_refuses_the_rest(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk)
        watch.gate.clear()
        taken = asyncio.create_task(drawn(batcher, make_request(walk, n=3)))
        await until(watch.entered.is_set)
        closing = asyncio.create_task(batcher.close())
        await until(lambda: not batcher.alive)
        with pytest.raises(OverloadError):
            await drawn(batcher, make_request(walk, n=1))
        watch.gate.set()
        await closing
        return await taken

    before = set(threading.enumerate())
    assert torch.equal(asyncio.run(scenario()), run(walk.tasks, make_request(walk, n=3)))
    assert not set(threading.enumerate()) - before


def test_closing_in_a_hurry_refuses_what_is_not_done(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk)
        watch.gate.clear()
        taken = asyncio.create_task(drawn(batcher, make_request(walk, n=3)))
        await until(watch.entered.is_set)
        await batcher.close(timeout_s=0.01)
        with pytest.raises(OverloadError):
            await taken
        watch.gate.set()

    asyncio.run(scenario())


def test_calls_are_filled_up_to_the_sizes_they_may_have(walk):
    requests = [make_request(walk, n=n, seed=100 * n, options={"steps": 2 + n}) for n in (1, 2, 3)]
    results = in_batcher(walk, requests, max_rows=8, sizes=(4, 8))
    assert {len(call) for call in walk.module.watch.calls} == {4, 8}
    for request, together in zip(requests, results, strict=True):
        assert torch.equal(together, run(walk.tasks, request))


def test_a_request_that_could_not_end_in_time_is_refused_at_once_and_a_shorter_one_is_not(walk):
    watch = walk.module.watch

    async def scenario():
        batcher = batcher_of(walk, max_rows=4)
        batcher._engine.speed.add(4, 4, 0.01)  # 400 evaluations a second
        watch.gate.clear()
        large = batcher.take(make_request(walk, n=100, options={"steps": 20}))
        with pytest.raises(OverloadError) as caught:
            batcher.take(make_request(walk, n=100, options={"steps": 20}), within_s=5)
        short = batcher.take(make_request(walk, n=1), within_s=1)
        watch.gate.set()
        await batcher.finished(short)
        batcher.leave(large)
        await batcher.close()
        return caught.value.retry_after_s

    assert asyncio.run(scenario()) == 7  # both would be done after 10 s, 6.5 s later than 0.7 of the 5 s


def test_requests_that_share_calls_that_take_as_long_for_many_rows_are_not_refused_as_if_they_went_one_by_one(walk):
    async def scenario():
        batcher = batcher_of(walk, max_rows=32)
        walk.module.watch.on_call = lambda: time.sleep(0.01)
        await drawn(batcher, make_request(walk, n=1, options={"steps": 20}))
        many = [make_request(walk, n=1, seed=seed, options={"steps": 50}) for seed in range(32)]
        jobs = [batcher.take(request, within_s=3) for request in many]
        with pytest.raises(OverloadError):
            batcher.take(make_request(walk, n=1, options={"steps": 50}), within_s=0.3)
        for job in jobs:
            batcher.leave(job)
        await batcher.close()

    asyncio.run(scenario())


def test_an_outcome_says_what_it_took_and_how_long_it_waited(walk):
    async def scenario():
        batcher = batcher_of(walk)
        walk.module.watch.on_call = lambda: time.sleep(0.005)
        outcome = await batcher.run(make_request(walk, n=3, options={"steps": 4, "cost": 2}))
        await batcher.close()
        return outcome, batcher.counts

    outcome, counts = asyncio.run(scenario())
    assert (outcome.evaluations, outcome.calls) == (24, 4)
    assert outcome.computed_ms >= 20
    assert 0 <= outcome.queued_ms < 1000
    assert (counts.calls, counts.rows, counts.evaluations, counts.failures) == (4, 12, 24, 0)


def test_a_row_that_takes_long_is_given_fewer_places(walk):
    """A task of one go that takes as long as many calls is priced like them, and let run in small parts."""
    slow = RowRequest(
        "slow", lambda batch, seeds: (time.sleep(0.01 * len(batch)), batch.x)[1], torch.rand(16, 3), torch.arange(16)
    )
    parts = []

    def counted(batch, seeds):
        parts.append(len(batch))
        return slow.task(batch, seeds)

    async def scenario():
        batcher = batcher_of(walk, max_rows=8)
        walk.module.watch.on_call = lambda: time.sleep(0.01)
        await drawn(batcher, make_request(walk, n=8, options={"steps": 20}))  # about 800 evaluations a second
        await batcher.run(slow, "slow")
        outcome = await batcher.run(replace(slow, task=counted), "slow")
        await batcher.close()
        return outcome

    outcome = asyncio.run(scenario())
    assert torch.equal(outcome.samples, slow.x)
    assert max(parts) < 8
    assert outcome.evaluations > 16


def test_a_row_task_whose_first_call_was_cold_is_not_refused_for_ever(walk):
    colds = iter([0.5])

    def task(batch, seeds):
        time.sleep(next(colds, 0.001))
        return batch.x

    def of(rows):
        return RowRequest("log_prob", task, torch.rand(rows, 3), torch.arange(rows))

    async def scenario():
        batcher = batcher_of(walk, max_rows=1, max_evaluations=100)
        walk.module.watch.on_call = lambda: time.sleep(0.001)
        for _ in range(3):
            await drawn(batcher, make_request(walk, n=5, options={"steps": 20}))  # up to 1000 evaluations a second
        await batcher.run(of(1), "log_prob")
        with pytest.raises(RequestError) as caught:
            batcher.take(of(2), "log_prob")
        first = await batcher.run(of(1), "log_prob")
        second = await batcher.run(of(10), "log_prob")
        await batcher.close()
        return caught.value, first, second

    refused, first, second = asyncio.run(scenario())
    assert refused.field == "x"
    assert "steps" not in str(refused)
    assert first.evaluations == 100  # what one request may take at most
    assert second.evaluations < 100  # undiluted
