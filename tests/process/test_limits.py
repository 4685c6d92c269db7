"""Runs that are past their limits, with no watcher alive, and runs whose traces are deleted under them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operations_center.boards.local import NewTask
from operations_center.identity import Process, is_alive
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable
from operations_center.model import Outcome, Proof, Run, RunState, Task, TaskState
from tests.fleet import PATIENCE_S, Fleet, kill_if_there, wait_until
from tests.runs import run_of_a_dead_watcher

UNTIL_TOLD = 'echo $$ >"$HOME/executor.new"; mv ~/executor.new ~/executor; until [ -e ~/end ]; do sleep 0.05; done'
IGNORES_TERM = "trap '' TERM; " + UNTIL_TOLD


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    yield fleet
    (fleet.root / "end").touch()


def configure(fleet: Fleet, script: str, backend: str) -> None:
    """With one task."""
    fleet.configure(
        f"""
[roles.goal]
backend = "agent"
retry_backoff = {{ initial = "1h", max = "1h" }}
[backends.agent]
kind = "command"
argv = ["sh", "-c", {json.dumps(script)}]
max_concurrent = 1
{backend}
"""
    )
    with fleet.center() as center:
        center.board.add([NewTask("Do it", "goal")])


def start_watching(fleet: Fleet, script: str, backend: str) -> tuple["subprocess.Popen[bytes]", Run]:
    """A watcher of one task whose executor runs."""
    configure(fleet, script, backend)
    watcher = fleet.popen("watch", "--role", "goal", "--once")
    wait_until((fleet.root / "executor").exists, "the executor")
    return watcher, wait_until(lambda: the_started_run(fleet), "the record of its start")


def the_run(fleet: Fleet) -> Run:
    with fleet.center() as center:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        return run


def the_started_run(fleet: Fleet) -> Run | None:
    run = the_run(fleet)
    return run if run.keeper is not None else None


def the_task(fleet: Fleet) -> Task:
    with fleet.center() as center:
        (task,) = center.board.tasks()
        return task


def keeper_of(run: Run) -> Process:
    assert run.keeper is not None
    return run.keeper


def slot_is_held(fleet: Fleet) -> bool:
    with fleet.center() as center:
        return center.ledger.slots_held() == {"agent": 1}


def reconcile(fleet: Fleet) -> list[dict[str, Any]]:
    actions: list[dict[str, Any]] = fleet.json("reconcile")["actions"]
    return actions


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("timeout", "ran longer than timeout"), ("idle_timeout", "no output for idle_timeout")],
)
def test_a_limit_holds_while_no_watcher_lives(fleet: Fleet, limit: str, reason: str) -> None:
    configure(fleet, IGNORES_TERM, f'{limit} = "3s"\ngrace = "300ms"')
    run_of_a_dead_watcher(fleet, "t1")
    run = the_run(fleet)

    wait_until(lambda: not is_alive(keeper_of(run)), "the end of the run")

    assert (fleet.root / "executor").exists()
    assert not ProcessTable.scan().pids_of_run(run.run_id)
    assert slot_is_held(fleet)
    (action,) = reconcile(fleet)
    assert (action["verdict"], action["action"]) == ("settle", "applied")
    ended = the_run(fleet)
    assert (ended.state, ended.outcome, ended.reason) == (RunState.CLOSED, Outcome.TIMED_OUT, reason)
    assert (ended.proof, ended.exit_code) == (Proof.EXIT_RECORDED, 137)
    task = the_task(fleet)
    assert (task.state, task.attempts, task.reason) == (TaskState.READY, 1, reason)
    assert not fleet.broken_promises()


def test_a_limit_holds_though_the_timer_was_killed_and_a_watcher_starts_another(fleet: Fleet) -> None:
    watcher, run = start_watching(fleet, UNTIL_TOLD, 'idle_timeout = "5s"\ngrace = "300ms"')
    timer = wait_until(lambda: timer_of(watcher.pid), "the timer")
    for pid in ProcessTable.scan(with_environments=False).with_descendants([timer]):
        kill_if_there(pid)

    assert wait_until(lambda: timer_of(watcher.pid) not in (None, timer), "another timer")
    wait_until(lambda: not is_alive(keeper_of(run)), "the end of the run")

    assert watcher.wait(PATIENCE_S) == 0
    ended = the_run(fleet)
    assert (ended.outcome, ended.reason) == (Outcome.TIMED_OUT, "no output for idle_timeout")
    assert ended.executor is not None
    assert not fleet.broken_promises()


def timer_of(watcher: int) -> int | None:
    """By its command line; one that is dead has none."""
    table = ProcessTable.scan(with_environments=False)
    children = (pid for pid, facts in table.processes.items() if facts.parent == watcher)
    return next((pid for pid in children if command_line(pid).endswith(b"\0timer\0")), None)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_run_that_prints_without_end_is_bounded_and_told_what_was_lost(fleet: Fleet) -> None:
    script = "echo first; head -c 50000000 /dev/zero | tr '\\0' x; echo last; " + UNTIL_TOLD
    watcher, run = start_watching(fleet, script, 'max_output = "1MiB"')
    stdout = fleet.state.run(run.run_id) / "stdout"
    wait_until(lambda: stdout.stat().st_size == 50_000_011, "its output")
    wait_until(lambda: stdout.stat().st_blocks * 512 < 2_000_000, "the middle to be dropped")
    (fleet.root / "end").touch()
    assert watcher.wait(PATIENCE_S) == 0
    content = stdout.read_bytes()
    assert len(content) < (1 << 20) + 200
    assert content.startswith(b"first\nx")
    assert content.endswith(b"xlast\n")
    assert f"[{50_000_011 - (1 << 20)} bytes of output were dropped here".encode() in content
    assert not fleet.broken_promises()


def test_an_executor_that_ignores_term_is_killed_after_its_grace(fleet: Fleet) -> None:
    configure(fleet, IGNORES_TERM, 'timeout = "2s"\ngrace = "300ms"')
    fleet.run("watch", "--role", "goal", "--once")
    ended = the_run(fleet)
    assert (ended.outcome, ended.reason, ended.exit_code) == (Outcome.TIMED_OUT, "ran longer than timeout", 137)
    assert ended.settled_at is not None
    assert ended.settled_at - ended.reserved_at >= 2_300
    assert the_task(fleet).state is TaskState.READY
    assert not fleet.broken_promises()


def test_an_executor_that_is_stopped_by_a_stranger_is_ended_by_its_limit(fleet: Fleet) -> None:
    configure(fleet, "sh -c 'kill -STOP $PPID'; sleep 300", 'timeout = "2s"\ngrace = "300ms"')
    fleet.run("watch", "--role", "goal", "--once")
    assert the_run(fleet).outcome is Outcome.TIMED_OUT
    assert not fleet.broken_promises()


def test_a_run_whose_directory_is_deleted_keeps_its_slot_until_it_is_gone(fleet: Fleet) -> None:
    watcher, run = start_watching(fleet, UNTIL_TOLD, "")
    directory = fleet.state.run(run.run_id)
    run_cgroup = cgroup.of_run(directory.name, None)
    shutil.rmtree(directory)

    for _ in range(3):
        reconcile(fleet)
        assert slot_is_held(fleet)
        assert is_alive(keeper_of(run))
    (fleet.root / "end").touch()
    while watcher.poll() is None:
        # Read in this order: a slot that is free before its tree is gone is a broken promise.
        free, alive = not slot_is_held(fleet), is_alive(keeper_of(run))
        assert not (free and alive)

    ended = the_run(fleet)
    assert (ended.state, ended.outcome, ended.proof) == (RunState.CLOSED, Outcome.UNKNOWN, Proof.PROCESS_GONE)
    task = the_task(fleet)
    assert task.state is TaskState.BLOCKED
    assert "run directory" in (task.reason or "")
    assert not fleet.broken_promises()
    if run_cgroup is not None:
        # Nobody else knows its path any more.
        assert cgroup.remove(run_cgroup)


def test_a_run_whose_task_is_deleted_keeps_its_slot_until_it_is_gone(fleet: Fleet) -> None:
    watcher, run = start_watching(fleet, UNTIL_TOLD, "")
    with fleet.center() as center, center.store.transaction():
        center.store.execute("DELETE FROM tasks", {})

    for _ in range(3):
        reconcile(fleet)
        assert slot_is_held(fleet)
        assert is_alive(keeper_of(run))
    (fleet.root / "end").touch()
    while watcher.poll() is None:
        free, alive = not slot_is_held(fleet), is_alive(keeper_of(run))
        assert not (free and alive)

    ended = the_run(fleet)
    assert (ended.state, ended.outcome, ended.exit_code) == (RunState.CLOSED, Outcome.SUCCEEDED, 0)
    assert fleet.broken_promises() == [f"task {run.task_id}: in the log, but not in the table"]
