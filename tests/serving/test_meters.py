import asyncio

import pytest

from kinfolk.sampling import make_request
from kinfolk.serving import meters as module
from kinfolk.serving.batcher import Outcome
from kinfolk.serving.config import Rollout
from kinfolk.serving.meters import Meters


class Kept:
    """A metric that keeps what it is told."""

    made: dict

    def __init__(self, name, *_):
        Kept.made[name] = self
        self.told = []

    def set(self, value, tags):
        self.told.append((value, tags["version"]))

    inc = observe = lambda self, value=1.0, tags=None: self.told.append((value, tags["version"]))

    @property
    def total(self):
        return sum(value for value, _ in self.told)


@pytest.fixture
def kept(monkeypatch):
    Kept.made = {}
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(module, name, Kept)
    return Kept.made


def test_what_was_done_is_told_once_and_how_things_stand_each_time(kept, make_host, walk):
    async def scenario():
        host = make_host(walk)
        meters = Meters(host)
        for n in (4, 2):
            await host.current.batcher.run(make_request(walk, n=n, options={"steps": 5}))
            meters._tell(host.current)
        meters._tell(host.current)
        speed = host.current.batcher.evaluations_per_s
        await host.close()
        return speed

    speed = asyncio.run(scenario())
    assert kept["kinfolk_evaluations_total"].total == 30
    assert kept["kinfolk_calls_total"].total == 10
    assert kept["kinfolk_failures_total"].total == 0
    assert [value for value, _ in kept["kinfolk_batch_fill"].told] == [4 / 8, 2 / 8]
    assert [value for value, _ in kept["kinfolk_rows_in_flight"].told] == [0, 0, 0]
    assert kept["kinfolk_evaluations_per_second"].told[-1] == (speed, "3")
    assert speed > 0


def test_an_answer_is_counted_with_its_times_in_seconds(kept, make_host, walk):
    async def scenario():
        host = make_host(walk)
        meters = Meters(host)
        for task in ("sample", "sample", "inpaint"):
            meters.answered(host.current, task, Outcome(None, 3, 3, queued_ms=250.0, computed_ms=1500.0))
        for _ in range(2):
            meters._tell_all()
        await host.close()

    asyncio.run(scenario())
    assert kept["kinfolk_queue_seconds"].told == [(0.25, "3")] * 3
    assert kept["kinfolk_compute_seconds"].told == [(1.5, "3")] * 3
    assert kept["kinfolk_answers_total"].told == [(2, "3"), (1, "3")]


def test_a_version_that_is_gone_is_told_once_more_and_stands_at_nothing(kept, make_host, make_walk, monkeypatch):
    monkeypatch.setattr(module, "_EVERY_S", 0.001)

    def last(name):
        return {version: value for value, version in kept[name].told}

    async def scenario():
        host, new = make_host(make_walk()), make_walk()
        host.served = host.served.model_copy(update={"rollout": Rollout(trial_s=0)})
        old = host.current.model.module
        metering = asyncio.create_task(Meters(host).run())
        old.watch.gate.clear()
        asking = asyncio.create_task(host.current.batcher.run(make_request(new, n=4, options={"steps": 5})))
        while not any(kept["kinfolk_rows_in_flight"].told) or kept["kinfolk_rows_in_flight"].told[-1][0] != 4:
            await asyncio.sleep(0.001)
        await host.roll_out(new, "4")
        old.watch.gate.set()
        await asking
        await host.retired()
        while kept["kinfolk_requests"].told[-1][1] != "4" or kept["kinfolk_evaluations_total"].total < 20:
            await asyncio.sleep(0.001)
        while last("kinfolk_rows_in_flight")["3"] or last("kinfolk_evaluations_per_second")["3"]:
            await asyncio.sleep(0.001)
        metering.cancel()
        await asyncio.gather(metering, return_exceptions=True)
        await host.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert kept["kinfolk_evaluations_total"].total == 20
    for name in ("kinfolk_rows_in_flight", "kinfolk_evaluations_per_second"):
        assert last(name) == {"3": 0.0, "4": 0.0}


def test_an_answer_that_is_read_after_its_version_is_gone_is_counted_alone(kept, make_host, make_walk):
    async def scenario():
        host = make_host(make_walk())
        host.served = host.served.model_copy(update={"rollout": Rollout(trial_s=0)})
        meters, old = Meters(host), host.current
        outcome = await old.batcher.run(make_request(old.model, n=2, options={"steps": 5}))
        meters._tell_all()
        await host.roll_out(make_walk(), "4")
        await host.retired()
        meters._tell_all()
        meters.answered(old, "sample", outcome)
        meters._tell_all()
        await host.close()

    asyncio.run(scenario())
    assert kept["kinfolk_evaluations_total"].total == 10
    assert kept["kinfolk_answers_total"].told == [(1, "3")]


def test_of_two_versions_of_one_number_the_one_in_service_is_seen(kept, make_host, make_walk):
    async def scenario():
        host = make_host(make_walk())
        host.served = host.served.model_copy(update={"rollout": Rollout(trial_s=0)})
        meters = Meters(host)
        meters._tell_all()
        old = host.current.model.module
        old.watch.gate.clear()
        ending = asyncio.create_task(host.current.batcher.run(make_request(host.current.model, n=1)))
        while not old.watch.entered.is_set():
            await asyncio.sleep(0.001)
        new = make_walk()
        await host.roll_out(new, "3")
        new.module.watch.gate.clear()
        asking = [asyncio.create_task(host.current.batcher.run(make_request(new, n=1))) for _ in range(2)]
        await asyncio.sleep(0)
        meters._tell_all()
        both = kept["kinfolk_requests"].told[-1]
        old.watch.gate.set()
        await ending
        await host.retired()
        meters._tell_all()
        new.module.watch.gate.set()
        await asyncio.gather(*asking)
        await host.close()
        return both

    assert asyncio.run(scenario()) == (2, "3")
    assert kept["kinfolk_requests"].told[-1] == (2, "3")


def test_a_version_that_is_loaded_again_is_counted_from_its_own_start(kept, make_host, walk):
    async def scenario():
        host = make_host(walk)
        meters = Meters(host)
        for _ in range(2):
            await host.current.batcher.run(make_request(walk, n=2, options={"steps": 5}))
            meters._tell_all()
            await host.unload()
            host.load(walk, "3")
            meters._tell_all()
        await host.close()

    asyncio.run(scenario())
    assert kept["kinfolk_evaluations_total"].total == 20
