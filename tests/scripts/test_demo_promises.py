"""The demo's checks are worth something only if each can fail: here each is told a lie."""

import json
from typing import Any

from demo.promises import (
    FOREVER,
    LEAK_S,
    Execution,
    Look,
    check_caps,
    check_one_run_per_task,
    check_outcomes,
    check_proofs,
    check_slots,
    check_tasks,
    check_undisturbed,
    executions,
)

CAPS = {"agent": 2}


def execution(run: str, task: str, began: int, ended: int = FOREVER, code: int | None = 0) -> Execution:
    return Execution(run, task, "agent", 1, 100, began, ended, None if ended == FOREVER else code)


def line(word: str, run: str, at: int, pid: int = 100, code: int | None = None) -> str:
    about = {"word": word, "task": "t1", "run": run, "backend": "agent", "attempt": 1, "pid": pid, "at_ns": at}
    return json.dumps({**about, "code": code}) + "\n"


def look(at: float, holding: str = "", alive: str = "", maybe: str | None = None) -> Look:
    words = [frozenset(text.split()) for text in (holding, alive, alive if maybe is None else maybe)]
    return Look(at, *words)


def run(run_id: str, outcome: str = "succeeded", proof: str | None = "exit_recorded") -> dict[str, Any]:
    return {"run_id": run_id, "outcome": outcome, "proof": proof}


def event(kind: str, run_id: str, **changed: Any) -> dict[str, Any]:
    return {"kind": kind, "run_id": run_id, "data": {"run": changed}}


def life(run_id: str) -> list[dict[str, Any]]:
    return [
        event("run.reserved", run_id, holder=1),
        event("run.started", run_id),
        event("run.settled", run_id, holder=2),
        event("run.closed", run_id),
    ]


def task(task_id: str, state: str = "done", reason: str | None = None, parent: str | None = None) -> dict[str, Any]:
    return {"id": task_id, "state": state, "reason": reason, "parent": parent}


def test_a_faithful_witness_is_believed() -> None:
    seen, problems = executions(
        line("begin", "r1", 1) + line("end", "r1", 5, code=0) + line("begin", "r2", 6), {"r2": 8}
    )
    assert not problems
    assert [(each.run, each.began_ns, each.ended_ns, each.code) for each in seen] == [
        ("r1", 1, 5, 0),
        ("r2", 6, 8, None),
    ]


def test_a_run_that_began_twice_is_found() -> None:
    seen, doubled = executions(
        line("begin", "r1", 1) + line("begin", "r1", 2, pid=200) + line("end", "r1", 3, code=0), {}
    )
    assert not check_one_run_per_task(seen, doubled).held


def test_an_end_by_another_process_is_found() -> None:
    seen, doubled = executions(line("begin", "r1", 1) + line("end", "r1", 3, pid=200, code=0), {})
    assert not check_one_run_per_task(seen, doubled).held


def test_two_runs_of_a_task_one_after_the_other_are_allowed() -> None:
    assert check_one_run_per_task([execution("r1", "t1", 1, 5), execution("r2", "t1", 5, 9)], []).held


def test_two_runs_of_a_task_at_once_are_found() -> None:
    assert not check_one_run_per_task([execution("r1", "t1", 1, 5), execution("r2", "t1", 4, 9)], []).held


def test_a_run_without_an_end_is_taken_to_run_on() -> None:
    assert not check_one_run_per_task([execution("r1", "t1", 1), execution("r2", "t1", 40, 90)], []).held


def test_a_backend_that_was_full_and_no_more_keeps_its_cap() -> None:
    assert check_caps(
        [execution("r1", "t1", 1, 5), execution("r2", "t2", 4, 9), execution("r3", "t3", 5, 9)], CAPS
    ).held


def test_a_cap_that_was_passed_is_found() -> None:
    seen = [execution("r1", "t1", 1, 5), execution("r2", "t2", 4, 9), execution("r3", "t3", 4, 9)]
    assert "3 executors of agent at once" in check_caps(seen, CAPS).problems[0]


def test_a_cap_that_was_never_reached_counts_as_not_tried() -> None:
    assert not check_caps([execution("r1", "t1", 1, 5)], CAPS).held


