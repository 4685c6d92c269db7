"""The disk is full under a whole fleet, and for a first configuration: nobody ends, and all goes on with the room."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.identity import is_alive
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import Fleet, wait_until
from tests.process.test_fork_server import wait_for_another
from tests.process.test_full_disk import Disk

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
retry_backoff = {{ initial = "0s" }}
[backends.agent]
kind = "command"
argv = ["{python}", "-S", "{{release}}/talk.py"]
stdin = "none"
max_concurrent = 1
[watchdog]
every = "200ms"
min_free_disk = "16KiB"
"""

TALK = """
import os, time
home = os.environ["HOME"]
def say(text):
    try:
        os.write(1, text.encode())
    except OSError:
        open(home + "/no room", "w").close()
with open(home + "/told", "a") as told:
    print(os.environ["OPERATIONS_CENTER_TASK_ID"], file=told)
say("first words\\n")
while not os.path.exists(home + "/go"):
    say("." * 4096)
    time.sleep(0.02)
say("last words\\n")
"""
"""An executor that has much to say, and goes on where there is no room for it."""


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG.format(python=sys.executable))
    (fleet.root / "talk.py").write_text(TALK)
    yield fleet
    fleet.let_go()


@pytest.fixture
def disk(fleet: Fleet) -> Iterator[Disk]:
    """Of the state directory alone."""
    with Disk(fleet.state.root).mounted("size=4m") as disk:
        yield disk
        fleet.clean_up()


def begun(fleet: Fleet) -> list[str]:
    path = fleet.root / "told"
    return path.read_text().splitlines() if path.exists() else []


def cycles_go_on(fleet: Fleet, count: int) -> None:
    for _ in range(count):
        last = fleet.pulse(WATCHDOG).details["last_cycle_mono"]
        wait_until(lambda last=last: fleet.pulse(WATCHDOG).details["last_cycle_mono"] != last, "another cycle")


@only_root
def test_a_fleet_on_a_full_disk_lives_on_and_tells_later_what_happened(fleet: Fleet, disk: Disk) -> None:
    fleet.add(2, "goal")
    fleet.up()
    wait_until(lambda: begun(fleet), "the executor")
    members = {name: fleet.pulse(name).process for name in (SUPERVISOR, "goal", WATCHDOG)}
    disk.fill()
    wait_until((fleet.root / "no room").exists, "the executor has no room for its output")
    os.kill(members["goal"].pid, signal.SIGKILL)
    wait_for_another(fleet, "goal", members["goal"])
    cycles_go_on(fleet, 3)
    assert is_alive(members[SUPERVISOR]) and is_alive(members[WATCHDOG])
    assert begun(fleet) == ["t1"]

    disk.free()
    fleet.let_go()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "both tasks")
    wait_until(lambda: members["goal"].pid in ended(fleet), "what happened meanwhile is in the log")
    wait_until(lambda: fleet.json("status", expect=None)["problems"] == [], "nothing is left of it")
    assert begun(fleet) == ["t1", "t2"]
    assert fleet.pulse(WATCHDOG).process == members[WATCHDOG]
    (said,) = [
        fleet.state.run(run["run_id"]) / "stdout" for run in fleet.json("runs")["runs"] if run["task_id"] == "t1"
    ]
    assert said.read_text().startswith("first words") and said.read_text().endswith("last words\n")
    assert {run["outcome"] for run in fleet.json("runs")["runs"]} == {"succeeded"}
    fleet.run("down")
    assert fleet.broken_promises() == []


def ended(fleet: Fleet) -> list[int]:
    return [event["data"]["pid"] for event in fleet.json("events")["events"] if event["kind"] == "watcher.ended"]


@pytest.mark.parametrize("room", [0, 1, 1000])
def test_init_without_room_leaves_nothing_and_says_why(tmp_path: Path, fleet: Fleet, room: int) -> None:
    place = tmp_path / "a new place"
    done = subprocess.run(
        fleet.argv("init", str(place)),
        env=fleet.environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot write {place}/operations_center.toml")
    assert done.returncode == 1
    assert list(place.iterdir()) == []
    fleet.run("init", str(place))
