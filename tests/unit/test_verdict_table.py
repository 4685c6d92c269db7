"""The definition of an orphan: one named case for each row, and what must hold for any evidence at all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from operations_center.identity import Process
from operations_center.in_flight_reconcile.facts import Evidence, LeaseState, Place, Sighting, Verdict
from operations_center.in_flight_reconcile.orphans import COMMAND_RUN, SETTLING_RUN, judge, judge_one
from operations_center.in_flight_reconcile.plan import ARTIFACTS_NOTED, Deed, plan_actions, stop_order
from operations_center.keeper.inspect import ExitRecord, GateState, Tree, TreeQuery, UnreadableExit
from operations_center.keeper.result import Result, UnreadableResult
from operations_center.model import Outcome, Proof, Run, RunState, TaskState
from tests.unit import samples
from tests.unit.samples import NOW

KEEPER = Process(4711, 99)
ALIVE, GONE, UNKNOWN = Sighting.ALIVE, Sighting.GONE, Sighting.UNKNOWN
SUCCEEDED = Result("succeeded", "", None, (), ())

RUN = replace(samples.RUN, keeper_pid=KEEPER.pid, keeper_ticks=KEEPER.start_ticks)
RESERVED = replace(RUN, state=RunState.RESERVED, keeper_pid=None, keeper_ticks=None)
STOPPED = replace(RUN, stop_outcome=Outcome.STOPPED, stop_reason="enough", stop_then=TaskState.BLOCKED)
LATE = replace(RUN, deadline_mono=NOW.monotonic - 1)
SETTLING = replace(RUN, state=RunState.SETTLING, settled_mono=NOW.monotonic - 1_000)

LIVING = Evidence(
    run=RUN,
    now=NOW,
    place=Place.HERE,
    watcher=ALIVE,
    gate=GateState.KEEPER,
    keeper=ALIVE,
    executor=ALIVE,
    seen=Tree(TreeQuery(RUN.run_id, KEEPER), True, (Process(4712, 100),), None),
    lock_held=True,
    directory=ALIVE,
    task=TaskState.RUNNING,
)
DEAD = replace(
    LIVING,
    watcher=GONE,
    keeper=GONE,
    executor=GONE,
    lock_held=False,
    seen=Tree(TreeQuery(RUN.run_id, KEEPER), False, (), None),
)
UNBEGUN = replace(DEAD, run=RESERVED, gate=GateState.ABSENT, seen=Tree(TreeQuery(RUN.run_id), False, (), None))
ELSEWHERE = replace(DEAD, place=Place.ELSEWHERE, watcher=UNKNOWN, keeper=UNKNOWN, executor=UNKNOWN, seen=None)
REBOOTED = replace(ELSEWHERE, place=Place.OTHER_BOOT)


def verdict(base: Evidence, **changes: Any) -> tuple[int, Verdict, Proof | None]:
    rule = judge_one(replace(base, **changes)).rule
    return rule.row, rule.verdict, rule.proof


def test_row_1_a_settled_run_is_left_to_its_living_finisher() -> None:
    assert verdict(LIVING, run=SETTLING) == (1, Verdict.KEEP, None)


def test_row_1_a_settled_run_of_another_host_is_left_to_it_while_its_lease_is_valid() -> None:
    assert verdict(ELSEWHERE, run=SETTLING, lease=LeaseState.VALID) == (1, Verdict.KEEP, None)


def test_row_2_a_settled_run_is_told_again_when_its_finisher_is_dead() -> None:
    assert verdict(DEAD, run=SETTLING) == (2, Verdict.REPLAY, None)


def test_row_2_a_settled_run_is_told_again_when_its_finisher_takes_longer_than_30_s() -> None:
    slow = replace(SETTLING, settled_mono=NOW.monotonic - 30_000)
    assert verdict(LIVING, run=slow) == (2, Verdict.REPLAY, None)


def test_row_13_a_run_of_another_host_is_kept_while_its_lease_is_valid() -> None:
    assert verdict(ELSEWHERE, lease=LeaseState.VALID) == (13, Verdict.KEEP, None)


def test_row_14_a_run_of_another_host_is_an_orphan_when_its_lease_is_long_over() -> None:
    assert verdict(ELSEWHERE, lease=LeaseState.EXPIRED) == (14, Verdict.ORPHAN, Proof.LEASE_EXPIRED)


def test_row_15_a_run_of_another_host_without_a_lease_is_suspect() -> None:
    assert verdict(ELSEWHERE, lease=LeaseState.NONE) == (15, Verdict.SUSPECT, None)


def test_row_15_a_run_of_this_host_is_suspect_while_another_boot_renews_its_identity() -> None:
    clash: dict[str, Any] = {"lease": LeaseState.CLASH, "exit_record": ExitRecord(0)}
    assert verdict(REBOOTED, **clash) == (15, Verdict.SUSPECT, None)


def test_row_16_a_run_that_ended_before_the_reboot_is_settled_by_its_record() -> None:
    assert verdict(REBOOTED, exit_record=ExitRecord(0)) == (16, Verdict.SETTLE, Proof.BOOT_CHANGED)


def test_row_17_a_run_without_a_record_is_an_orphan_after_a_reboot() -> None:
    assert verdict(REBOOTED) == (17, Verdict.ORPHAN, Proof.BOOT_CHANGED)


def test_row_18_a_young_reservation_is_left_to_its_living_watcher() -> None:
    young = replace(RESERVED, reserved_mono=NOW.monotonic - 9_999)
    assert verdict(UNBEGUN, run=young, watcher=ALIVE) == (18, Verdict.KEEP, None)


def test_row_19_a_reservation_is_an_orphan_when_its_watcher_is_dead() -> None:
    young = replace(RESERVED, reserved_mono=NOW.monotonic - 1)
    assert verdict(UNBEGUN, run=young) == (19, Verdict.ORPHAN, Proof.NEVER_STARTED)


def test_row_19_a_reservation_is_an_orphan_when_it_is_ten_seconds_old() -> None:
    old = replace(RESERVED, reserved_mono=NOW.monotonic - 10_000)
    assert verdict(UNBEGUN, run=old, watcher=ALIVE) == (19, Verdict.ORPHAN, Proof.NEVER_STARTED)


def test_row_19_a_revoked_run_is_an_orphan_whatever_its_age() -> None:
    young = replace(RESERVED, reserved_mono=NOW.monotonic - 1)
    revoked: dict[str, Any] = {"run": young, "watcher": ALIVE, "gate": GateState.REVOKED}
    assert verdict(UNBEGUN, **revoked) == (19, Verdict.ORPHAN, Proof.NEVER_STARTED)


def test_a_reservation_whose_directory_was_deleted_under_a_living_tree_is_no_orphan() -> None:
    seen = Tree(TreeQuery(RUN.run_id), False, (Process(4712, 100),), None)
    row, what, _ = verdict(UNBEGUN, directory=GONE, seen=seen, executor=ALIVE)
    assert (row, what) == (23, Verdict.REAP)


def test_row_18_it_is_left_to_a_living_watcher_that_is_about_to_record_its_start() -> None:
    seen = Tree(TreeQuery(RUN.run_id), False, (Process(4712, 100),), None)
    living: dict[str, Any] = {"directory": GONE, "seen": seen, "executor": ALIVE, "watcher": ALIVE}
    young, old = (replace(RESERVED, reserved_mono=NOW.monotonic - age) for age in (9_999, 10_000))
    assert verdict(UNBEGUN, run=young, **living) == (18, Verdict.KEEP, None)
    assert verdict(UNBEGUN, run=old, **living) == (23, Verdict.REAP, None)


def test_row_20_a_living_run_with_a_stored_stop_is_stopped() -> None:
    assert verdict(LIVING, run=STOPPED) == (20, Verdict.STOP, None)


def test_row_20_a_living_run_past_its_deadline_is_stopped() -> None:
    assert verdict(LIVING, run=LATE) == (20, Verdict.STOP, None)


@pytest.mark.parametrize(("limit", "row"), [(None, 24), (5_001, 24), (5_000, 20)])
def test_row_20_a_run_that_was_silent_for_its_idle_timeout_is_stopped(limit: int | None, row: int) -> None:
    seen = replace(LIVING, run=replace(RUN, idle_timeout_ms=limit), silent_ms=5_000)
    assert verdict(seen)[0] == row
    assert verdict(seen, exit_record=ExitRecord(0))[0] != 20
    if row == 20:
        order = stop_order(judge_one(seen))
        assert (order.outcome, order.reason) == (Outcome.TIMED_OUT, "no output for idle_timeout")


def test_row_21_a_living_run_is_cancelled_when_its_task_was_read_as_cancelled_or_done() -> None:
    assert verdict(LIVING, task=TaskState.CANCELLED) == (21, Verdict.CANCEL, None)
    assert verdict(LIVING, task=TaskState.DONE) == (21, Verdict.CANCEL, None)


@pytest.mark.parametrize(
    "asked", [{"run": LATE}, {"run": STOPPED}, {"task": TaskState.CANCELLED}, {"task": TaskState.DONE}]
)
def test_rows_20_and_21_leave_a_run_whose_exit_is_recorded_to_row_23(asked: dict[str, Any]) -> None:
    """A finish that is recorded is never undone: what it left behind is only reaped."""
    assert verdict(LIVING, exit_record=ExitRecord(0), exit_age_ms=60_000, **asked) == (23, Verdict.REAP, None)


def test_row_21_a_task_that_is_not_found_stops_nothing() -> None:
    assert verdict(LIVING, task=None) == (24, Verdict.KEEP, None)


def test_row_22_a_keeper_may_be_without_its_executor_for_five_seconds() -> None:
    assert verdict(LIVING, executor=GONE, childless_ms=4_999) == (22, Verdict.KEEP, None)


def test_row_22_a_keeper_may_live_on_for_a_second_after_its_record() -> None:
    assert verdict(LIVING, executor=GONE, exit_record=ExitRecord(0), exit_age_ms=999) == (22, Verdict.KEEP, None)


def test_row_23_what_outlives_the_record_is_reaped() -> None:
    assert verdict(LIVING, exit_record=ExitRecord(0), exit_age_ms=1_000) == (23, Verdict.REAP, None)


def test_row_23_what_outlives_its_keeper_is_reaped() -> None:
    assert verdict(LIVING, keeper=GONE) == (23, Verdict.REAP, None)


def test_row_23_a_keeper_without_an_executor_is_reaped_after_five_seconds() -> None:
    assert verdict(LIVING, executor=GONE, childless_ms=5_000) == (23, Verdict.REAP, None)


def test_row_24_a_living_run_with_a_living_watcher_is_kept() -> None:
    assert verdict(LIVING) == (24, Verdict.KEEP, None)


def test_row_25_a_living_run_with_a_dead_watcher_is_adopted() -> None:
    assert verdict(LIVING, watcher=GONE) == (25, Verdict.ADOPT, None)


def test_row_26_a_dead_run_is_settled_by_its_exit_record() -> None:
    assert verdict(DEAD, exit_record=ExitRecord(3)) == (26, Verdict.SETTLE, Proof.EXIT_RECORDED)


def test_row_26_a_dead_run_is_settled_by_its_result_when_it_left_no_exit_record() -> None:
    assert verdict(DEAD, result=SUCCEEDED) == (26, Verdict.SETTLE, Proof.EXIT_RECORDED)
    (action,) = plan_actions(judge([replace(DEAD, result=SUCCEEDED)]), ())
    assert action.proof is Proof.RESULT_WRITTEN


def ending_with(run: Run, exit_record: ExitRecord) -> tuple[Outcome, str | None]:
    (action,) = plan_actions(judge([replace(DEAD, run=run, exit_record=exit_record)]), ())
    assert action.ending is not None
    return action.ending.outcome, action.ending.reason


def test_row_26_a_stop_decides_the_outcome_of_an_exit_that_followed_its_signal() -> None:
    signalled = replace(STOPPED, signalled_at=NOW.wall - 1_000)
    for code in (0, 1, 75, 143):
        assert ending_with(signalled, ExitRecord(code)) == (Outcome.STOPPED, "enough")


def test_row_26_a_finish_before_the_first_signal_is_the_run_s_own() -> None:
    assert ending_with(STOPPED, ExitRecord(0)) == (Outcome.SUCCEEDED, None)
    assert ending_with(STOPPED, ExitRecord(3)) == (Outcome.FAILED, "exit code 3")


def test_row_26_what_would_run_again_is_stopped_also_before_the_first_signal() -> None:
    assert ending_with(STOPPED, ExitRecord(75)) == (Outcome.STOPPED, "enough")
    assert ending_with(STOPPED, ExitRecord(137)) == (Outcome.STOPPED, "enough")


def test_row_26_the_log_keeps_the_paths_that_a_result_names_but_not_without_end() -> None:
    named = tuple(f"built/{number}" for number in range(ARTIFACTS_NOTED + 1))
    ended = replace(DEAD, exit_record=ExitRecord(0), result=Result(None, "", None, (), named))
    (action,) = plan_actions(judge([ended]), ())
    assert action.note == {"artifacts": list(named[:-1])}


def test_row_27_a_dead_run_fails_when_its_exit_record_cannot_be_read() -> None:
    damaged: dict[str, Any] = {"exit_record": UnreadableExit("torn"), "result": SUCCEEDED}
    assert verdict(DEAD, **damaged) == (27, Verdict.SETTLE, Proof.PROCESS_GONE)
    (action,) = plan_actions(judge([replace(DEAD, **damaged)]), ())
    assert action.ending is not None
    assert (action.ending.outcome, action.ending.reason) == (Outcome.FAILED, "torn")


def test_row_28_a_dead_run_whose_directory_is_missing_is_for_a_person_to_judge() -> None:
    assert verdict(DEAD, directory=GONE) == (28, Verdict.UNKNOWABLE, Proof.PROCESS_GONE)


def test_row_29_a_dead_run_without_a_record_is_an_orphan() -> None:
    assert verdict(DEAD) == (29, Verdict.ORPHAN, Proof.PROCESS_GONE)


def test_row_29_a_result_that_cannot_be_read_is_no_record() -> None:
    assert verdict(DEAD, result=UnreadableResult("rubbish")) == (29, Verdict.ORPHAN, Proof.PROCESS_GONE)


def test_row_29_a_stored_stop_is_the_outcome_of_a_run_that_left_no_record() -> None:
    (action,) = plan_actions(judge([replace(DEAD, run=STOPPED)]), ())
    assert action.ending is not None
    assert (action.ending.outcome, action.ending.proof) == (Outcome.STOPPED, Proof.PROCESS_GONE)


def test_row_30_a_lock_that_is_held_by_nobody_visible_makes_a_run_suspect() -> None:
    assert verdict(DEAD, lock_held=True) == (30, Verdict.SUSPECT, None)


def test_row_30_a_run_of_another_host_is_suspect_while_its_host_may_still_be_ending_it() -> None:
    assert verdict(ELSEWHERE, lease=LeaseState.EXPIRING) == (30, Verdict.SUSPECT, None)


def test_every_row_of_the_table_has_a_number_of_its_own_in_ascending_order() -> None:
    rows = [rule.row for rule in (*SETTLING_RUN, *COMMAND_RUN)]
    assert rows == sorted(set(rows))
    assert rows == [1, 2, *range(13, 31)]


# For any evidence at all

runs = st.builds(
    replace,
    st.sampled_from([RUN, RESERVED, SETTLING]),
    reserved_mono=st.integers(NOW.monotonic - 20_000, NOW.monotonic),
    deadline_mono=st.none() | st.integers(NOW.monotonic - 10, NOW.monotonic + 10),
    settled_mono=st.integers(NOW.monotonic - 60_000, NOW.monotonic),
    stop_outcome=st.none() | st.sampled_from([Outcome.STOPPED, Outcome.CANCELLED, Outcome.TIMED_OUT]),
    stop_reason=st.none() | st.just("enough"),
)


@st.composite
def any_evidence(draw: st.DrawFn) -> Evidence:
    sighting = st.sampled_from(Sighting)
    keeper, executor = draw(sighting), draw(sighting)
    members = (Process(4712, 100),) if executor is ALIVE else ()
    tree = Tree(TreeQuery(RUN.run_id, KEEPER), keeper is ALIVE, members, draw(st.none() | st.booleans()))
    return Evidence(
        run=draw(runs),
        now=NOW,
        place=draw(st.sampled_from(Place)),
        watcher=draw(sighting),
        lease=draw(st.sampled_from(LeaseState)),
        gate=draw(st.sampled_from(GateState)),
        keeper=keeper,
        executor=executor,
        seen=draw(st.none() | st.just(tree)),
        lock_held=draw(st.booleans()),
        directory=draw(sighting),
        exit_record=draw(st.sampled_from([None, ExitRecord(0), ExitRecord(143), UnreadableExit("torn")])),
        result=draw(st.sampled_from([None, SUCCEEDED, UnreadableResult("rubbish")])),
        timed_out=draw(st.none() | st.sampled_from(["wall", "idle"])),
        task=draw(st.none() | st.sampled_from(TaskState)),
        childless_ms=draw(st.integers(0, 10_000)),
        exit_age_ms=draw(st.integers(0, 10_000)),
    )


FREES = {Verdict.ORPHAN, Verdict.SETTLE, Verdict.UNKNOWABLE}
BY_PLACE = {14, 16, 17}
"""Rows that need no look at the tree: it was on a host whose lease is over, or on another boot."""

thorough = settings(max_examples=300)


@thorough
@given(any_evidence())
def test_a_run_whose_tree_is_alive_is_never_freed(seen: Evidence) -> None:
    rule = judge_one(seen).rule
    freed = rule.verdict in FREES and rule.row not in BY_PLACE
    # Row 19 frees behind the gate: what lives then cannot have been started by a keeper of this run.
    assert not (freed and seen.tree is ALIVE and not seen.settling) or (rule.row == 19 and seen.not_begun)


@thorough
@given(any_evidence())
def test_a_begun_run_whose_tree_is_unknown_is_never_freed(seen: Evidence) -> None:
    rule = judge_one(seen).rule
    if seen.tree is UNKNOWN and not seen.settling and not seen.not_begun:
        assert rule.verdict not in FREES or rule.row in BY_PLACE


@thorough
@given(any_evidence())
def test_a_slot_is_freed_only_with_a_proof(seen: Evidence) -> None:
    judgement = judge_one(seen)
    if judgement.verdict in FREES:
        assert judgement.rule.proof is not None
        (action,) = plan_actions([judgement], ())
        assert action.ending is not None
        assert action.proof is action.ending.proof


@thorough
@given(any_evidence())
def test_every_evidence_has_one_verdict_that_of_the_first_row_that_matches(seen: Evidence) -> None:
    table = SETTLING_RUN if seen.settling else COMMAND_RUN
    matching = [rule for rule in table if rule.tree in (None, seen.tree) and rule.when(seen)]
    assert judge_one(seen).rule is matching[0]


@thorough
@given(any_evidence())
def test_judging_twice_is_judging_once(seen: Evidence) -> None:
    assert judge([seen]) == judge([seen])


@thorough
@given(any_evidence())
def test_a_task_on_the_board_is_no_proof_about_a_process(seen: Evidence) -> None:
    freed = {judge_one(replace(seen, task=task)).verdict in FREES for task in (None, *TaskState)}
    assert len(freed) == 1


@thorough
@given(any_evidence())
def test_each_verdict_but_keep_and_suspect_is_exactly_one_action(seen: Evidence) -> None:
    judgement = judge_one(seen)
    actions = plan_actions([judgement], ())
    assert len(actions) == (0 if judgement.verdict in {Verdict.KEEP, Verdict.SUSPECT} else 1)
    frees = {Deed.FREE, Deed.REVOKE_AND_FREE}
    assert all((action.deed in frees) is (judgement.verdict in FREES) for action in actions)
