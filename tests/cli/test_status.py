"""status, why, explain and reconcile as a user sees them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from operations_center.clock import SystemClock
from operations_center.identity import read_stat
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable, TreeQuery, find_trees, tree_of
from operations_center.keeper.stop import kill, kill_keeper
from operations_center.pulse import Pulse, write_pulse
from operations_center.state_directory import SUPERVISOR
from tests.fleet import Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 1
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sleep", "300"]
max_concurrent = 2
[backends.spare]
kind = "command"
argv = ["true"]
max_concurrent = 1
max_per_hour = 0
[watchdog]
stalled_after = "30s"
"""

HOLDER = """
import fcntl, sys, time
open("/proc/self/comm", "w").write("oc-wtch")
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(300)
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG)
    return fleet


@contextmanager
def pretender(fleet: Fleet, name: str, state: str = "ready", age_ms: int = 0, **details: Any) -> Iterator[int]:
    """A process that holds the lock of a member and has written a pulse of some age; its pid."""
    fleet.state.create()
    lock = fleet.state.supervisor_lock if name == SUPERVISOR else fleet.state.watcher_lock(name)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            beat(fleet, name, process.pid, state, age_ms, details)
            yield process.pid
        finally:
            process.kill()


def beat(fleet: Fleet, name: str, pid: int, state: str, age_ms: int, details: dict[str, Any]) -> None:
    stat = read_stat(pid)
    assert stat is not None
    now = SystemClock().now()
    write_pulse(
        fleet.state.pulse(name),
        Pulse(
            pid=pid,
            start_ticks=stat.start_ticks,
            boot_id="b",
            state=state,
            started_at=now.wall - age_ms,
            heartbeat_at=now.wall - age_ms,
            heartbeat_mono=now.monotonic - age_ms,
            details=details,
        ),
    )


def child(name: str, state: str = "ready", restarts: int = 0) -> dict[str, Any]:
    return {"name": name, "pid": None, "state": state, "restarts": restarts}


def by_role(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {watcher["role"]: watcher for watcher in status["watchers"]}


# status


def test_status_of_what_never_ran_is_stopped_and_has_every_key(fleet: Fleet) -> None:
    status = fleet.json("status", expect=3)
    assert (status["state"], status["supervisor"]) == ("stopped", None)
    assert by_role(status)["goal"]["state"] == "stopped"
    assert status["watchdog"]["pid"] is None
    assert status["web"] == {"url": None, "active": False}
    assert status["backends"][0] == {
        "name": "agent",
        "max_concurrent": 2,
        "held": 0,
        "cooldown_until": None,
        "breaker": "closed",
        "breaker_until": None,
        "breaker_reason": None,
        "paused": False,
        "pause_reason": None,
    }
    assert status["board"] == {"tasks": dict.fromkeys(status["board"]["tasks"], 0), "outbox": 0}
    assert status["config_file"] == str(fleet.root / "operations_center.toml")


def test_status_of_a_fleet_is_up(fleet: Fleet) -> None:
    supervisor = fleet.up()
    status = fleet.json("status")
    assert (status["state"], status["supervisor"]["pid"], status["problems"]) == ("up", supervisor.pid, [])
    assert all(watcher["state"] == "ready" and watcher["pid"] for watcher in status["watchers"])
    assert status["watchdog"]["state"] == "ready"
    assert status["reconcile"]["startup"]["at"].endswith("Z")


def test_a_pulse_file_alone_proves_no_life(fleet: Fleet) -> None:
    fleet.state.create()
    beat(fleet, SUPERVISOR, os.getpid(), "up", 0, {"children": [child("goal")]})
    beat(fleet, "goal", os.getpid(), "ready", 0, {})
    status = fleet.json("status", expect=3)
    assert (status["supervisor"], by_role(status)["goal"]["pid"]) == (None, None)


def test_the_pulse_of_a_predecessor_says_nothing_of_the_process_that_holds_the_lock(fleet: Fleet) -> None:
    with pretender(fleet, "goal") as pid:
        beat(fleet, "goal", os.getpid(), "ready", 0, {})
        watcher = by_role(fleet.json("status", expect=3))["goal"]
    assert (watcher["pid"], watcher["state"], watcher["heartbeat_at"]) == (pid, "starting", None)


def test_survivors_are_listed_without_a_supervisor_also_of_roles_that_are_gone(fleet: Fleet) -> None:
    with pretender(fleet, "goal") as goal, pretender(fleet, "former") as former:
        status = fleet.json("status", expect=3)
    assert status["state"] == "stopped"
    assert (by_role(status)["goal"]["pid"], by_role(status)["former"]["pid"]) == (goal, former)
    assert any(str(former) in problem for problem in status["problems"])


def test_a_stalled_watcher_is_ready_and_the_whole_degraded(fleet: Fleet) -> None:
    children = [child("goal"), child("test")]
    with (
        pretender(fleet, SUPERVISOR, "up", children=children),
        pretender(fleet, "goal", age_ms=40_000) as goal,
        pretender(fleet, "test"),
    ):
        status = fleet.json("status")
    assert (status["state"], by_role(status)["goal"]["state"]) == ("degraded", "ready")
    (problem,) = status["problems"]
    told = re.fullmatch(r"watcher goal \(process (\d+)\) is alive but has not turned for (\d+) s", problem)
    assert told is not None and int(told[1]) == goal and int(told[2]) >= 40


def test_a_watcher_between_restarts_is_as_its_supervisor_says(fleet: Fleet) -> None:
    children = [child("goal", "backoff", 3), child("test", "ready")]
    with pretender(fleet, SUPERVISOR, "up", children=children):
        status = fleet.json("status")
    watchers = by_role(status)
    assert (watchers["goal"]["state"], watchers["goal"]["restarts"], watchers["goal"]["pid"]) == ("backoff", 3, None)
    assert watchers["test"]["state"] == "starting"
    assert status["state"] == "degraded"


def test_a_role_that_this_supervisor_was_told_to_leave_out_degrades_nothing(fleet: Fleet) -> None:
    with pretender(fleet, SUPERVISOR, "up", children=[child("goal")]), pretender(fleet, "goal"):
        status = fleet.json("status")
    assert (status["state"], by_role(status)["test"]["state"]) == ("up", "stopped")


def test_status_in_words_has_no_colour_where_it_is_no_terminal(fleet: Fleet) -> None:
    words = fleet.run("status", expect=3).stdout
    assert words.startswith("stopped") and "\x1b" not in words


def test_a_backend_that_left_the_configuration_is_listed_while_it_holds_slots(fleet: Fleet) -> None:
    run = start(fleet)
    fleet.configure(CONFIG.replace("agent", "other"))
    backends = {backend["name"]: backend for backend in fleet.json("status", expect=3)["backends"]}
    assert (backends["agent"]["held"], backends["agent"]["max_concurrent"]) == (1, None)
    fleet.run("stop", run)


def start(fleet: Fleet) -> str:
    """A run whose watcher is dead."""
    fleet.run("task", "add", "a task", "--kind", "goal")
    watcher = fleet.popen("watch", "--role", "goal")

    def begun() -> list[str]:
        return [run["run_id"] for run in fleet.json("runs", "--open")["runs"] if run["state"] == "running"]

    (run_id,) = wait_until(begun, "a running executor")
    watcher.kill()
    watcher.wait()
    found: str = run_id
    return found


# why


def reasons(fleet: Fleet, *words: str) -> dict[str, set[str]]:
    tasks = fleet.json("why", *words)["tasks"]
    return {task["task_id"]: {each["reason"] for each in task["reasons"]} for task in tasks}


def test_why_names_everything_that_stands_in_the_way(fleet: Fleet) -> None:
    start(fleet)
    fleet.run("task", "add", "second", "--kind", "goal")
    fleet.run("task", "add", "nobody's", "--kind", "unheard")
    fleet.run("task", "add", "no budget", "--kind", "test", "--backend", "spare")
    fleet.run("pause", "test")
    assert reasons(fleet) == {"t2": {"concurrency", "waiting"}, "t3": {"no_role"}, "t4": {"budget", "pause", "waiting"}}
    assert set(reasons(fleet, "goal")) == {"t2"}
    fleet.run("down", "--now")


def test_why_names_a_backend_that_left_the_configuration(fleet: Fleet) -> None:
    fleet.run("task", "add", "a task", "--kind", "goal", "--backend", "spare")
    fleet.configure(CONFIG.replace("spare", "other"))
    assert "no_backend" in reasons(fleet)["t1"]


def test_why_says_when_nothing_stands_in_the_way(fleet: Fleet) -> None:
    fleet.run("task", "add", "a task", "--kind", "goal")
    with pretender(fleet, "goal"):
        (task,) = fleet.json("why")["tasks"]
    assert (task["title"], task["kind"], task["role"], task["backend"]) == ("a task", "goal", "goal", "agent")
    (reason,) = task["reasons"]
    assert reason["reason"] == "waiting" and "next turn" in reason["detail"]


def test_why_lists_the_first_of_many_and_counts_all(fleet: Fleet) -> None:
    fleet.add(5, "goal")
    fleet.run("task", "add", "first", "--kind", "goal", "--priority", "urgent")
    document = fleet.json("why", "--limit", "2")
    assert ([task["task_id"] for task in document["tasks"]], document["count"]) == (["t6", "t1"], 6)
    assert "4 more are ready" in fleet.run("why", "goal", "--limit", "2").stdout


def test_why_of_an_unknown_role_is_not_found(fleet: Fleet) -> None:
    fleet.run("why", "nobody", expect=4)


# explain and reconcile


def test_explain_tells_evidence_verdict_and_what_would_change_it(fleet: Fleet) -> None:
    run = start(fleet)
    explained = fleet.json("explain", run)
    assert (explained["verdict"], explained["row"], explained["proof"]) == ("adopt", 25, None)
    assert explained["evidence"]["tree"] == "alive" and explained["evidence"]["watcher"] == "gone"
    assert [action["deed"] for action in explained["actions"]] == ["adopt"]
    assert explained["would_change"]
    fleet.run("stop", run, "--reason", "enough")
    closed = fleet.json("explain", run)
    assert (closed["verdict"], closed["proof"], closed["reason"]) == (None, "exit_recorded", "enough")
    assert "outcome     stopped" in fleet.run("explain", run).stdout
    fleet.run("explain", "r9-nope", expect=4)


def test_reconcile_frees_the_slot_of_a_killed_run_and_says_by_what_proof(fleet: Fleet) -> None:
    run = start(fleet)
    end_tree(fleet, run)
    planned = fleet.json("reconcile", "--dry-run", "--min-age", "10m")
    assert (planned["mode"], planned["count"], planned["min_age_seconds"]) == ("dry_run", 1, 600)
    assert fleet.json("status", expect=3)["backends"][0]["held"] == 1
    report = fleet.json("reconcile", "--run", run)
    (action,) = report["actions"]
    assert (action["rule"], action["proof"]) == ("ORPHANED_IN_FLIGHT_CLEAR", "process_gone")
    assert (action["action"], report["trigger"], report["min_age_seconds"]) == ("applied", "cli", 0)
    assert fleet.json("reconcile")["count"] == 0
    assert fleet.json("reconcile", "--run", run)["actions"] == []
    fleet.run("reconcile", "--run", "r9-nope", expect=4)


def end_tree(fleet: Fleet, run_id: str) -> None:
    """Keeper first, so that nothing is recorded."""
    with fleet.center() as center:
        run = center.ledger.run(run_id)
        assert run is not None and run.keeper is not None
        kill_keeper(run.keeper)
        query = TreeQuery(run_id, run.keeper, cgroup.of_run(run_id, None))
        kill(tree_of(ProcessTable.scan(), query))
    wait_until(lambda: find_trees([query])[run_id].is_empty, "the end of the tree")
