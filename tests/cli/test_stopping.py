"""stop, task cancel, down and restart, with a fleet and without one, on real executors."""

import os
import signal
import time
from typing import Any

import pytest

from operations_center.admission import Limits
from operations_center.fleet import look_at, survivors
from operations_center.keeper.inspect import ProcessTable
from operations_center.ledger import Admission
from operations_center.model import Run, RunState
from operations_center.state_directory import SUPERVISOR
from operations_center.stopping.runs import stop_run
from tests.fleet import PATIENCE_S, Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 3
poll_interval = "100ms"
[roles.test]
backend = "stubborn"
[backends.agent]
kind = "command"
argv = ["sh", "-c", "echo begun; exec sleep 300"]
max_concurrent = 3
grace = "5s"
[backends.stubborn]
kind = "command"
argv = ["sh", "-c", "trap '' TERM; echo begun; while :; do sleep 1; done"]
max_concurrent = 1
grace = "300ms"
[backends.led]
kind = "command"
argv = ["sh", "-c", "echo begun; until [ -e ~/go ]; do sleep 0.02; done"]
max_concurrent = 1
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG)
    return fleet


def add(fleet: Fleet, kind: str = "goal", *options: str) -> str:
    task: str = fleet.json("task", "add", "a task", "--kind", kind, *options)["id"]
    return task


def open_runs(fleet: Fleet) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = fleet.json("runs", "--open")["runs"]
    return runs


def running(fleet: Fleet, count: int = 1) -> list[dict[str, Any]]:
    """Open runs, when the executors of so many of them have begun."""

    def has_begun(run: dict[str, Any]) -> bool:
        return run["state"] == "running" and "begun" in (fleet.state.run(run["run_id"]) / "stdout").read_text()

    def begun() -> list[dict[str, Any]]:
        runs = [run for run in open_runs(fleet) if has_begun(run)]
        return runs if len(runs) == count else []

    found: list[dict[str, Any]] = wait_until(begun, f"{count} running executors")
    return found


def processes(run: dict[str, Any]) -> frozenset[int]:
    return ProcessTable.scan().pids_of_run(run["run_id"])


def start_without_a_fleet(fleet: Fleet, kind: str = "goal", count: int = 1) -> list[dict[str, Any]]:
    """Runs whose watcher was killed, so that nobody but the kernel looks after them."""
    for _ in range(count):
        add(fleet, kind)
    watcher = fleet.popen("watch", "--role", kind)
    runs = running(fleet, count)
    watcher.kill()
    watcher.wait()
    return runs


