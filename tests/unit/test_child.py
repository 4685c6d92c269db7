"""The state machine of one supervised process."""

from operations_center.supervisor.child import (
    FAILED_AFTER,
    LONGEST_BACKOFF_MS,
    STABLE_MS,
    Child,
    ChildState,
    became_ready,
    ended,
    found_alive,
    started,
    stopped,
)

NOW = 1_000_000


def after_deaths(count: int, jitter: float = 0.0) -> Child:
    child = Child("goal")
    for _ in range(count):
        child = ended(started(child), NOW, jitter, by_itself=True)
    return child


def test_a_new_child_is_due_at_once_and_not_again_while_it_lives() -> None:
    child = Child("goal")
    assert child.is_due(0)
    child = started(child)
    assert (child.state, child.restarts) == (ChildState.STARTING, 0)
    assert not child.is_due(NOW)
    assert not became_ready(child, NOW).is_due(NOW)


def test_a_child_that_was_ready_comes_back_at_once_however_often() -> None:
    child = Child("goal")
    for restarts in range(100):
        child = ended(became_ready(started(child), NOW - 1), NOW, jitter=1.0, by_itself=False)
        assert (child.state, child.start_at, child.deaths) == (ChildState.STARTING, NOW, 0)
        assert child.restarts == restarts
        assert child.is_due(NOW)


def test_deaths_before_ready_wait_twice_as_long_each_time() -> None:
    waits = [(after_deaths(count).start_at or 0) - NOW for count in range(1, FAILED_AFTER)]
    assert waits == [500, 1_000, 2_000, 4_000]
    assert all(after_deaths(count).state is ChildState.BACKOFF for count in range(1, FAILED_AFTER))


def test_chance_spreads_a_wait_by_up_to_a_quarter() -> None:
    assert (after_deaths(3, jitter=1.0).start_at or 0) - NOW == 2_500
    assert (after_deaths(3, jitter=0.5).start_at or 0) - NOW == 2_250


def test_a_child_that_backs_off_is_due_when_its_wait_is_over() -> None:
    child = after_deaths(1)
    assert not child.is_due(NOW + 499)
    assert child.is_due(NOW + 500)


def test_after_five_deaths_it_has_failed_and_is_tried_slowly_for_ever() -> None:
    for deaths, wait in ((5, 8_000), (6, 16_000), (7, LONGEST_BACKOFF_MS), (5_000, LONGEST_BACKOFF_MS)):
        child = after_deaths(deaths)
        assert (child.state, child.start_at) == (ChildState.FAILED, NOW + wait)
    assert started(child).state is ChildState.STARTING


def test_a_second_of_being_ready_forgets_the_deaths() -> None:
    child = ended(became_ready(started(after_deaths(7)), NOW - STABLE_MS), NOW, 0.0, by_itself=True)
    assert (child.state, child.start_at, child.deaths) == (ChildState.STARTING, NOW, 0)
    again = ended(started(child), NOW, 0.0, by_itself=True)
    assert (again.state, again.start_at) == (ChildState.BACKOFF, NOW + 500)


def test_a_child_that_exits_each_time_just_after_it_was_ready_comes_back_at_once_and_then_has_failed() -> None:
    child = Child("goal")
    for deaths in range(1, FAILED_AFTER):
        child = ended(became_ready(started(child), NOW - 1), NOW, 0.0, by_itself=True)
        assert (child.state, child.start_at, child.deaths) == (ChildState.STARTING, NOW, deaths)
    child = ended(became_ready(started(child), NOW - 1), NOW, 0.0, by_itself=True)
    assert (child.state, child.start_at) == (ChildState.FAILED, NOW + 8_000)


def test_a_survivor_is_not_started_a_second_time_and_is_no_restart() -> None:
    child = found_alive(Child("goal"))
    assert (child.state, child.restarts) == (ChildState.STARTING, 0)
    assert not child.is_due(NOW)
    assert became_ready(child, NOW).state is ChildState.READY
    assert found_alive(after_deaths(3)).restarts == 2


def test_what_was_stopped_from_any_state_stays_so() -> None:
    for child in (
        Child("goal"),
        started(Child("goal")),
        became_ready(Child("goal"), NOW),
        after_deaths(2),
        after_deaths(9),
    ):
        ended_for_good = stopped(child)
        assert ended_for_good.state is ChildState.STOPPED
        assert not ended_for_good.is_due(10**15)
