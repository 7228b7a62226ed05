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


def measured(seconds_of, rows, full=32, cost=1):
    speed = Speed(full)
    for each in rows:
        speed.add(each, cost * each, cost * seconds_of(each))
    return speed


def test_speed_is_that_of_full_calls_and_forgets():
    speed = Speed(10)
    assert speed.evaluations_per_s == 0
    speed.add(10, 10, 0.1)
    assert speed.evaluations_per_s == pytest.approx(100)
    for _ in range(1000):
        speed.add(10, 10, 0.01)
    assert speed.evaluations_per_s == pytest.approx(1000, rel=1e-3)


def test_the_second_call_replaces_what_the_first_one_took():
    speed = Speed(32)
    speed.add(1, 1, 2.0)
    speed.add(1, 1, 0.01)
    assert speed.seconds(50, 50) == pytest.approx(0.5)


@pytest.mark.parametrize("cost", [1, 2])
def test_a_call_that_takes_as_long_for_many_rows_is_as_quick_when_more_come(cost):
    speed = measured(lambda rows: 0.01, [1] * 50, cost=cost)
    assert speed.seconds(32 * 50, 50) == pytest.approx(0.5, rel=1e-3)
    assert speed.seconds(64 * 50, 50) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("cost", [1, 2])
@pytest.mark.parametrize("rows", [[1, 8] * 10, [1, 32, *[1] * 300], [32, 8, 1] * 5])
def test_a_call_whose_time_grows_with_rows_is_known_to(cost, rows):
    speed = measured(lambda rows: 0.0025 + 0.0045 * rows, rows, cost=cost)  # of a diffusion model on two CPUs
    assert speed.seconds(32 * 50, 50) == pytest.approx(50 * 0.1465, rel=0.1)
    assert speed.seconds(50, 50) == pytest.approx(50 * 0.007, rel=0.1)
    assert speed.evaluations_per_s == pytest.approx(32 / 0.1465, rel=0.1)


def test_no_time_is_taken_as_falling_with_rows_or_below_zero():
    assert measured(lambda rows: 0.02 - 0.0005 * rows, [1, 32] * 20).seconds(32, 1) > 0.003
    assert measured(lambda rows: 0.001 * rows**2, [1, 8] * 20).seconds(1, 1) > 0


def test_a_slow_wide_call_does_not_count_for_ever():
    speed = measured(lambda rows: 0.01, [1, 1])
    speed.add(32, 32, 2.0)
    for _ in range(1500):
        speed.add(1, 1, 0.01)
    assert speed.seconds(32 * 50, 50) < 1.0


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
