"""The pure half of admission: each thing that may stand in the way, and the sentence that says so."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operations_center.admission import (
    OFFERED_FOR_MS,
    Ahead,
    Breaker,
    Facts,
    Limits,
    Obstacle,
    Probe,
    Refusal,
    refusals,
)

NOW = 1_760_000_000_000
MIB = 1 << 20
FREE = Facts(
    now=NOW,
    open_run=None,
    task_held=False,
    slots_held=0,
    in_last_hour=0,
    in_last_day=0,
    pauses=(),
    not_before=None,
    available_memory=4096 * MIB,
    attempt=1,
)
LIMITS = Limits(max_concurrent=2, max_per_hour=20, max_per_day=100, min_available_memory=2048 * MIB)


def refused(limits: Limits = LIMITS, **changes: Any) -> list[Refusal]:
    return refusals(replace(FREE, **changes), limits, "agent")


def test_nothing_stands_in_the_way_of_a_free_backend() -> None:
    assert refused() == []


@pytest.mark.parametrize(
    ("changes", "obstacle", "reason"),
    [
        ({"open_run": "r7-abcdef"}, Obstacle.ANOTHER_RUN, "run r7-abcdef of this task is still open"),
        ({"task_held": True}, Obstacle.HELD, "the task is just being given back to the board"),
        ({"pauses": ("agent is paused: tea",)}, Obstacle.PAUSE, "agent is paused: tea"),
        ({"not_before": NOW + 1_000}, Obstacle.BACKOFF, "backs off until 2025-10-09T08:53:21.000Z"),
        ({"slots_held": 2}, Obstacle.CAP, "backend agent holds 2 of 2 slots"),
        ({"slots_held": 3}, Obstacle.CAP, "backend agent holds 3 of 2 slots"),
        ({"in_last_hour": 20}, Obstacle.BUDGET, "backend agent has used 20 of 20 runs in the last hour"),
        ({"in_last_day": 100}, Obstacle.BUDGET, "backend agent has used 100 of 100 runs in the last day"),
        (
            {"available_memory": 2048 * MIB - 1},
            Obstacle.MEMORY,
            "2047 MiB of memory available, backend agent wants 2048",
        ),
    ],
)
def test_each_obstacle_refuses_and_says_why(changes: dict[str, Any], obstacle: Obstacle, reason: str) -> None:
    assert refused(**changes) == [Refusal(obstacle, reason, changes.get("not_before"))]


@pytest.mark.parametrize(
    "changes",
    [
        {"slots_held": 1},
        {"in_last_hour": 19},
        {"in_last_day": 99},
        {"not_before": NOW},
        {"not_before": NOW - 1},
        {"available_memory": 2048 * MIB},
    ],
)
def test_one_less_than_a_limit_is_admitted(changes: dict[str, Any]) -> None:
    assert refused(**changes) == []


def test_a_breaker_refuses_until_its_time_is_over_and_says_what_has_failed() -> None:
    (refusal,) = refused(broken_until=NOW + 1_000, broken_reason="5 runs in a row have failed")
    assert (refusal.obstacle, refusal.until) == (Obstacle.BREAKER, NOW + 1_000)
    assert "5 runs in a row have failed" in refusal.reason
    assert "`operations-center resume agent`" in refusal.reason
    assert refused(broken_until=NOW) == []


def test_after_its_time_one_run_tries_until_it_has_lasted_long_enough() -> None:
    limits = replace(LIMITS, breaker=Breaker(failures=5, within_ms=60_000, cooldown_ms=300_000))
    (refusal,) = refused(limits, broken_until=NOW - 1_000, probe=Probe("r7", NOW - 500))
    assert (refusal.obstacle, refusal.until) == (Obstacle.BREAKER, NOW - 500 + 60_000)
    assert "run r7 tries whether backend agent works again" in refusal.reason
    assert refused(limits, broken_until=NOW - 70_000, probe=Probe("r7", NOW - 60_000)) == []


def test_a_slot_is_left_to_each_more_urgent_task_of_another_role() -> None:
    first, second = Ahead("hot", "t9", None), Ahead("warm", "t8", NOW - 1_000)
    assert refused(slots_held=0, ahead=(first,)) == []
    (refusal,) = refused(slots_held=0, ahead=(first, second))
    assert (refusal.obstacle, refusal.role, refusal.until) == (Obstacle.PRIORITY, "hot", NOW + OFFERED_FOR_MS)
    (refusal,) = refused(slots_held=1, ahead=(second,))
    assert refusal == Refusal(
        Obstacle.PRIORITY, "a more urgent task t8 of role warm goes first", NOW - 1_000 + OFFERED_FOR_MS, "warm"
    )


def test_a_budget_of_zero_admits_nothing() -> None:
    assert [each.obstacle for each in refused(replace(LIMITS, max_per_day=0))] == [Obstacle.BUDGET]


def test_what_has_no_limit_refuses_nothing() -> None:
    assert refused(Limits(max_concurrent=1), in_last_hour=10**6, in_last_day=10**6, available_memory=0) == []


def test_everything_that_stands_in_the_way_is_told_at_once() -> None:
    found = refused(
        open_run="r1-abcdef",
        task_held=True,
        pauses=("agent is paused: a", "everything is paused: b"),
        not_before=NOW + 1,
        slots_held=9,
        in_last_hour=20,
        in_last_day=100,
        available_memory=0,
    )
    told = [each.obstacle for each in found]
    assert told == [
        Obstacle.ANOTHER_RUN,
        Obstacle.HELD,
        Obstacle.PAUSE,
        Obstacle.PAUSE,
        Obstacle.BACKOFF,
        Obstacle.CAP,
        Obstacle.BUDGET,
        Obstacle.BUDGET,
        Obstacle.MEMORY,
    ]


@settings(max_examples=200)
@given(held=st.integers(0, 50), cap=st.integers(1, 50))
def test_a_backend_never_admits_past_its_cap(held: int, cap: int) -> None:
    assert bool(refused(Limits(cap), slots_held=held)) == (held >= cap)
