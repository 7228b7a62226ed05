import pytest

from kinfolk.errors import ConfigError
from kinfolk.monitor import Change, Monitor
from kinfolk.training.loop import _due

RECIPE = {"seed": 3, "model": {"penalties": [{"gamma": 2.0}], "lr": 0.1, "packing": 1, "conditional": True}}


def test_changes_add_up_from_alarm_to_alarm():
    monitor = Monitor(
        act="change",
        changes=(
            Change(multiply={"model.penalties.0.gamma": 3.0}, new_seed=True),
            Change(put={"model.packing": 2}, multiply={"model.penalties.0.gamma": 0.5}),
        ),
    )
    assert monitor.changed(RECIPE, 0) == RECIPE
    assert monitor.changed(RECIPE, 1) == {
        **RECIPE,
        "seed": 4,
        "model": {**RECIPE["model"], "penalties": [{"gamma": 6.0}]},
    }
    twice = monitor.changed(RECIPE, 2)
    assert twice["seed"] == 4
    assert twice["model"] == {**RECIPE["model"], "packing": 2, "penalties": [{"gamma": 3.0}]}
    assert RECIPE["model"]["penalties"] == [{"gamma": 2.0}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"multiply": {"model.conditional": 2.0}}, "True, which cannot be multiplied by 2"),
        ({"multiply": {"model.penalties": 2.0}}, "which cannot be multiplied"),
        ({"multiply": {"model.lrr": 2.0}}, "no key 'lrr'. Did you mean 'lr'"),
        ({"put": {"model.lr.rate": 2.0}}, "plain value"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        Change(**change).applied(RECIPE)


def test_a_monitor_that_shall_change_says_what():
    with pytest.raises(ValueError, match="needs changes"):
        Monitor(act="change")
    with pytest.raises(ValueError, match="changes nothing"):
        Monitor(act="change", changes=({},))
    with pytest.raises(ValueError, match=r"changes=.* would have no effect: it is for act=change"):
        Monitor(act="stop", changes=(Change(new_seed=True),))


@pytest.mark.parametrize(
    ("values", "looks"),
    [
        ({"every_samples": 600}, 2),  # at 600 and, last of all, 1000
        ({"alarm": {"grace_samples": 900}}, 2),  # at 950 and 1000
        ({"every_samples": 300, "alarm": {"looks": 5}}, 3),
    ],
)
def test_a_monitor_that_could_never_alarm_is_refused(values, looks):
    monitor = Monitor.model_validate(values)
    if "alarm" not in values:
        monitor.check(1400, 10)
    with pytest.raises(ConfigError, match=rf"{looks} looks, every .* could never be given"):
        monitor.check(1000 if looks < 3 else 1100, 10)


@pytest.mark.parametrize(("every", "batch", "looks"), [(100, 512, 2), (300, 256, 3), (256, 256, 4), (1100, 64, 1)])
def test_looks_come_after_whole_batches_as_the_loop_has_them(every, batch, looks):
    """Of 1,024 samples, without a grace."""
    ends = range(batch, 1025, batch)
    assert sum("look" in _due({"look": every}, seen - batch, seen, 1024) for seen in ends) == looks
    if looks > 1:
        Monitor(every_samples=every, alarm={"grace_samples": 0, "looks": looks}).check(1024, batch)
    with pytest.raises(ConfigError, match=rf"{looks} looks, every .* an alarm takes {looks + 1}\. It could never"):
        Monitor(every_samples=every, alarm={"grace_samples": 0, "looks": looks + 1}).check(1024, batch)
