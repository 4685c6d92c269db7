"""What every engine of the ledger promises, asked of each through the ``Ledger`` protocol alone."""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import structs

from operations_center.admission import OFFERED_FOR_MS, Breaker, Facts, Limits, Obstacle, Refusal
from operations_center.errors import OperationsCenterError
from operations_center.identity import Host, Process
from operations_center.ledger import Admission, Ledger, Pause, Wish
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import (
    HOLDS_SLOT,
    TRANSITIONS,
    Attempts,
    Finish,
    Health,
    Outcome,
    Proof,
    Run,
    RunState,
    TaskState,
    Transition,
)
from operations_center.store import Store
from tests.contract.clock import HandClock

HOST = Host("h", "b", 1, "here")
WATCHER = Process(10, 20)
OTHER = Process(11, 21)
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass
class Engine:
    """Connections to one ledger, and what the protocol does not offer: a hand that changes a row."""

    path: Path
    clock: HandClock = field(default_factory=HandClock)
    stores: list[Store] = field(default_factory=list)

    def connect(self) -> Ledger:
        self.stores.append(Store(self.path, self.clock, write_within_s=1.0))
        return SqliteLedger(self.stores[-1])

    def change_by_hand(self, statement: str) -> None:
        self.close()
        connection = sqlite3.connect(self.path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    def changes(self) -> int:
        """How many rows the first connection has changed."""
        (row,) = self.stores[0].rows("SELECT total_changes() AS changes")
        return int(row["changes"])

    def pretend_newer_schema(self) -> None:
        self.change_by_hand("PRAGMA user_version = 99")

    def close(self) -> None:
        while self.stores:
            self.stores.pop().close()


ENGINES: dict[str, Callable[[Path], Engine]] = {"sqlite": lambda directory: Engine(directory / "ledger.db")}


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    engine = ENGINES[request.param](tmp_path)
    yield engine
    engine.close()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return engine.connect()


@pytest.fixture
def clock(engine: Engine) -> HandClock:
    return engine.clock


def request(task_id: str = "t1", limits: Limits | None = None, **changes: Any) -> Admission:
    asked = Admission(task_id, "goal", "agent", limits or Limits(2), HOST, WATCHER, grace_ms=1_000, timeout_ms=None)
    return replace(asked, **changes)


def admit(ledger: Ledger, task_id: str = "t1", limits: Limits | None = None, **changes: Any) -> Run:
    run = ledger.admit(request(task_id, limits, **changes))
    assert isinstance(run, Run), run
    return run


def refused(ledger: Ledger, task_id: str = "t1", limits: Limits | None = None, **changes: Any) -> list[Obstacle]:
    answer = ledger.admit(request(task_id, limits, **changes))
    assert isinstance(answer, list), answer
    return [refusal.obstacle for refusal in answer]


def move(ledger: Ledger, run: Run, event: str, state: RunState, **changes: Any) -> Run:
    moved = ledger.change_run(run, event, state=state, holder=run.holder + 1, **changes)
    assert moved is not None
    return moved


def start(ledger: Ledger, run: Run) -> Run:
    return move(ledger, run, "run.started", RunState.RUNNING, keeper_pid=4711, keeper_ticks=99)


def settle(ledger: Ledger, run: Run, outcome: Outcome = Outcome.SUCCEEDED) -> Run:
    told = Finish(TaskState.DONE)
    return move(ledger, run, "run.settled", RunState.SETTLING, outcome=outcome, proof=Proof.PROCESS_GONE, finish=told)


def close(ledger: Ledger, run: Run) -> Run:
    return move(ledger, run, "run.closed", RunState.CLOSED, closed_at=1)


def run_whole(ledger: Ledger, task_id: str = "t1", outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> Run:
    return close(ledger, settle(ledger, admit(ledger, task_id, **changes), outcome))


def kinds(ledger: Ledger, run: Run) -> list[str]:
    return [event.kind for event in ledger.events(run_id=run.run_id)]


# Admission


def test_an_admitted_run_is_reserved_for_its_watcher_and_holds_a_slot(ledger: Ledger, clock: HandClock) -> None:
    run = admit(ledger, timeout_ms=HOUR)
    assert ledger.run(run.run_id) == run
    assert (run.state, run.attempt, run.holder, run.watcher) == (RunState.RESERVED, 1, 1, WATCHER)
    assert (run.deadline_at, run.reserved_at) == (clock.wall + HOUR, clock.wall)
    assert ledger.slots_held() == {"agent": 1}
    assert kinds(ledger, run) == ["run.reserved"]


def test_a_backend_is_never_admitted_past_its_cap_and_others_are_not_concerned(ledger: Ledger) -> None:
    admit(ledger, "t1")
    admit(ledger, "t2")
    assert refused(ledger, "t3") == [Obstacle.CAP]
    admit(ledger, "t3", backend="other")
    assert ledger.slots_held() == {"agent": 2, "other": 1}


def test_a_slot_is_held_until_the_run_has_settled(ledger: Ledger) -> None:
    one = Limits(1)
    run = start(ledger, admit(ledger, "t1", one))
    assert refused(ledger, "t2", one) == [Obstacle.CAP]
    settle(ledger, run)
    assert ledger.slots_held() == {}
    admit(ledger, "t2", one)


def test_a_task_is_held_until_its_run_is_closed(ledger: Ledger) -> None:
    run = admit(ledger)
    assert refused(ledger) == [Obstacle.ANOTHER_RUN]
    settled = settle(ledger, run)
    assert refused(ledger) == [Obstacle.ANOTHER_RUN]
    close(ledger, settled)
    admit(ledger)


@pytest.mark.parametrize(
    ("limits", "period"), [(Limits(9, max_per_hour=2), HOUR), (Limits(9, max_per_day=2), DAY)], ids=["hour", "day"]
)
def test_a_budget_counts_the_runs_of_its_period(ledger: Ledger, clock: HandClock, limits: Limits, period: int) -> None:
    run_whole(ledger, "t1", limits=limits)
    clock.wall += MINUTE
    run_whole(ledger, "t2", limits=limits)
    assert refused(ledger, "t3", limits) == [Obstacle.BUDGET]
    clock.wall += period - 2 * MINUTE
    assert refused(ledger, "t3", limits) == [Obstacle.BUDGET]
    clock.wall += MINUTE
    run_whole(ledger, "t3", limits=limits)
    assert refused(ledger, "t4", limits) == [Obstacle.BUDGET]


def test_a_run_that_is_forgotten_gives_no_budget_back(ledger: Ledger, clock: HandClock) -> None:
    limits = Limits(9, max_per_day=2)
    counted = run_whole(ledger, "t1", limits=limits)
    free = run_whole(ledger, "t2", Outcome.NEVER_STARTED, limits=limits)
    assert ledger.prune([counted.run_id, free.run_id], clock.wall) == 2
    admit(ledger, "t3", limits=limits)
    assert refused(ledger, "t4", limits=limits) == [Obstacle.BUDGET]
    clock.wall += DAY
    admit(ledger, "t4", limits=limits)


def test_a_run_that_never_started_uses_no_budget(ledger: Ledger) -> None:
    limits = Limits(9, max_per_hour=1, max_per_day=1)
    for _ in range(3):
        run_whole(ledger, outcome=Outcome.NEVER_STARTED, limits=limits)
    run_whole(ledger, outcome=Outcome.LOST, limits=limits)
    assert refused(ledger, limits=limits) == [Obstacle.BUDGET, Obstacle.BUDGET]


@pytest.mark.parametrize("name", ["goal", "agent", "*"])
def test_a_pause_of_role_backend_or_everything_keeps_out(ledger: Ledger, name: str) -> None:
    ledger.pause(Pause("other", "person", "not ours", 1))
    ledger.pause(Pause(name, "person", "tea", 1))
    assert refused(ledger) == [Obstacle.PAUSE]
    assert ledger.resume(name, "watchdog") == 0
    assert refused(ledger) == [Obstacle.PAUSE]
    assert ledger.resume(name, "person") == 1
    admit(ledger)


def test_all_pauses_of_one_source_end_at_once(ledger: Ledger) -> None:
    for name in ("goal", "agent"):
        ledger.pause(Pause(name, "drain", "drain", 1))
    ledger.pause(Pause("goal", "person", "tea", 1))
    assert ledger.resume(None, "drain") == 2
    assert [(pause.name, pause.source) for pause in ledger.pauses()] == [("goal", "person")]


def test_a_task_that_backs_off_is_kept_out_until_then(ledger: Ledger, clock: HandClock) -> None:
    ledger.set_attempts("t1", Attempts(attempts=1, not_before=clock.wall + 1_000))
    assert refused(ledger) == [Obstacle.BACKOFF]
    clock.wall += 1_000
    assert admit(ledger).attempt == 2


def test_a_held_task_is_kept_out_until_it_is_released_or_the_hold_is_over(ledger: Ledger, clock: HandClock) -> None:
    assert ledger.hold_task("t1", clock.wall + MINUTE)
    assert refused(ledger) == [Obstacle.HELD]
    ledger.release_task("t1")
    run = admit(ledger)
    assert not ledger.hold_task("t1", clock.wall + MINUTE)
    close(ledger, settle(ledger, run))
    assert ledger.hold_task("t1", clock.wall + MINUTE)
    clock.wall += MINUTE
    admit(ledger)


def test_memory_that_is_not_there_refuses(ledger: Ledger) -> None:
    assert refused(ledger, limits=Limits(1, min_available_memory=2**62)) == [Obstacle.MEMORY]


def test_a_refusal_changes_nothing(ledger: Ledger) -> None:
    admit(ledger)
    before, facts = ledger.last_event(), facts_of_ledger(ledger)
    refused(ledger)
    assert (ledger.last_event(), facts_of_ledger(ledger)) == (before, facts)


def facts_of_ledger(ledger: Ledger) -> Facts:
    return ledger.admission_facts("t1", "goal", "agent", Limits(1, max_per_hour=9))


def test_the_fence_grows_with_every_admission_and_never_goes_back(ledger: Ledger, engine: Engine) -> None:
    fences = [run_whole(ledger, f"t{number}").fence for number in range(3)]
    forgotten = [run.run_id for run in ledger.recent_runs(task_id=None, backend=None, limit=9)]
    assert ledger.prune(forgotten, 0) == 3
    fences.append(admit(engine.connect()).fence)
    assert fences == sorted(set(fences))


def test_the_number_of_an_event_is_never_given_twice(ledger: Ledger, clock: HandClock) -> None:
    run = run_whole(ledger)
    for _ in range(2):
        newest = ledger.last_event()
        clock.wall += 1
        ledger.prune([run.run_id], clock.wall)
        ledger.note("later", {})
        assert [event.kind for event in ledger.events(after=newest)][-1] == "later"
    assert ledger.verify() == []


def test_another_run_with_the_same_fence_is_not_found(ledger: Ledger) -> None:
    run = admit(ledger)
    assert ledger.run(f"r{run.fence}-other") is None
    assert ledger.run(f"{run.fence}") is None
    assert ledger.run(run.run_id) == run


# Whose turn it is

ONE = Limits(1)
LATE, SOON, NOW = 300, 200, 100
"""Urgencies: the lowest goes first."""


def wish(ledger: Ledger, *wishes: tuple[str, int], role: str = "hot", at_once: int = 1, backend: str = "agent") -> None:
    ledger.announce(role, at_once, [Wish(backend, task_id, urgency) for task_id, urgency in wishes])


def test_a_free_slot_is_left_to_the_more_urgent_task_of_another_role(ledger: Ledger) -> None:
    wish(ledger, ("t9", NOW))
    (refusal,) = cast(list[Refusal], ledger.admit(request("t1", ONE, urgency=LATE)))
    assert (refusal.obstacle, refusal.role) == (Obstacle.PRIORITY, "hot")
    assert refusal.reason == "a more urgent task t9 of role hot goes first"
    run = admit(ledger, "t9", ONE, role="hot", urgency=NOW)
    assert Obstacle.CAP in refused(ledger, "t1", ONE, urgency=LATE)
    close(ledger, settle(ledger, run))
    admit(ledger, "t1", ONE, urgency=LATE)


@pytest.mark.parametrize(
    ("wished", "asked"),
    [(("t9", LATE), ("t1", NOW)), (("t9", NOW), ("t1", NOW)), (("t10", NOW), ("t9", NOW))],
    ids=["less urgent", "as urgent and newer", "a longer number is newer"],
)
def test_a_task_is_not_kept_waiting_by_what_comes_after_it(
    ledger: Ledger, wished: tuple[str, int], asked: tuple[str, int]
) -> None:
    wish(ledger, wished)
    admit(ledger, asked[0], ONE, urgency=asked[1])


def test_as_many_slots_are_left_as_more_urgent_tasks_wait(ledger: Ledger) -> None:
    three = Limits(3)
    wish(ledger, ("t8", NOW), ("t9", NOW), at_once=2)
    admit(ledger, "t1", three, urgency=LATE)
    assert refused(ledger, "t2", three, urgency=LATE) == [Obstacle.PRIORITY]
    admit(ledger, "t8", three, role="hot", urgency=NOW)
    assert refused(ledger, "t2", three, urgency=LATE) == [Obstacle.PRIORITY]
    admit(ledger, "t9", three, role="hot", urgency=NOW)
    assert refused(ledger, "t2", three, urgency=LATE) == [Obstacle.CAP]


def test_three_roles_take_turns_in_the_order_of_their_tasks(ledger: Ledger) -> None:
    wish(ledger, ("t1", LATE), role="cold")
    wish(ledger, ("t2", SOON), role="warm")
    wish(ledger, ("t3", NOW), role="hot")
    waiting = [("cold", "t1", LATE), ("warm", "t2", SOON), ("hot", "t3", NOW)]
    order = []
    while waiting:
        for role, task_id, urgency in list(waiting):
            answer = ledger.admit(request(task_id, ONE, role=role, urgency=urgency))
            if isinstance(answer, Run):
                close(ledger, settle(ledger, answer))
                waiting.remove((role, task_id, urgency))
                order.append(role)
    assert order == ["hot", "warm", "cold"]


def test_a_role_is_left_no_more_slots_than_it_may_use(ledger: Ledger) -> None:
    two = Limits(2)
    wish(ledger, ("t7", NOW), ("t8", NOW), ("t9", NOW), at_once=1)
    busy = admit(ledger, "t7", two, role="hot", urgency=NOW)
    admit(ledger, "t1", two, urgency=LATE)
    close(ledger, settle(ledger, busy))
    assert refused(ledger, "t2", two, urgency=LATE) == [Obstacle.PRIORITY]


def test_a_role_that_uses_all_it_may_on_another_backend_keeps_nobody_waiting(ledger: Ledger) -> None:
    wish(ledger, ("t9", NOW), at_once=1)
    admit(ledger, "t8", ONE, role="hot", backend="other", urgency=NOW)
    admit(ledger, "t1", ONE, urgency=LATE)


def test_a_paused_role_keeps_nobody_waiting(ledger: Ledger, clock: HandClock) -> None:
    wish(ledger, ("t9", NOW))
    ledger.pause(Pause("hot", "person", "tea", clock.wall))
    admit(ledger, "t1", ONE, urgency=LATE)


def test_what_waits_for_another_backend_keeps_nobody_waiting(ledger: Ledger) -> None:
    wish(ledger, ("t9", NOW), backend="other")
    admit(ledger, "t1", ONE, urgency=LATE)


def test_what_is_not_wanted_any_more_keeps_nobody_waiting(ledger: Ledger) -> None:
    wish(ledger, ("t8", NOW), ("t9", NOW))
    wish(ledger)
    admit(ledger, "t1", ONE, urgency=LATE)


def test_a_role_that_does_not_take_its_slot_in_time_is_passed_until_it_comes_again(
    ledger: Ledger, clock: HandClock
) -> None:
    two = Limits(2)
    wish(ledger, ("t8", NOW), ("t9", NOW), at_once=2)
    assert refused(ledger, "t1", ONE, urgency=LATE) == [Obstacle.PRIORITY]
    clock.wall += OFFERED_FOR_MS - 1
    assert refused(ledger, "t1", ONE, urgency=LATE) == [Obstacle.PRIORITY]
    clock.wall += 1
    run = admit(ledger, "t1", ONE, urgency=LATE)
    assert refused(ledger, "t8", ONE, role="hot", urgency=NOW) == [Obstacle.CAP]
    close(ledger, settle(ledger, run))
    assert refused(ledger, "t2", ONE, urgency=LATE) == [Obstacle.PRIORITY]
    admit(ledger, "t8", two, role="hot", urgency=NOW)
    assert refused(ledger, "t2", two, urgency=LATE) == [Obstacle.PRIORITY]


def test_a_full_backend_offers_no_slot_to_anybody(ledger: Ledger, clock: HandClock) -> None:
    run = admit(ledger, "t0", ONE, urgency=LATE)
    wish(ledger, ("t9", NOW))
    assert refused(ledger, "t1", ONE, urgency=LATE) == [Obstacle.CAP, Obstacle.PRIORITY]
    clock.wall += 2 * OFFERED_FOR_MS
    close(ledger, settle(ledger, run))
    assert refused(ledger, "t1", ONE, urgency=LATE) == [Obstacle.PRIORITY]


def test_an_announcement_that_says_nothing_new_is_not_written(engine: Engine, ledger: Ledger) -> None:
    first = [("t1", NOW), ("t2", NOW), ("t3", NOW)]
    wish(ledger, *first)
    before = engine.changes()
    wish(ledger, *first)
    wish(ledger, *first, ("t4", NOW))
    assert engine.changes() == before
    wish(ledger, ("t0", NOW), *first)
    wish(ledger, *first)
    assert engine.changes() > before


# A backend that fails


def test_one_run_tries_a_backend_after_its_breaker_was_open(ledger: Ledger, clock: HandClock) -> None:
    limits = Limits(9, breaker=Breaker(failures=5, within_ms=MINUTE, cooldown_ms=HOUR))
    old = admit(ledger, "t1", limits)
    ledger.set_health("agent", Health(5, clock.wall, None, clock.wall + HOUR, "5 runs in a row have failed"))
    assert ledger.health()["agent"].reason == "5 runs in a row have failed"
    assert refused(ledger, "t2", limits) == [Obstacle.BREAKER]
    admit(ledger, "t2", limits, backend="other")
    clock.wall += HOUR
    probe = admit(ledger, "t3", limits)
    assert refused(ledger, "t4", limits) == [Obstacle.BREAKER]
    close(ledger, settle(ledger, old))
    assert refused(ledger, "t4", limits) == [Obstacle.BREAKER]
    close(ledger, settle(ledger, probe, Outcome.RETRY))
    admit(ledger, "t4", limits)
    assert refused(ledger, "t5", limits) == [Obstacle.BREAKER]
    clock.wall += MINUTE
    admit(ledger, "t5", limits)


# Guards


def test_a_stale_holder_changes_nothing_and_is_reported(ledger: Ledger, engine: Engine) -> None:
    run = start(ledger, admit(ledger))
    adopted = move(engine.connect(), run, "run.adopted", RunState.RUNNING, watcher_pid=OTHER.pid)

    late = ledger.change_run(run, "run.settled", state=RunState.SETTLING, outcome=Outcome.LOST, note={"by": "late"})

    assert late is None
    assert ledger.run(run.run_id) == adopted
    *_, lost = ledger.events(run_id=run.run_id)
    assert lost.kind == "run.lost_race"
    assert lost.data == {"refused": "run.settled", "holder": run.holder, "state": "running", "by": "late"}
    assert ledger.verify() == []


def test_a_writer_that_missed_a_change_of_state_changes_nothing(ledger: Ledger) -> None:
    run = admit(ledger)
    started = ledger.change_run(run, "run.started", state=RunState.RUNNING)
    assert started is not None
    assert started.holder == run.holder
    assert ledger.change_run(run, "run.settled", state=RunState.SETTLING, outcome=Outcome.NEVER_STARTED) is None
    assert ledger.run(run.run_id) == started


def test_a_writer_with_the_fence_of_another_run_changes_nothing(ledger: Ledger) -> None:
    run = admit(ledger)
    assert ledger.change_run(structs.replace(run, fence=run.fence + 1), "run.started", state=RunState.RUNNING) is None
    assert ledger.run(run.run_id) == run


def test_of_two_that_settle_a_run_the_first_wins(ledger: Ledger, engine: Engine) -> None:
    run = start(ledger, admit(ledger))
    settle(engine.connect(), run, Outcome.SUCCEEDED)
    late = ledger.change_run(run, "run.settled", state=RunState.SETTLING, outcome=Outcome.LOST)
    assert late is None
    present = ledger.run(run.run_id)
    assert present is not None
    assert present.outcome is Outcome.SUCCEEDED
    assert kinds(ledger, run) == ["run.reserved", "run.started", "run.settled", "run.lost_race"]


def in_state(ledger: Ledger, state: RunState) -> Run:
    run = admit(ledger, f"task in {state}", Limits(100))
    if state is RunState.RUNNING:
        return start(ledger, run)
    if state is RunState.SETTLING:
        return settle(ledger, run)
    return close(ledger, settle(ledger, run)) if state is RunState.CLOSED else run


def needed(before: RunState, after: RunState) -> dict[str, Any]:
    """The columns that a change of state must bring along."""
    if after is RunState.SETTLING and before in HOLDS_SLOT:
        return {"outcome": Outcome.LOST, "proof": Proof.PROCESS_GONE}
    if RunState.CLOSED in (before, after):
        return {"closed_at": 1 if after is RunState.CLOSED else None}
    return {}


EVENTS = sorted({transition.event for transition in TRANSITIONS})


@pytest.mark.parametrize("before", RunState)
def test_exactly_the_transitions_of_the_table_are_possible(ledger: Ledger, before: RunState) -> None:
    run = in_state(ledger, before)
    seen = ledger.last_event()
    for event in EVENTS:
        for after in RunState:
            if Transition(event, before, after) not in TRANSITIONS:
                with pytest.raises(ValueError, match=f"no {event} from {before} to {after}"):
                    ledger.change_run(run, event, state=after, **needed(before, after))
    assert (ledger.run(run.run_id), ledger.last_event()) == (run, seen)


@pytest.mark.parametrize("transition", [each for each in TRANSITIONS if each.before], ids=str)
def test_every_transition_of_the_table_is_recorded(ledger: Ledger, transition: Transition) -> None:
    assert transition.before is not None
    run = in_state(ledger, transition.before)
    changes = needed(transition.before, transition.after)
    changed = ledger.change_run(run, transition.event, state=transition.after, holder=run.holder + 1, **changes)
    assert changed is not None
    assert ledger.run(run.run_id) == changed
    assert kinds(ledger, run)[-1] == transition.event
    assert ledger.verify() == []


# The log


def test_the_log_tells_events_of_a_run_since_a_time_and_after_a_number(ledger: Ledger, clock: HandClock) -> None:
    first = run_whole(ledger, "t1")
    clock.wall += 1_000
    admit(ledger, "t2")
    assert [event.kind for event in ledger.events(since=clock.wall)] == ["run.reserved"]
    assert kinds(ledger, first) == ["run.reserved", "run.settled", "run.closed"]
    assert [event.seq for event in ledger.events(after=ledger.last_event() - 1)] == [ledger.last_event()]


def test_a_long_log_is_told_whole_and_in_order(ledger: Ledger) -> None:
    with ledger.transaction():
        for number in range(1_234):
            ledger.note("test.counted", {"number": number})
    assert [event.data["number"] for event in ledger.events()] == list(range(1_234))


def test_a_hold_ends_when_the_clock_is_set_back_to_before_it_began(ledger: Ledger, clock: HandClock) -> None:
    """Else whoever died while it told the board would keep the task for as long as the clock was set back."""
    assert ledger.hold_task("t1", clock.wall + MINUTE)
    clock.wall -= DAY
    admit(ledger)


def test_verify_finds_nothing_wrong_with_a_ledger_in_use(ledger: Ledger, clock: HandClock) -> None:
    start(ledger, admit(ledger, "t1"))
    run_whole(ledger, "t2", Outcome.LOST)
    ledger.set_attempts("t2", Attempts(1, 2, clock.wall))
    ledger.pause(Pause("*", "person", "tea", 1))
    ledger.pause(Pause("*", "person", "more tea", 2))
    ledger.hold_task("t3", clock.wall + 1)
    ledger.keep_lease(HOST, MINUTE)
    ledger.note("test.noted", {})
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE runs SET role = 'other'", "role is 'other', the log says 'goal'"),
        ("UPDATE runs SET watcher_pid = 1", "watcher_pid is 1, the log says 10"),
        ("DELETE FROM runs", "in the log, but not in the table"),
        ("UPDATE attempts SET attempts = 9", "attempts is 9, the log says 1"),
        ("DELETE FROM pauses", "in the log, but not in the table"),
        ("DELETE FROM events WHERE kind = 'run.reserved'", "in the table, but the log does not know it"),
    ],
)
def test_verify_names_a_row_that_was_changed_by_hand(ledger: Ledger, engine: Engine, statement: str, said: str) -> None:
    admit(ledger)
    ledger.set_attempts("t1", Attempts(1))
    ledger.pause(Pause("goal", "person", "tea", 1))
    engine.change_by_hand(statement)
    (line,) = engine.connect().verify()
    assert said in line


