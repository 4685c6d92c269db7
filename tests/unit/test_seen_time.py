"""Time that was seen to pass, whatever the wall clock says."""

from operations_center.ledger.seen_time import STEADY_MS, Reading, SeenTime, jump_of, observe

HOUR = 3_600_000
DAY = 24 * HOUR
T0 = 1_700_000_000_000


def seen_after(*readings: Reading) -> SeenTime:
    seen = None
    for reading in readings:
        seen = observe(seen, reading)
    assert seen is not None
    return seen


def test_time_counts_where_both_clocks_go() -> None:
    assert seen_after(Reading("a", T0, 0), Reading("a", T0 + HOUR, HOUR)).seen == HOUR


def test_a_wall_clock_that_jumps_ahead_adds_nothing() -> None:
    seen = seen_after(Reading("a", T0, 0), Reading("a", T0 + 60 * DAY, 30_000))
    assert (seen.seen, seen.jumped_at, seen.jumped_by) == (30_000, T0, 60 * DAY - 30_000)


def test_a_wall_clock_that_is_set_back_takes_nothing_away() -> None:
    seen = seen_after(Reading("a", T0, 0), Reading("a", T0 - DAY, HOUR), Reading("a", T0 - DAY + HOUR, 2 * HOUR))
    assert seen.seen == 2 * HOUR


def test_a_clock_that_is_slewed_has_not_jumped() -> None:
    seen = seen_after(Reading("a", T0, 0), Reading("a", T0 + 30_100, 30_000))
    assert seen.jumped_by is None


def test_time_in_which_the_machine_was_off_counts_once_the_clock_has_gone_steadily() -> None:
    before = Reading("a", T0, HOUR)
    booted = Reading("b", T0 + DAY, 10_000)
    assert seen_after(before, booted).seen == 0
    steady = Reading("b", T0 + DAY + STEADY_MS, 10_000 + STEADY_MS)
    assert seen_after(before, booted, steady).seen == DAY + STEADY_MS


def test_a_machine_that_boots_ahead_and_is_set_right_has_seen_only_what_passed() -> None:
    before = Reading("a", T0, HOUR)
    ahead = Reading("b", T0 + 60 * DAY, 10_000)
    right = Reading("b", T0 + HOUR, 70_000)
    later = Reading("b", T0 + HOUR + STEADY_MS, 70_000 + STEADY_MS)
    assert seen_after(before, ahead, right).seen == 60_000
    assert seen_after(before, ahead, right, later).seen == HOUR + STEADY_MS
    assert seen_after(before, ahead, right, later).pending == 0


def test_a_machine_that_boots_far_behind_takes_nothing_away() -> None:
    before = Reading("a", T0, HOUR)
    behind = Reading("b", 1_000, 10_000)
    right = Reading("b", T0 + HOUR, 70_000)
    assert seen_after(before, behind).pending == 0
    assert seen_after(before, behind, right).seen == 60_000


def test_nothing_is_said_of_a_jump_over_a_boot() -> None:
    assert jump_of(seen_after(Reading("a", T0, 0)), Reading("b", T0 + DAY, 0)) == 0
