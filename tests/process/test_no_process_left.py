"""The user has as many processes as it may have (RLIMIT_NPROC): whoever cannot start another waits, and loses nothing.

A limit of none at all is set for one process while it runs, and is lifted again. It does not bind root, so as root the
fleet belongs to another user, who may do with files what root may.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from operations_center.identity import Process, is_alive
from operations_center.state_directory import SUPERVISOR
from tests.fleet import Fleet, wait_until
from tests.process.test_fork_server import children_of, fork_server_of

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
concurrency = 2
retry_backoff = {{ initial = "0s" }}
[backends.agent]
kind = "command"
argv = ["{python}", "witness.py", "go"]
working_directory = "."
stdin = "none"
max_concurrent = 2
timeout = "1h"
"""

USER = 54321
AS_USER = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "--bounding-set=-all,+dac_override"),
)
WITHOUT_PROCESSES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


ALLOW_PROCESSES = """
import resource, sys
pid, count = map(int, sys.argv[1:])
resource.prlimit(pid, resource.RLIMIT_NPROC, (count, resource.prlimit(pid, resource.RLIMIT_NPROC)[1]))
"""


def why_no_limit_binds() -> str | None:
    if os.geteuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        return "no limit of processes binds root, and setpriv(1), which could start the fleet as a user, is not there"
    tried = subprocess.run([*AS_USER, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no limit of processes binds root, and: {tried.stderr.strip()}"


_WHY = why_no_limit_binds()
pytestmark = pytest.mark.skipif(_WHY is not None, reason=_WHY or "")


@pytest.fixture
def fleet(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    fleet.configure(CONFIG.format(python=sys.executable))
    if os.geteuid() == 0:
        argv = fleet.argv
        monkeypatch.setattr(fleet, "argv", lambda *words: [*AS_USER, *argv(*words)])
        give_to(fleet.root, USER)
    yield fleet
    fleet.let_go()


def give_to(directory: Path, user: int) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


@contextmanager
def without_processes(pid: int) -> Iterator[None]:
    """This process may not fork for a while."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    allow_processes(pid, 0)
    try:
        yield
    finally:
        allow_processes(pid, before)


def allow_processes(pid: int, count: int) -> None:
    # By one who is the fleet's user: root in a container may not change the limits of somebody else's process.
    as_owner = AS_USER if os.geteuid() == 0 else ()
    subprocess.run([*as_owner, sys.executable, "-S", "-c", ALLOW_PROCESSES, str(pid), str(count)], check=True)


def restarts(fleet: Fleet) -> int:
    children = fleet.pulse(SUPERVISOR).details["children"]
    return int(next(child["restarts"] for child in children if child["name"] == "goal"))


def state_of_watcher(fleet: Fleet) -> str:
    watchers = fleet.json("status", expect=None)["watchers"]
    return str(next(each["state"] for each in watchers if each["role"] == "goal"))


def runs(fleet: Fleet) -> list[dict[str, Any]]:
    """In the order in which they were admitted."""
    found: list[dict[str, Any]] = fleet.json("runs")["runs"]
    return sorted(found, key=lambda run: int(run["fence"]))


def goes_on_to_the_end(fleet: Fleet) -> None:
    fleet.let_go()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "every task")
    fleet.run("down")
    begun = [event.task_id for event in fleet.witnessed("begin")]
    assert sorted(begun) == sorted(task["id"] for task in fleet.json("task", "list")["tasks"])
    assert {task["attempts"] for task in fleet.json("task", "list")["tasks"]} == {1}
    if os.geteuid() == 0:
        give_to(fleet.root, 0)
    assert fleet.broken_promises() == []


@pytest.mark.parametrize("words", [["up"], ["up", "--detach"]])
def test_up_says_that_there_is_no_process_for_it_and_leaves_nothing(fleet: Fleet, words: list[str]) -> None:
    fleet.add(1, "goal")
    argv = fleet.argv(*words)
    python = argv.index(sys.executable)
    done = subprocess.run(
        [*argv[: python + 1], "-c", WITHOUT_PROCESSES, *argv[python:]],
        cwd=fleet.root,
        env=fleet.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("cannot start") and "process" in line and "ulimit -u" in line
    assert done.returncode == 75
    assert fleet.json("status", expect=3)["state"] == "stopped"
    fleet.up()
    goes_on_to_the_end(fleet)


def test_a_fork_server_that_cannot_fork_is_asked_again_with_pauses(fleet: Fleet) -> None:
    supervisor, watcher = executing(fleet)
    with without_processes(fork_server_of(supervisor)):
        kill(watcher)
        wait_until(lambda: restarts(fleet) >= 3, "some tries")
        wait_until(lambda: state_of_watcher(fleet) in ("backoff", "failed"), "a pause")
    comes_back(fleet, supervisor, watcher)


def test_a_supervisor_that_cannot_start_a_fork_server_goes_on_trying(fleet: Fleet) -> None:
    supervisor, watcher = executing(fleet)
    server = Process.of(fork_server_of(supervisor))
    with without_processes(supervisor):
        kill(server)
        kill(watcher)
        wait_until(lambda: children_of(supervisor) == [], "the fork server is buried")
        # It beats on while there is nobody to ask.
        before = fleet.pulse(SUPERVISOR).heartbeat_mono
        wait_until(lambda: fleet.pulse(SUPERVISOR).heartbeat_mono > before, "another heartbeat")
        assert state_of_watcher(fleet) != "ready"
    comes_back(fleet, supervisor, watcher)


def executing(fleet: Fleet) -> tuple[int, Process]:
    """The supervisor's pid, and the watcher of the one run whose executor has begun."""
    fleet.add(1, "goal")
    supervisor = fleet.up().pid
    wait_until(lambda: fleet.witnessed("begin"), "the executor")
    return supervisor, fleet.pulse("goal").process


def kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(process), "its end")


def comes_back(fleet: Fleet, supervisor: int, watcher: Process) -> None:
    wait_until(lambda: fleet.pulse("goal").state == "ready" and fleet.pulse("goal").process != watcher, "the next one")
    assert children_of(fork_server_of(supervisor)).count(fleet.pulse("goal").pid) == 1
    fleet.add(1, "goal")
    goes_on_to_the_end(fleet)
    assert len(runs(fleet)) == 2


def waits_uncounted(fleet: Fleet) -> bool:
    (task,) = fleet.json("task", "list")["tasks"]
    return (task["state"], task["attempts"]) == ("ready", 0) and task["not_before"] is not None


def test_a_run_whose_keeper_cannot_be_started_is_taken_back_and_its_task_runs_later(fleet: Fleet) -> None:
    fleet.up()
    with without_processes(fleet.pulse("goal").pid):
        fleet.add(1, "goal")
        wait_until(lambda: runs(fleet) and runs(fleet)[0]["state"] == "closed", "the run is taken back")
        run = runs(fleet)[0]
        assert (run["outcome"], run["proof"], run["keeper_pid"]) == ("never_started", "never_started", None)
        wait_until(lambda: waits_uncounted(fleet), "its task waits, and no attempt is counted")
    wait_until(lambda: fleet.witnessed("begin"), "the executor")
    goes_on_to_the_end(fleet)
    *in_vain, last = [run["outcome"] for run in runs(fleet)]
    assert set(in_vain) == {"never_started"} and last == "succeeded"