# Connections


def test_connections_see_each_others_commits(ledger: Ledger, engine: Engine) -> None:
    other = engine.connect()
    for number in range(10):
        run = admit((ledger, other)[number % 2], f"t{number}", Limits(10))
        assert (other, ledger)[number % 2].run(run.run_id) == run
    assert ledger.open_runs() == other.open_runs()


def test_what_is_not_committed_is_seen_by_nobody_else_and_not_kept(ledger: Ledger, engine: Engine) -> None:
    other = engine.connect()
    with pytest.raises(RuntimeError, match="in between"), ledger.transaction():
        admit(ledger)
        assert other.open_runs() == []
        raise RuntimeError("in between")
    assert ledger.open_runs() == other.open_runs() == []
    assert ledger.last_event() == 0


def test_writes_of_one_transaction_are_seen_at_once_or_not_at_all(ledger: Ledger, engine: Engine) -> None:
    other = engine.connect()
    with ledger.transaction():
        for number in range(3):
            admit(ledger, f"t{number}", Limits(10))
        assert other.slots_held() == {}
    assert other.slots_held() == {"agent": 3}


def test_a_reader_inside_a_snapshot_sees_one_state(ledger: Ledger, engine: Engine) -> None:
    reader = engine.connect()
    run = admit(ledger)
    with reader.snapshot():
        before = reader.open_runs()
        start(ledger, run)
        admit(ledger, "t2")
        assert reader.open_runs() == before == [run]
        assert reader.last_event() == 1
    assert len(reader.open_runs()) == 2
    assert reader.verify() == []


