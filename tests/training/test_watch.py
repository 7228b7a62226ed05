"""A monitor's looks at toys: what is measured, when an alarm is given, and that it is given once."""

from dataclasses import asdict

import pytest
import torch
from kinfolk_toy import FAMILY as TOY
from kinfolk_toy import GaussianConfig

from kinfolk import sampling
from kinfolk.config import Training
from kinfolk.data.source import keep
from kinfolk.metrics.alarm import AlarmConfig
from kinfolk.metrics.collapse import collapse_measures
from kinfolk.monitor import Monitor
from kinfolk.training import watch as module
from kinfolk.training.state import build, prepare
from kinfolk.training.watch import SEED, Watch, alarms, since_alarm, unjudged

PLAN = Training(samples=1000, batch_size=10)
SPREAD = {"missing": None, "effective_bins": None, "support_share": None}  # all a Gaussian has in common with digits
MONITOR = Monitor(samples=200, alarm=AlarmConfig(grace_samples=100, looks=2, limits=SPREAD))


@pytest.fixture
def state(digits):
    """A Gaussian with the moments of the data."""
    found = prepare(build(TOY, GaussianConfig(), digits.spec, seed=3), PLAN)
    x = digits.source("train").take(0, 1000).x
    with torch.no_grad():
        found.model.module.mean.copy_(x.mean(0))
        found.model.module.log_std.copy_(x.std(0).clamp_min(0.05).log())
    return found


def looked(watch, state, *spreads):
    """An alarm, or None, for each look at the model with its deviations so many times what they are."""
    found, whole = [], state.model.module.log_std.detach().clone()
    for spread in spreads:
        state.samples_seen += 100
        with torch.no_grad():
            state.model.module.log_std.copy_(whole + torch.tensor(spread).log())
        found.append(watch.look(state, {"gaussian/loss": 1.0}))
    return found


def test_a_model_that_stays_well_gives_no_alarm_and_one_whose_samples_become_alike_does(state, digits):
    watch = Watch.over(MONITOR, digits, PLAN.samples)
    assert looked(watch, state, 1.0, 1.0, 1.0) == [None, None, None]
    first, second, third = looked(watch, state, 0.02, 0.02, 0.02)
    assert first is None
    assert second.samples_seen == 500
    assert second.what == "distance_ratio"
    assert third is None  # it was told
    assert [alarm.samples_seen for alarm in alarms(state.looks)] == [500]
    assert second.began == 400
    assert [look.samples_seen for look in since_alarm(state.looks)] == [600]


def test_a_change_too_late_to_be_judged_is_told(state, digits):
    assert unjudged(state, MONITOR, PLAN.samples) is None  # nothing changed, and nobody looked
    looked(Watch.over(MONITOR, digits, PLAN.samples), state, *[1.0] * 10)
    state.changed_at = 700
    assert unjudged(state, MONITOR, PLAN.samples) is None
    state.changed_at = 800
    assert "2 looks" not in (said := unjudged(state, MONITOR, PLAN.samples))
    assert said == (
        "after an alarm its settings changed at 800 samples, and 1 looks after 900 samples are too few to judge them by"
    )


def test_looks_are_kept_as_plain_values_and_read_back_as_they_were(state, digits):
    watch = Watch.over(MONITOR, digits, PLAN.samples)
    looked(watch, state, 1.0)
    (look,) = since_alarm(state.looks)
    assert asdict(look) == {key: value for key, value in state.looks[0].items() if key != "alarm"}
    assert look.measures == watch.measures(state.served())
    assert look.logs == {"gaussian/loss": 1.0}


def test_a_run_on_some_classes_is_held_against_those_alone(digits):
    two = keep(digits.source("train"), (0, 1)).batch(5, 0, 250).x
    missing = [
        collapse_measures(Watch.over(MONITOR, digits, 1000, keep_labels=labels).reference, two.flatten(1)).missing
        for labels in ((), (0, 1))
    ]
    assert missing[0] > 0.5
    assert missing[1] < 0.1


def test_no_row_of_a_look_is_one_of_an_evaluation():
    evaluated, looked_at = (sampling.row_seeds(seed, sampling.LARGEST_N) for seed in (1, SEED))
    assert looked_at[0] > evaluated[-1]


def test_samples_that_are_not_finite_count_as_all_alike_and_end_no_run(state, digits, monkeypatch):
    watch = Watch.over(MONITOR, digits, PLAN.samples)
    whole = watch.measures(state.served())
    drawn = sampling.sample

    def some_broken(model, rows, seed):
        x = drawn(model, rows, seed)
        x[: rows // 2] = float("inf")
        return x

    monkeypatch.setattr(module.sampling, "sample", some_broken)
    monkeypatch.setattr(module, "as_shown", lambda x, spec: x)
    half = watch.measures(state.served())
    assert half.distance_ratio == pytest.approx(whole.distance_ratio, rel=0.35)
    assert half.support < whole.support
