"""How long a provider is left alone: as long as it asks for, and longer the longer it fails, not the more that wait."""

import pytest

from operations_center.admission import Breaker
from operations_center.model import Health
from operations_center.providers import Ill
from operations_center.providers.health import (
    BREAKS_AT,
    BROKEN_MS,
    COOLDOWN_MS,
    LEAST_COOLDOWN_MS,
    LONGEST_COOLDOWN_MS,
    after_answer,
    after_run,
    breaker_of,
    closed_by_person,
    not_before,
)

NOW = 1_000_000
BREAKER = Breaker(failures=3, within_ms=60_000, cooldown_ms=300_000)


def after_failures(count: int, health: Health | None = None, *, now: int = NOW) -> Health | None:
    for _ in range(count):
        health = after_answer(health, Ill.FAILING, None, now)
    return health


def test_failures_in_a_row_open_the_breaker() -> None:
    assert not_before(after_failures(BREAKS_AT - 1), NOW) is None
    assert not_before(after_failures(BREAKS_AT), NOW) == NOW + BROKEN_MS


def test_what_was_asked_before_the_breaker_opened_does_not_keep_it_open_longer() -> None:
    assert not_before(after_failures(BREAKS_AT + 50), NOW) == NOW + BROKEN_MS


def test_each_further_try_that_fails_opens_it_for_twice_as_long() -> None:
    again = NOW + BROKEN_MS
    assert not_before(after_failures(1, after_failures(BREAKS_AT), now=again), again) == again + 2 * BROKEN_MS


def test_an_answer_closes_it() -> None:
    assert after_answer(after_failures(BREAKS_AT + 3), None, None, NOW) is None


def test_an_answer_that_was_under_way_does_not_end_a_cooldown() -> None:
    throttled = after_answer(after_failures(1), Ill.THROTTLED, 60_000, NOW)
    answered = after_answer(throttled, None, None, NOW + 1)
    assert not_before(answered, NOW + 1) == NOW + 60_000
    assert answered is not None
    assert answered.failures == 0
    assert after_answer(answered, None, None, NOW + 60_000) is None


@pytest.mark.parametrize(
    ("wanted", "waited"),
    [
        (None, COOLDOWN_MS),
        (0, LEAST_COOLDOWN_MS),
        (5_000, 5_000),
        (10**12, LONGEST_COOLDOWN_MS),
    ],
)
def test_too_many_requests_are_followed_by_a_pause(wanted: int | None, waited: int) -> None:
    assert not_before(after_answer(None, Ill.THROTTLED, wanted, NOW), NOW) == NOW + waited


# A command


def after_runs(*work: bool | None, health: Health | None = None, now: int = NOW) -> Health | None:
    for works in work:
        health = after_run(health, works, BREAKER, "exit code 1", now)
    return health


def test_runs_that_fail_at_once_one_after_the_other_open_the_breaker_of_a_command() -> None:
    assert not_before(after_runs(False, False), NOW) is None
    broken = after_runs(False, None, False, False)
    assert not_before(broken, NOW) == NOW + BREAKER.cooldown_ms
    assert broken is not None
    assert broken.reason == "3 runs in a row have failed within 60 s, the last: exit code 1"


def test_a_run_that_succeeds_in_between_begins_the_row_again() -> None:
    assert not_before(after_runs(False, False, True, False, False), NOW) is None


def test_runs_that_began_before_the_breaker_opened_change_nothing() -> None:
    broken = after_runs(False, False, False)
    assert after_runs(False, False, health=broken) == broken


def test_the_run_that_tries_a_command_again_opens_the_breaker_once_more_or_closes_it() -> None:
    broken, again = after_runs(False, False, False), NOW + BREAKER.cooldown_ms
    assert breaker_of(broken, again) == "half_open"
    assert not_before(after_runs(False, health=broken, now=again), again) == again + BREAKER.cooldown_ms
    assert after_runs(None, health=broken, now=again) == broken
    assert after_runs(True, health=broken, now=again) is None


def test_a_breaker_that_a_person_closes_opens_with_the_next_failure() -> None:
    broken = after_runs(False, False, False)
    assert broken is not None
    closed = closed_by_person(broken)
    assert breaker_of(closed, NOW) == "closed"
    assert not_before(after_runs(False, health=closed), NOW) == NOW + BREAKER.cooldown_ms