def test_a_ledger_that_is_opened_again_is_as_it_was(ledger: Ledger, engine: Engine) -> None:
    run = start(ledger, admit(ledger))
    engine.close()
    again = engine.connect()
    assert again.open_runs() == [run]
    assert again.verify() == []


def test_a_newer_schema_is_refused_with_one_clear_line(ledger: Ledger, engine: Engine) -> None:
    assert ledger.open_runs() == []
    engine.pretend_newer_schema()
    with pytest.raises(OperationsCenterError) as refusal:
        engine.connect()
    (line,) = str(refusal.value).splitlines()
    assert line.startswith("cannot open the ledger")
    assert "schema 99 is newer" in line
    assert "upgrade operations-center" in line


def test_a_lease_is_renewed_when_a_third_of_it_is_over(ledger: Ledger, clock: HandClock) -> None:
    def renewed_at() -> int:
        ledger.keep_lease(HOST, MINUTE)
        return ledger.leases()[HOST.host_id, HOST.pid_namespace].renewed_at

    first = renewed_at()
    clock.wall += MINUTE // 3 - 1
    assert renewed_at() == first
    clock.wall += 1
    assert renewed_at() == clock.wall
    ledger.keep_lease(replace(HOST, boot_id="after a reboot"), MINUTE)
    assert ledger.leases()[HOST.host_id, HOST.pid_namespace].boot_id == "after a reboot"
