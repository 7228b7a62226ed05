import pytest

from kinfolk.serving.scheduling import Speed, retry_after_s, shares, until_done


@pytest.mark.parametrize(
    ("wanted", "slots", "expected"),
    [
        ([1000], 64, [64]),
        ([1000, 1], 64, [63, 1]),
        ([1000, 10, 1000], 30, [10, 10, 10]),
        ([3, 1000, 2], 30, [3, 25, 2]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([0, 4], 3, [0, 3]),
        ([], 3, []),
        ([2, 2], 100, [2, 2]),
    ],
)
def test_slots_are_divided_evenly(wanted, slots, expected):
    assert shares(wanted, slots) == expected


def test_no_slot_is_left_idle_while_a_row_waits():
    for wanted in ([7, 1, 3], [1, 1, 1, 1], [50, 2]):
        for slots in range(20):
            assert sum(shares(wanted, slots)) == min(slots, sum(wanted))


def test_nobody_gets_two_more_than_a_request_that_still_waits():
    given = shares([20, 7, 9, 3], 23)
    assert given[3] == 3
    assert max(given) - min(given[:3]) <= 1


def test_waiting_time_is_the_excess_over_the_rate_rounded_up():
    assert retry_after_s(1001, 100.0) == 11
    assert retry_after_s(1, 1e9) == 1
    assert retry_after_s(500, 0.0) == 1


def test_speed_is_evaluations_over_seconds_and_forgets():
    speed = Speed()
    assert speed.evaluations_per_s == 0
    speed.add(10, 0.1)
    assert speed.evaluations_per_s == pytest.approx(100)
    for _ in range(200):
        speed.add(10, 0.01)
    assert speed.evaluations_per_s == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "queued", "slots", "expected"),
    [
        (10, [], 8, 10),
        (10, [4, 1000], 8, 10 + 4 + 10),  # the long one gets as much as this one meanwhile
        (10, [4, 1000], 2, 10 + 4 + 1000),  # both are in front of it
    ],
)
def test_a_request_is_done_after_its_share_or_after_those_in_front_of_it(asked, queued, slots, expected):
    assert until_done(asked, queued, slots) == expected