def task_of(fleet: Fleet, run: dict[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = fleet.json("task", "show", run["task_id"])
    return task


# stop


def test_stop_ends_an_executor_without_any_fleet_and_blocks_its_task(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet)
    stopped = fleet.json("stop", run["run_id"], "--reason", "wrong branch")
    assert (stopped["state"], stopped["outcome"], stopped["reason"]) == ("closed", "stopped", "wrong branch")
    assert processes(run) == frozenset()
    task = task_of(fleet, run)
    assert (task["state"], task["reason"]) == ("blocked", "wrong branch")
    assert fleet.broken_promises() == []


def test_stop_kills_an_executor_that_ignores_term_after_its_grace(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet, "test")
    begun = time.monotonic()
    stopped = fleet.json("stop", run["run_id"])
    assert time.monotonic() - begun >= 0.3
    assert (stopped["outcome"], stopped["exit_code"]) == ("stopped", 137)
    assert processes(run) == frozenset()


def test_stop_works_beside_a_living_watcher(fleet: Fleet) -> None:
    fleet.up()
    add(fleet)
    (run,) = running(fleet)
    assert fleet.json("stop", run["run_id"])["outcome"] == "stopped"
    assert task_of(fleet, run)["state"] == "blocked"
    assert fleet.broken_promises() == []


def test_stop_of_a_run_that_has_ended_says_how_it_ended(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet)
    fleet.run("stop", run["run_id"], "--reason", "first")
    again = fleet.json("stop", run["run_id"], "--reason", "second")
    assert (again["outcome"], again["reason"]) == ("stopped", "first")


def test_stop_of_an_unknown_run_is_not_found(fleet: Fleet) -> None:
    assert fleet.run("stop", "r9-nope", expect=4).stderr.startswith("cannot stop run r9-nope")


def test_a_stop_that_comes_after_the_exit_was_recorded_changes_nothing(fleet: Fleet) -> None:
    task = add(fleet, "goal", "--backend", "led")
    watcher = fleet.popen("watch", "--role", "goal")
    (run,) = running(fleet)
    watcher.send_signal(signal.SIGSTOP)
    fleet.let_go()
    wait_until(lambda: not processes(run), "the executor's own end")
    assert fleet.json("stop", run["run_id"])["outcome"] == "succeeded"
    assert fleet.json("task", "show", task)["state"] == "done"


def test_stop_without_waiting_returns_while_the_executor_lives(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet, "test")
    told = fleet.json("stop", run["run_id"], "--no-wait")
    assert (told["state"], told["stop_reason"]) == ("running", "stopped by a person")
    assert fleet.json("stop", run["run_id"])["outcome"] == "stopped"


def test_a_stop_is_stored_also_while_a_living_watcher_is_about_to_start_the_run(fleet: Fleet) -> None:
    with fleet.center() as center:
        admission = Admission("t1", "goal", "agent", Limits(max_concurrent=1), center.host, center.me, 300, None)
        run = center.ledger.admit(admission)
        assert isinstance(run, Run)
        told = stop_run(center, run.run_id, None, wait=False)
        assert (told.state, told.stop_outcome, told.stop_reason) == (
            RunState.RESERVED,
            "stopped",
            "stopped by a person",
        )


def test_stop_of_a_reservation_whose_watcher_is_dead_blocks_its_task(fleet: Fleet) -> None:
    task = add(fleet)
    with fleet.center() as center:
        dead = center.me._replace(start_ticks=1)
        run = center.ledger.admit(Admission(task, "goal", "agent", Limits(1), center.host, dead, 300, None))
        assert isinstance(run, Run)
        assert center.board.claim(task, run.run_id)
    stopped = fleet.json("stop", run.run_id)
    assert (stopped["outcome"], stopped["proof"]) == ("stopped", "never_started")
    assert fleet.json("task", "show", task)["state"] == "blocked"


# task cancel


def test_cancel_ends_the_run_of_a_task(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet)
    cancelled = fleet.json("task", "cancel", run["task_id"])
    assert (cancelled["state"], cancelled["run"]["outcome"]) == ("cancelled", "cancelled")
    assert processes(run) == frozenset()
    assert fleet.broken_promises() == []


def test_cancel_of_a_task_that_does_not_run_cancels_it(fleet: Fleet) -> None:
    task = add(fleet)
    cancelled = fleet.json("task", "cancel", task)
    assert (cancelled["state"], cancelled["run"]) == ("cancelled", None)
    fleet.run("task", "cancel", "t99", expect=4)


# down


def test_down_where_nothing_runs_is_done_at_once(fleet: Fleet) -> None:
    assert fleet.json("down") == {"schema": 1, "stopped": {"supervisor": None, "watchers": []}, "runs_left": 0}


def test_down_leaves_executors_running_and_says_how_many(fleet: Fleet) -> None:
    supervisor = fleet.up()
    add(fleet)
    (run,) = running(fleet)
    down = fleet.json("down")
    assert (down["stopped"]["supervisor"], down["runs_left"]) == (supervisor.pid, 1)
    assert [watcher["role"] for watcher in down["stopped"]["watchers"]] == ["@watchdog", "goal", "test"]
    assert supervisor.wait(PATIENCE_S) == 0
    assert "1 executor runs on" in (fleet.root / "up.log").read_text()
    assert survivors(fleet.state) == []
    assert processes(run)
    status = fleet.run("status", expect=3).stdout
    assert "1 executor runs on without a fleet" in status
    assert "never" not in status
    assert fleet.json("status", expect=3)["executors"] == 1
    with fleet.center() as center:
        left = center.ledger.run(run["run_id"])
        assert left is not None and left.keeper is not None
        os.kill(left.keeper.pid, signal.SIGKILL)
    # Its executor outlives its keeper, and counts all the same.
    assert fleet.run("down").stdout.startswith("no fleet was running; 1 executor runs on")


def test_who_ended_a_run_is_unknown_after_a_restore_of_an_older_ledger(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet, "goal")
    fleet.run("ledger", "backup", "copy.db")
    fleet.run("stop", run["run_id"])
    fleet.run("ledger", "restore", "copy.db")
    fleet.run("reconcile")
    (restored,) = fleet.json("runs")["runs"]
    assert restored["outcome"] == "killed"
    assert "by whom is unknown" in restored["reason"]


def test_down_stops_the_survivors_of_a_killed_supervisor(fleet: Fleet) -> None:
    supervisor = fleet.up()
    supervisor.kill()
    supervisor.wait()
    assert {member.name for member in survivors(fleet.state)} == {"goal", "test", "@watchdog"}
    down = fleet.json("down")
    assert (down["stopped"]["supervisor"], len(down["stopped"]["watchers"])) == (None, 3)
    assert survivors(fleet.state) == []


def test_down_ends_a_fleet_whose_processes_are_all_stopped(fleet: Fleet) -> None:
    supervisor = fleet.up()
    for member in (look_at(fleet.state, SUPERVISOR), *survivors(fleet.state)):
        assert member.pid is not None
        os.kill(member.pid, signal.SIGSTOP)
    assert fleet.json("down")["stopped"]["supervisor"] == supervisor.pid
    assert survivors(fleet.state) == []


def test_two_downs_at_once_do_not_add_up_to_a_down_now(fleet: Fleet) -> None:
    fleet.up()
    add(fleet)
    (run,) = running(fleet)
    downs = [fleet.popen("down") for _ in range(3)]
    assert [down.wait(PATIENCE_S) for down in downs] == [0, 0, 0]
    assert processes(run)


def test_down_now_ends_executors_and_gives_their_tasks_back(fleet: Fleet) -> None:
    fleet.up()
    add(fleet)
    add(fleet, "test")
    runs = running(fleet, 2)
    assert fleet.json("down", "--now")["runs_left"] == 0
    for run in runs:
        assert processes(run) == frozenset()
        assert task_of(fleet, run)["state"] == "ready"
    assert {run["outcome"] for run in fleet.json("runs")["runs"]} == {"stopped"}
    assert fleet.broken_promises() == []


def test_down_now_works_without_any_fleet(fleet: Fleet) -> None:
    runs = start_without_a_fleet(fleet, "goal", 2)
    assert fleet.json("down", "--now")["runs_left"] == 0
    assert [processes(run) for run in runs] == [frozenset(), frozenset()]


def test_down_drain_waits_for_open_runs_and_admits_nothing_new(fleet: Fleet) -> None:
    fleet.up()
    first = add(fleet, "goal", "--backend", "led")
    running(fleet)
    drain = fleet.popen("down", "--drain")
    wait_until(lambda: fleet.json("status")["pauses"], "the pause")
    second = add(fleet)
    assert drain.poll() is None
    fleet.let_go()
    assert drain.wait(PATIENCE_S) == 0
    assert fleet.json("task", "show", first)["state"] == "done"
    assert fleet.json("task", "show", second)["state"] == "ready"
    assert fleet.json("status", expect=3)["pauses"] == []


def test_down_drain_settles_by_itself_where_no_watcher_lives(fleet: Fleet) -> None:
    add(fleet, "goal", "--backend", "led")
    watcher = fleet.popen("watch", "--role", "goal")
    (run,) = running(fleet)
    watcher.kill()
    watcher.wait()
    drain = fleet.popen("down", "--drain")
    wait_until(lambda: fleet.json("status", expect=3)["pauses"], "the pause")
    fleet.let_go()
    assert drain.wait(PATIENCE_S) == 0
    assert open_runs(fleet) == []
    assert task_of(fleet, run)["state"] == "done"


def test_a_drain_that_gives_up_leaves_the_fleet_as_it_was(fleet: Fleet) -> None:
    fleet.up()
    add(fleet)
    (run,) = running(fleet)
    refused = fleet.run("down", "--drain", "--timeout", "300ms", expect=75)
    assert run["run_id"] in refused.stderr
    assert refused.stderr.startswith("cannot drain") and refused.stderr.count("\n") == 1
    status = fleet.json("status")
    assert (status["state"], status["pauses"]) == ("up", [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_that_is_ended_by_a_signal_takes_its_pause_back(fleet: Fleet, number: signal.Signals) -> None:
    start_without_a_fleet(fleet)
    drain = fleet.popen("down", "--drain")
    wait_until(lambda: fleet.json("status", expect=3)["pauses"], "the pause")
    drain.send_signal(number)
    drain.wait(PATIENCE_S)
    assert fleet.json("status", expect=3)["pauses"] == []


def test_down_gives_up_with_75_when_executors_outlive_the_timeout(fleet: Fleet) -> None:
    fleet.configure(CONFIG.replace('"300ms"', '"3s"'))
    (run,) = start_without_a_fleet(fleet, "test")
    refused = fleet.run("down", "--now", "--timeout", "100ms", expect=75)
    assert refused.stderr.startswith("cannot end run " + run["run_id"])
    assert fleet.json("down", "--now")["runs_left"] == 0


def test_drain_and_now_exclude_each_other(fleet: Fleet) -> None:
    fleet.run("down", "--drain", "--now", expect=2)


def test_down_now_does_not_change_a_stop_that_a_person_asked_for(fleet: Fleet) -> None:
    (run,) = start_without_a_fleet(fleet, "test")
    fleet.run("stop", run["run_id"], "--reason", "enough", "--no-wait")
    fleet.run("down", "--now")
    task = task_of(fleet, run)
    assert (task["state"], task["reason"]) == ("blocked", "enough")


# restart


def test_restart_replaces_each_watcher_and_interrupts_no_executor(fleet: Fleet) -> None:
    fleet.up()
    add(fleet)
    (run,) = running(fleet)
    before = processes(run)
    restarted = fleet.json("restart")["restarted"]
    assert [each["role"] for each in restarted] == ["goal", "test", "@watchdog"]
    assert all(each["pid"] not in (None, each["old_pid"]) for each in restarted)
    assert processes(run) == before
    wait_until(lambda: [run["watcher_pid"] for run in open_runs(fleet)] == [restarted[0]["pid"]], "it is adopted")
    wait_until(lambda: fleet.json("status")["state"] == "up", "the fleet is up")


def test_restart_of_one_role_leaves_the_others_alone(fleet: Fleet) -> None:
    fleet.up()
    test = look_at(fleet.state, "test").pid
    fleet.run("restart", "goal")
    assert look_at(fleet.state, "test").pid == test


def test_restart_without_a_supervisor_fails_and_an_unknown_role_is_not_found(fleet: Fleet) -> None:
    assert "no supervisor runs" in fleet.run("restart", expect=1).stderr
    fleet.run("restart", "nobody", expect=4)
