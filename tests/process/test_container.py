"""A fleet whose supervisor is the first process of a pid namespace, as in a container."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center import titles
from operations_center.identity import read_stat
from operations_center.state_directory import SUPERVISOR
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.process.test_fork_server import children_of

CONFIG = """
[roles.goal]
backend = "agent"
max_attempts = 1
[backends.agent]
kind = "command"
argv = ["sh"]
working_directory = "."
max_concurrent = 1
grace = "45s"
"""
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

pytestmark = pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode != 0,
    reason="no pid namespace can be made here",
)


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG)
    yield fleet
    fleet.let_go()


@pytest.fixture
def container(fleet: Fleet) -> Iterator["subprocess.Popen[bytes]"]:
    """Its own process is ``unshare``, whose only child is the supervisor."""
    with (fleet.root / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [*NAMESPACE, *fleet.argv("up")], cwd=fleet.root, env=fleet.environment, stdout=log, stderr=log
        )
    wait_until(lambda: fleet.state.pulse(SUPERVISOR).exists() and fleet.pulse(SUPERVISOR).state == "up", "it is up")
    yield process
    process.kill()
    process.wait()


def init_of(container: "subprocess.Popen[bytes]") -> int:
    (pid,) = children_of(container.pid)
    return pid


def begins(fleet: Fleet, script: str) -> str:
    task_id = str(fleet.json("task", "add", f"touch begun; {script}")["id"])
    wait_until((fleet.root / "begun").exists, "its executor runs")
    (fleet.root / "begun").unlink()
    return task_id


def test_the_stop_of_a_container_asks_executors_to_end_and_costs_no_attempt(
    fleet: Fleet, container: "subprocess.Popen[bytes]"
) -> None:
    task_id = begins(fleet, "trap 'touch asked; exit 0' TERM; sleep 300 & wait")
    os.kill(init_of(container), signal.SIGTERM)
    assert container.wait(PATIENCE_S) == 0
    assert (fleet.root / "asked").exists()
    task = fleet.json("task", "show", task_id)
    assert (task["state"], task["attempts"], task["interruptions"]) == ("ready", 0, 1)


def test_the_stop_of_a_container_ends_whoever_does_not_end_by_itself_in_time(
    fleet: Fleet, container: "subprocess.Popen[bytes]"
) -> None:
    task_id = begins(fleet, "trap '' TERM; while :; do sleep 1; done")
    os.kill(init_of(container), signal.SIGTERM)
    assert container.wait(PATIENCE_S) == 0
    (run,) = fleet.json("runs", "--task", task_id)["runs"]
    assert (run["state"], run["outcome"]) == ("closed", "stopped")


def test_the_first_process_of_a_namespace_reaps_what_others_leave_to_it(
    fleet: Fleet, container: "subprocess.Popen[bytes]"
) -> None:
    init = init_of(container)
    task_id = begins(fleet, "while [ ! -e go ]; do sleep 0.01; done")
    (watcher,) = [pid for server in children_of(init) for pid in children_of(server) if title_of(pid) == titles.WATCHER]
    before = set(children_of(init))
    os.kill(watcher, signal.SIGKILL)
    # Its keeper and its timer.
    left = wait_until(lambda: set(children_of(init)) - before, "what the watcher has left is the supervisor's child")
    fleet.let_go()
    wait_until(lambda: fleet.json("task", "show", task_id)["state"] == "done", "its run is adopted")
    wait_until(lambda: all(read_stat(pid) is None for pid in left), "no zombie is left")


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
