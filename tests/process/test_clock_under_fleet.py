"""The wall clock is set a day forward or back under a fleet: nothing is lost, doubled, ended or kept waiting by that.

Its processes read a shifted clock, from a ``sitecustomize`` that only these tests put on their path: a clock that was
set by faketime(1) would shift their sleeps as well.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from operations_center.identity import is_alive
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import Fleet, wait_until
from tests.process.test_fork_server import wait_for_another

DAY_S = 86_400
STALLED_AFTER_S = 6

CONFIG = f"""
[center]
keep = "3d"
[roles.goal]
backend = "agent"
poll_interval = "200ms"
concurrency = 3
retry_backoff = {{{{ initial = "5m" }}}}
[roles.once]
backend = "agent"
poll_interval = "200ms"
[backends.agent]
kind = "command"
argv = ["{{python}}", "-I", "-S", "{{{{release}}}}/work.py"]
stdin = "none"
max_concurrent = 4
timeout = "10m"
idle_timeout = "10m"
[watchdog]
every = "500ms"
stalled_after = "{STALLED_AFTER_S}s"
"""

WORK = """
import os, time
WORDS = ("TASK_ID", "ROLE", "ATTEMPT")
home, task, role, attempt = (os.environ[n] for n in ("HOME", *("OPERATIONS_CENTER_" + w for w in WORDS)))
with open(home + "/told", "a") as told:
    print(task, os.environ["OPERATIONS_CENTER_RUN_ID"], file=told)
if role == "goal" and task == "t1" and attempt == "1":
    os.kill(os.getpid(), 9)
while not os.path.exists(home + "/go"):
    time.sleep(0.01)
"""
"""The first task's first executor is killed by a stranger, so that the task waits out a backoff."""

CLOCK = """
import os, time

def ahead_s():
    with open(os.environ["CLOCK"]) as file:
        return int(file.read())

def shift(read, factor):
    return lambda: read() + ahead_s() * factor

time.time, time.time_ns = shift(time.time, 1), shift(time.time_ns, 10**9)
"""


class ShiftedFleet(Fleet):
    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {
            "PYTHONPATH": str(self.root / "clock"),
            "CLOCK": str(self.root / "clock" / "ahead"),
        }

    def set_clock(self, ahead_s: int) -> None:
        draft = self.root / "clock" / "draft"
        draft.write_text(str(ahead_s))
        draft.replace(self.root / "clock" / "ahead")


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[ShiftedFleet]:
    shifted = ShiftedFleet(fleet.root, fleet.supervisors)
    shifted.configure(CONFIG.format(python=sys.executable))
    (fleet.root / "work.py").write_text(WORK)
    (fleet.root / "clock").mkdir()
    (fleet.root / "clock" / "sitecustomize.py").write_text(CLOCK)
    shifted.set_clock(0)
    yield shifted
    fleet.let_go()


def begun(fleet: Fleet) -> list[str]:
    """The tasks of the executors that have begun, in order."""
    path = fleet.root / "told"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def tasks(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return {task["id"]: task for task in fleet.json("task", "list")["tasks"]}


def waits(fleet: Fleet, task_id: str) -> bool:
    task = tasks(fleet)[task_id]
    return task["state"] == "ready" and task["attempts"] == 1 and task["not_before"] is not None


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_fleet_whose_clock_is_set_goes_on_as_if_nothing_had_happened(fleet: ShiftedFleet, ahead_s: int) -> None:
    fleet.add(1, "goal")
    fleet.up()
    fleet.add(1, "once")
    wait_until(lambda: waits(fleet, "t1") and "t2" in begun(fleet), "one task in its backoff, one run")
    members = {name: fleet.pulse(name).process for name in (SUPERVISOR, "goal", "once", WATCHDOG)}

    fleet.set_clock(ahead_s)
    was_set_at = fleet.pulse(WATCHDOG).heartbeat_mono
    wait_until(lambda: is_seen_by(fleet, WATCHDOG, ahead_s), "the watchdog reads the clock")
    assert fleet.json("status")["problems"] == []
    # A backoff that would still take minutes is over on the next day, and not a day longer on the day before.
    wait_until(lambda: begun(fleet).count("t1") == 2, "the second attempt")
    fleet.add(1, "goal")
    wait_until(lambda: "t3" in begun(fleet), "a task that was added later")

    # Long enough for the watchdog to call somebody stalled, had the clock made one look silent.
    wait_until(lambda: silent_span_s(fleet, was_set_at) > STALLED_AFTER_S + 1, "many cycles of the watchdog")
    status = fleet.json("status")
    assert (status["state"], status["problems"]) == ("up", [])
    assert {name: fleet.pulse(name).process for name in members} == members
    assert all(is_alive(process) for process in members.values())

    # Whoever comes after the step takes the runs over, and takes none for old or for young.
    os.kill(members["goal"].pid, signal.SIGKILL)
    wait_for_another(fleet, "goal", members["goal"])
    fleet.set_clock(0)
    fleet.let_go()
    wait_until(lambda: {task["state"] for task in tasks(fleet).values()} == {"done"}, "every task")
    fleet.run("down")
    assert sorted(begun(fleet)) == ["t1", "t1", "t2", "t3"]
    assert {task: each["attempts"] for task, each in tasks(fleet).items()} == {"t1": 2, "t2": 1, "t3": 1}
    outcomes = sorted(run["outcome"] for run in fleet.json("runs")["runs"])
    assert outcomes == ["killed", "succeeded", "succeeded", "succeeded"]
    assert fleet.broken_promises() == []


def is_seen_by(fleet: Fleet, name: str, ahead_s: int) -> bool:
    return abs(fleet.pulse(name).heartbeat_at / 1000 - time.time() - ahead_s) < DAY_S / 2


def silent_span_s(fleet: Fleet, since_mono: int) -> float:
    return (fleet.pulse(WATCHDOG).heartbeat_mono - since_mono) / 1000


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_fleet_that_starts_on_another_day_finds_its_runs(fleet: ShiftedFleet, ahead_s: int) -> None:
    fleet.up()
    fleet.add(1, "once")
    wait_until(lambda: begun(fleet), "the executor")
    fleet.run("down")
    fleet.set_clock(ahead_s)
    fleet.up()
    assert is_seen_by(fleet, "once", ahead_s)
    (run,) = fleet.json("runs")["runs"]
    assert (run["state"], run["watcher_pid"]) == ("running", fleet.pulse("once").pid)
    fleet.let_go()
    wait_until(lambda: tasks(fleet)["t1"]["state"] == "done", "the task is done")
    fleet.run("down")
    assert begun(fleet) == ["t1"]
    assert fleet.broken_promises() == []
