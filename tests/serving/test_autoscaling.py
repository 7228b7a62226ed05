import subprocess
import sys
from types import SimpleNamespace

import pytest

from kinfolk.serving.autoscaling import BUSY, QUEUED, ByWork, WorkMeter, replicas_for
from kinfolk.serving.engine import Counts


@pytest.mark.parametrize(
    ("queued_s", "busy", "requests", "expected"),
    [
        (0.0, 0.0, 0, 0),
        (0.0, 0.0, 1, 1),  # a request that no replica has seen yet
        (0.0, 0.01, 0, 1),
        (1.0, 0.8, 9, 1),
        (1.1, 0.2, 9, 2),
        (0.1, 0.81, 9, 2),  # always computing, though nothing waits
        (7.9, 0.0, 9, 8),
        (0.4, 2.4, 9, 3),
        (0.0, 1.5, 0, 2),
    ],
)
def test_replicas_follow_the_work_that_is_there(queued_s, busy, requests, expected):
    assert replicas_for(queued_s, busy, requests, target_queue_s=1.0, target_busy=0.8) == expected


def test_the_policy_takes_the_last_word_of_each_replica():
    def said(*values):
        return [SimpleNamespace(value=value) for value in values]

    metrics = {QUEUED: {"a": said(9.0, 0.5), "b": said(1.0), "c": []}, BUSY: {"a": said(0.0, 0.1)}}
    context = SimpleNamespace(raw_metrics=metrics, total_num_requests=3.0)
    assert ByWork(target_queue_s=0.5, target_busy=0.8)(context) == (3, {})
    assert ByWork(1.0, 0.8)(SimpleNamespace(raw_metrics=None, total_num_requests=0.0)) == (0, {})


def test_a_replica_reports_its_queue_in_seconds_and_how_busy_it_was_since():
    now = [100.0]
    load = WorkMeter(lambda: now[0])
    counts = Counts()
    batcher = SimpleNamespace(counts=counts, evaluations_per_s=50.0, evaluations=100)
    now[0], counts.seconds = 102.0, 1.5
    assert load.since_last([batcher]) == {QUEUED: 2.0, BUSY: 0.75}
    now[0] = 103.0
    assert load.since_last([batcher])[BUSY] == 0
    fresh = SimpleNamespace(counts=Counts(seconds=0.5), evaluations_per_s=0.0, evaluations=7)
    now[0] = 104.0
    counts.seconds = 1.75
    assert load.since_last([batcher, fresh]) == {QUEUED: 2.0, BUSY: 0.75}  # one on trial beside it


def test_the_controller_loads_no_torch_for_it():
    code = "import sys, kinfolk.serving.autoscaling as a; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
