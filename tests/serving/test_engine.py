from types import SimpleNamespace

import pytest
import torch

from kinfolk.serving import engine as engines
from kinfolk.serving.engine import Engine
from kinfolk.serving.rows import Job, RowRequest


@pytest.fixture
def now(monkeypatch):
    """The engine's clock, which tasks move."""
    clock = SimpleNamespace(s=0.0)
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=lambda: clock.s))
    return clock


@pytest.mark.parametrize("sampled_per_s", [0, 5000])
def test_what_a_row_costs_follows_from_its_time_however_often_it_was_asked_for(walk, now, sampled_per_s):
    engine = Engine(walk.tasks, max_rows=8)
    if sampled_per_s:
        engine.counts.calls = 1
        engine.speed.add(8, 8, 8 / sampled_per_s)

    def busy(batch, seeds):
        now.s += 0.008 + 0.002 * len(batch)  # rows that go together are cheaper, as they are on any machine
        return batch.x

    prices, turns = [], [1, 8, 3] * 100
    for together in turns:
        request = RowRequest("busy", busy, torch.zeros(1, 2), torch.arange(1))
        prices.append(engine.prices.of(request, "busy"))
        jobs = [Job(request, "busy", prices[-1], None, None, prices[-1]) for _ in range(together)]
        assert len(engine.turn(jobs)) == together
    if sampled_per_s:
        assert prices[-1] == pytest.approx(0.003 * sampled_per_s, abs=1)  # the time a row takes among 8
    else:
        assert set(prices) == {1}  # where nothing is sampled a row is the unit
        assert engine.speed.evaluations_per_s == pytest.approx(8 / 0.024, rel=0.1)  # of full calls
    assert engine.counts.evaluations == sum(price * rows for price, rows in zip(prices, turns, strict=True))
