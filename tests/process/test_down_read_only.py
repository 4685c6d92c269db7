"""A fleet whose state directory became read-only can still be stopped, and nothing is lost by that."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operations_center.identity import is_alive
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.cli.test_read_only import unwritable
from tests.crash.stage import keepers
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.promises import living_runs

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
retry_backoff = {{ initial = "0s" }}
[backends.agent]
kind = "command"
argv = ["{python}", "{{release}}/well.py"]
stdin = "none"
max_concurrent = 1
grace = "5s"
"""

WELL = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(os.environ["HOME"] + "/told", "a") as told:
    print("begin", os.environ["OPERATIONS_CENTER_RUN_ID"], file=told)
while not os.path.exists(os.environ["HOME"] + "/go"):
    time.sleep(0.01)
"""
"""An executor that ends well when it is asked to, as if it had done its work."""

MEMBERS = (SUPERVISOR, "goal", WATCHDOG)


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG.format(python=sys.executable))
    (fleet.root / "well.py").write_text(WELL)
    yield fleet
    fleet.let_go()


def begun(fleet: Fleet) -> list[str]:
    path = fleet.root / "told"
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def is_executing(fleet: Fleet) -> bool:
    pids = living_runs().get(begun(fleet)[-1], set())
    return any(b"well.py" in command_line(pid) for pid in pids - keepers(pids))


def command_line(pid: int) -> bytes:
    """Empty for one that has ended: a keeper does when it has recorded the end of its executor."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def goes_on_to_the_end(fleet: Fleet) -> list[dict[str, Any]]:
    fleet.let_go()
    fleet.up()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "the task is done")
    fleet.run("down")
    assert fleet.broken_promises() == []
    runs: list[dict[str, Any]] = fleet.json("runs")["runs"]
    return runs


@pytest.mark.parametrize("earlier", [lambda fleet: None, lambda fleet: fleet.run("down")], ids=["first", "second"])
def test_down_stops_a_fleet_whose_state_directory_is_read_only_and_its_executor_runs_on(
    fleet: Fleet, earlier: Callable[[Fleet], object]
) -> None:
    earlier(fleet)
    fleet.add(1, "goal")
    supervisor = fleet.up()
    wait_until(lambda: begun(fleet), "the executor")
    members = [fleet.pulse(name).process for name in MEMBERS]
    with unwritable(fleet.state.root):
        done = fleet.run("down")
        assert "1 executor runs on" in done.stdout and done.stderr == ""
        assert supervisor.wait(PATIENCE_S) == 0
        assert not any(is_alive(process) for process in members)
        assert is_executing(fleet)
    (run,) = goes_on_to_the_end(fleet)
    assert (run["outcome"], begun(fleet)) == ("succeeded", [run["run_id"]])


def test_down_now_ends_executors_also_where_that_cannot_be_recorded_and_their_tasks_run_again(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    fleet.up()
    wait_until(lambda: begun(fleet), "the executor")
    members = [fleet.pulse(name).process for name in MEMBERS]
    with unwritable(fleet.state.root):
        done = fleet.run("down", "--now")
        assert not any(is_alive(process) for process in members)
        assert not is_executing(fleet)
        (line,) = done.stderr.splitlines()
        assert line.startswith("cannot record") and begun(fleet)[0] in line
        fleet.run("down", "--now")
    again, first = goes_on_to_the_end(fleet)
    assert (first["outcome"], again["outcome"]) == ("killed", "succeeded")
    assert begun(fleet) == [first["run_id"], again["run_id"]]


def test_a_drain_that_cannot_be_recorded_stops_nothing_and_says_so(fleet: Fleet) -> None:
    fleet.up()
    members = [fleet.pulse(name).process for name in MEMBERS]
    with unwritable(fleet.state.root):
        (line,) = fleet.run("down", "--drain", expect=1).stderr.splitlines()
        assert line.startswith("cannot use the state directory")
        assert all(is_alive(process) for process in members)
    fleet.run("down", "--drain")
    assert not any(is_alive(process) for process in members)