def test_slots_that_come_and_go_with_their_processes_are_in_order() -> None:
    looks = [look(0, "r1", "r1"), look(1, "r1 r2", "r2", "r1 r2"), look(2)]
    assert check_slots(looks, ["r1", "r2"], []).held


def test_a_live_process_without_a_slot_is_found() -> None:
    assert not check_slots([look(0, "", "r1"), look(1)], [], []).held


def test_a_slot_that_leaks_is_found() -> None:
    looks = [look(0, "r1", "r1"), look(1, "r1"), look(2 + LEAK_S, "r1"), look(3 + LEAK_S)]
    assert "without a process" in check_slots(looks, [], []).problems[0]


def test_a_slot_that_is_held_at_the_end_is_found() -> None:
    assert not check_slots([look(0, "r1", "r1")], [], []).held


def test_a_process_that_is_left_at_the_end_is_found() -> None:
    assert not check_slots([look(0)], ["r1"], ["r1"]).held


def test_no_look_at_all_proves_nothing() -> None:
    assert not check_slots([], [], []).held


def test_tasks_that_ended_are_not_lost() -> None:
    tasks = [task("t1"), task("t2", "blocked", "no luck"), task("t3", "cancelled"), task("t4", parent="t1")]
    assert check_tasks(["t1", "t2", "t3"], tasks, follow_ups=1).held


def test_a_lost_task_is_found() -> None:
    assert not check_tasks(["t1", "t2"], [task("t1")], follow_ups=0).held


def test_a_lost_follow_up_is_found() -> None:
    assert not check_tasks(["t1"], [task("t1")], follow_ups=1).held


def test_a_doubled_follow_up_is_found() -> None:
    tasks = [task("t1"), task("t2", parent="t1"), task("t3", parent="t1")]
    assert not check_tasks(["t1"], tasks, follow_ups=1).held


def test_a_task_that_nobody_runs_is_found() -> None:
    assert not check_tasks(["t1"], [task("t1", "running")], follow_ups=0).held


def test_a_task_that_is_blocked_without_a_reason_is_found() -> None:
    assert not check_tasks(["t1"], [task("t1", "blocked")], follow_ups=0).held


def test_one_settlement_by_the_holder_is_in_order() -> None:
    assert check_outcomes(life("r1"), [run("r1")], [execution("r1", "t1", 1, 5)], []).held


def test_a_second_settlement_is_found() -> None:
    events = [*life("r1"), event("run.settled", "r1", holder=3)]
    assert not check_outcomes(events, [run("r1")], [execution("r1", "t1", 1, 5)], []).held


def test_a_write_by_a_former_holder_is_found() -> None:
    events = [event("run.adopted", "r1", holder=2), *life("r1")]
    assert "had lost it" in check_outcomes(events, [run("r1")], [execution("r1", "t1", 1, 5)], []).problems[0]


def test_an_outcome_that_the_executor_did_not_witness_is_found() -> None:
    assert not check_outcomes(life("r1"), [run("r1")], [execution("r1", "t1", 1, 5, code=3)], []).held
    assert not check_outcomes(life("r1"), [run("r1")], [execution("r1", "t1", 1)], []).held
    assert not check_outcomes(life("r1"), [run("r1")], [], []).held


def test_an_executor_that_the_ledger_does_not_know_is_found() -> None:
    assert not check_outcomes([], [], [execution("r1", "t1", 1, 5)], []).held


def test_a_ledger_that_differs_from_its_log_is_found() -> None:
    assert not check_outcomes(life("r1"), [run("r1")], [execution("r1", "t1", 1, 5)], ["run r1: state differs"]).held


def test_a_slot_that_was_freed_without_a_proof_is_found() -> None:
    assert check_proofs([run("r1")]).held
    assert not check_proofs([run("r1", proof=None)]).held


def test_an_executor_that_was_interrupted_is_found() -> None:
    seen = [execution("r1", "t1", 1, 5), execution("r2", "t2", 1)]
    assert check_undisturbed(["r1"], seen).held
    assert not check_undisturbed(["r1", "r2"], seen).held
    assert not check_undisturbed([], seen).held
