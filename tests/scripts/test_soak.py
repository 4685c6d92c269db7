"""A short soak, and the soak's checks: each holds for what is in order, and reports a breach that is planted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.kernel import Seen
from soak.acts import Wish
from soak.breaches import FORKED_S, LONGEST_S, RESERVATION_S, Breach, Judge, Look, Tree, witnessed_breaches
from soak.endings import Story, ending_breaches
from soak.fleet import PRECIOUS, Fleet
from soak.kernel import Kernel
from soak.ledger import Held, View
from soak.leftovers import leftover_breaches
from soak.observer import trees_of

ROOT = Path(__file__).resolve().parents[2]
SEED = 2
"""Its first tasks are none that run into their limits, which would take long."""


@pytest.mark.timeout(600)
def test_a_fleet_keeps_its_promises_through_a_short_storm() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "soak", "--seconds", "8", "--seed", str(SEED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


# The observer's looks


def view(*runs: str, fence: int = 9, state: str = "running", backend: str = "agent") -> View:
    return View(fence, {run: Held(f"task of {run}", backend, state) for run in runs})


def tree(run: str, fence: int = 1, backend: str = "agent", task: str | None = None) -> Tree:
    return Tree(run, task or f"task of {run}", backend, fence, (100 + fence,))


def look(at_s: float, seen: View, *trees: Tree, **more: Any) -> Look:
    return Look(at_s, seen, seen, trees, **more)


def promises(*looks: Look) -> list[tuple[str, str]]:
    judge = Judge({"agent": 2})
    return sorted({(breach.promise, breach.subject) for each in looks for breach in judge.consider(each)})


def test_a_run_that_lives_and_holds_its_slot_is_in_order() -> None:
    assert promises(look(0, view("r1"), tree("r1")), look(60, view("r1"), tree("r1"), cycles=60)) == []


def test_a_tree_that_lives_without_a_slot_is_found_at_once() -> None:
    assert promises(look(0, view(), tree("r1"))) == [("I1", "r1")]
    assert promises(look(0, view("r1", state="settling"), tree("r1"))) == [("I1", "r1")]


def test_a_run_that_was_admitted_after_the_first_reading_is_no_breach() -> None:
    assert promises(look(0, view(fence=9), tree("r10", fence=10))) == []


def test_a_slot_of_the_dead_is_found_when_the_watchdog_has_looked_and_left_it() -> None:
    assert promises(look(0, view("r1")), look(1, view("r1"), cycles=2)) == []
    assert promises(look(0, view("r1")), look(3, view("r1"), cycles=3)) == [("I1", "r1")]


def test_a_slot_of_the_dead_is_found_when_a_watchdog_lives_and_ends_no_cycle() -> None:
    assert promises(*(look(at, view("r1")) for at in range(int(LONGEST_S) + 3))) == [("I1", "r1")]


def test_no_slot_is_late_while_no_watchdog_lives() -> None:
    assert promises(*(look(at, view("r1"), watchdog_works=False) for at in range(100))) == []


def test_a_reservation_is_its_watchers_for_a_while() -> None:
    reserved = {"reserved": frozenset({"r1"})}
    young = [look(at, view("r1", state="reserved"), cycles=at, **reserved) for at in range(int(RESERVATION_S))]
    old = [look(at, view("r1", state="reserved"), cycles=at, **reserved) for at in range(int(RESERVATION_S) + 9)]
    assert promises(*young) == []
    assert promises(*old) == [("I1", "r1")]


def test_more_trees_than_the_cap_are_found() -> None:
    runs = view("r1", "r2", "r3")
    assert ("I2", "r3") in promises(look(0, runs, tree("r1"), tree("r2", 2), tree("r3", 3)))


def test_more_slots_than_the_cap_are_found() -> None:
    assert ("I2", "r3") in promises(look(0, view("r1", "r2", "r3")))


def test_two_live_runs_of_a_task_are_found() -> None:
    trees = (tree("r1", 1, task="t1"), tree("r2", 2, task="t1"))
    assert promises(look(0, view("r1", "r2"), *trees)) == [("I3", "r2")]


def test_two_holders_of_a_lock_are_found() -> None:
    one, other = Seen(1, 1), Seen(2, 2)
    replaced = frozenset({(one, 7), (other, 8)})
    shared = frozenset({(one, 7), (other, 7)})
    found = [("one holder", "supervisor.lock")]
    assert promises(look(0, view(), carriers={"supervisor.lock": replaced})) == found
    forked = [look(at, view(), carriers={"supervisor.lock": shared}) for at in (0, FORKED_S, FORKED_S + 1)]
    assert promises(*forked[:2]) == []
    assert promises(*forked) == found


def test_a_zombie_that_nobody_reaps_is_found() -> None:
    zombies = {"zombies": frozenset({Seen(5, 5)})}
    assert promises(look(0, view(), **zombies), look(1, view(), **zombies)) == []
    assert promises(look(0, view(), **zombies), look(LONGEST_S + 1, view(), **zombies)) == [("reaped", "5")]


# What executors witness


def begin(**more: Any) -> dict[str, Any]:
    line = {"word": "begin", "run": "r1", "task": "t1", "backend": "agent", "pid": 1, "at_ns": 5, "act": "plain"}
    return {**line, "first": True, "alone": True, "crowd": 2, "cap": 2, **more}


@pytest.mark.parametrize(
    ("told", "promise"),
    [({}, None), ({"first": False}, "I5"), ({"alone": False}, "I3"), ({"crowd": 3}, "I2")],
)
def test_what_an_executor_finds_wrong_at_its_beginning_is_reported(told: dict[str, Any], promise: str | None) -> None:
    assert [breach.promise for breach in witnessed_breaches(begin(**told))] == ([promise] if promise else [])


# What the kernel shows


@contextmanager
def process_of_run(root: Path, run: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        "OPERATIONS_CENTER_RUN_DIR": f"{root}/.operations_center/runs/{run}",
        "OPERATIONS_CENTER_RUN_ID": run,
        "OPERATIONS_CENTER_TASK_ID": "t1",
        "OPERATIONS_CENTER_BACKEND": "agent",
        "OPERATIONS_CENTER_FENCE": "3",
    }
    popen = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE, env={**os.environ, **environment})
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


def test_a_process_of_a_run_is_found_by_its_environment_until_it_is_dead(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, tmp_path / ".operations_center")
    with process_of_run(tmp_path, "r1") as popen:
        while not kernel.scan().processes:
            os.sched_yield()
        alive = kernel.alive_still(kernel.scan().processes)
        assert trees_of(alive, tmp_path) == (Tree("r1", "t1", "agent", 3, (popen.pid,)),)
        popen.kill()
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        assert kernel.scan().processes == ()
        assert kernel.alive_still(alive) == []


def test_everybody_who_carries_a_lock_is_found(tmp_path: Path) -> None:
    state = tmp_path / ".operations_center"
    state.mkdir()
    take = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    held = []
    for _ in range(2):
        (state / "supervisor.lock").unlink(missing_ok=True)
        held.append(
            subprocess.Popen(
                [sys.executable, "-c", take, str(state / "supervisor.lock")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=tmp_path,
            )
        )
        assert held[-1].stdout is not None
        held[-1].stdout.readline()
    kernel = Kernel(tmp_path, state)
    carriers = kernel.carriers(kernel.scan())["supervisor.lock"]
    for popen in held:
        popen.communicate(b"\n")
    assert {seen.pid for seen, _ in carriers} == {popen.pid for popen in held}
    assert len({inode for _, inode in carriers}) == 2


def test_what_a_fleet_leaves_behind_is_found(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    for directory in (fleet.reports, fleet.state / "logs"):
        directory.mkdir(parents=True)
    fleet.shelf.mkdir()
    (fleet.shelf / "precious").write_text(PRECIOUS)
    assert list(leftover_breaches(fleet, (), [])) == []
    (fleet.reports / "operations-center-report-1").write_text("a defect")
    (fleet.shelf / "precious").write_text("written all the same")
    (fleet.state / "logs" / "goal.log").write_text("INFO\nTraceback (most recent call last):\n")
    with process_of_run(tmp_path, "r1") as popen:
        while not fleet.kernel.scan().processes:
            os.sched_yield()
        found = {breach.subject for breach in leftover_breaches(fleet, (), [])}
    assert found == {str(popen.pid), "operations-center-report-1", "goal.log", "precious"}


# The end


def task(task_id: str = "t1", **more: Any) -> dict[str, Any]:
    body = '{"act": "plain", "seconds": 1}'
    row = {"task_id": task_id, "title": f"soak {task_id}", "state": "done", "parent": None, "reason": None}
    return {**row, "body": body, **more}


def run(run_id: str = "r1", **more: Any) -> dict[str, Any]:
    row = {"run_id": run_id, "task_id": "t1", "state": "closed", "outcome": "succeeded", "proof": "exit_recorded"}
    return {**row, "reason": None, "reserved_at": 0, "settled_at": 1000, **more}


def events(run_id: str = "r1", *kinds: str) -> list[dict[str, Any]]:
    kinds = kinds or ("reserved", "started", "settled", "closed")
    return [
        {"run_id": run_id, "kind": f"run.{kind}", "data": {"run": {"holder": number}}}
        for number, kind in enumerate(kinds)
    ]


STORY = Story(
    tasks=[task()],
    runs=[run()],
    events=events(),
    witness=[begin(), {"word": "end", "run": "r1", "code": 0}],
    batches=[(Wish("soak t1", "goal", {}),)],
    acknowledged={"soak t1"},
)


def found(**changes: Any) -> list[Breach]:
    return ending_breaches(replace(STORY, **changes))


def test_a_story_in_order_has_no_breach() -> None:
    assert found() == []


FAILS = task(body='{"act": "fail"}')
TWICE = events() + events("r2")


@pytest.mark.parametrize(
    ("promise", "changes"),
    [
        # Tasks
        ("I4", {"tasks": [task(), task("t2", title="soak t1")]}),
        ("I4", {"tasks": [], "runs": [], "events": [], "witness": []}),
        ("I4", {"batches": []}),
        ("I4", {"tasks": [task(state="ready")]}),
        ("I4", {"tasks": [task(state="cancelled")]}),
        ("I4", {"tasks": [task(state="blocked", reason="x")]}),
        ("I4", {"tasks": [FAILS]}),
        ("I4", {"tasks": [task(), task("t2", parent="t1")], "runs": [run()]}),
        ("I4", {"runs": [run(), run("r2")], "events": TWICE}),
        ("I4", {"runs": [run(outcome="lost")], "struck": {"r1"}}),
        ("I4", {"tasks": [task(state="blocked", reason="x")], "runs": [run(outcome="lost")], "struck": {"r1"}}),
        # Runs
        ("I5", {"events": events("r1", "reserved", "started", "settled", "settled", "closed")}),
        ("I5", {"events": events("r1", "reserved", "started", "closed")}),
        ("I5", {"events": [*events()[:-1], {**events()[-1], "data": {"run": {"holder": 1}}}]}),
        ("I8", {"events": TWICE}),
        ("I5", {"runs": [run(state="running")]}),
        ("I5", {"witness": [begin(), *STORY.witness]}),
        ("I5", {"witness": []}),
        ("I5", {"witness": [begin(), {"word": "end", "run": "r1", "code": 3}]}),
        ("I5", {"witness": [begin()]}),
        ("I5", {"runs": [run(outcome="never_started")]}),
        ("I5", {"runs": [run(outcome="killed")]}),
        ("I5", {"runs": [run(outcome="timed_out")]}),
        ("I5", {"runs": [run(outcome="stopped", reason="stopped by a person")]}),
        ("I5", {"runs": [run(outcome="cancelled")]}),
        ("I5", {"runs": [run(outcome="unknown")]}),
        ("I6", {"runs": [run(proof=None)]}),
        ("I1", {"witness": [*STORY.witness, begin(run="r2")]}),
    ],
)
def test_a_planted_breach_is_reported_at_the_end(promise: str, changes: dict[str, Any]) -> None:
    assert promise in {breach.promise for breach in found(**changes)}
