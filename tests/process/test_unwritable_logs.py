"""Logs that cannot be written keep nobody from working: supervisor, watchers and runs go on, and a person is told."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from operations_center.state_directory import SUPERVISOR
from tests.cli.test_read_only import unwritable
from tests.fleet import Fleet, wait_until
from tests.process.test_fork_server import fork_server_of, wait_for_another

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 2
[backends.agent]
kind = "command"
argv = ["{python}", "witness.py", "go"]
working_directory = "."
stdin = "none"
max_concurrent = 2
"""

NO_ROOM = "only root can mount a file system without room"
FULL_OF_FILES = "mode=0700,nr_inodes=1"

Spoilt = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def removed(logs: Path) -> Iterator[None]:
    shutil.rmtree(logs)
    yield


@contextmanager
def full(logs: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", FULL_OF_FILES, "tmpfs", logs], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", logs], check=True)


WAYS = [removed, unwritable, pytest.param(full, marks=pytest.mark.skipif(os.geteuid() != 0, reason=NO_ROOM))]


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG.format(python=sys.executable))
    yield fleet
    fleet.let_go()


def logs(fleet: Fleet) -> Path:
    return fleet.state.log("goal").parent


def all_is_done(fleet: Fleet, count: int) -> None:
    fleet.let_go()
    wait_until(lambda: [task["state"] for task in fleet.json("task", "list")["tasks"]] == ["done"] * count, "the tasks")
    assert len(fleet.witnessed("begin")) == count
    fleet.run("down")
    assert fleet.broken_promises() == []


@pytest.mark.parametrize("spoilt", WAYS)
@pytest.mark.parametrize("words", [[], ["--detach"]])
def test_a_fleet_starts_and_works(fleet: Fleet, spoilt: Spoilt, words: list[str]) -> None:
    fleet.add(2, "goal")
    with spoilt(logs(fleet)):
        if words:
            fleet.run("up", *words)
        else:
            fleet.up()
        all_is_done(fleet, 2)


@pytest.mark.parametrize("spoilt", WAYS)
def test_a_running_fleet_replaces_who_dies_and_its_run_goes_on(fleet: Fleet, spoilt: Spoilt) -> None:
    fleet.add(1, "goal")
    supervisor = fleet.up().pid
    wait_until(lambda: fleet.witnessed("begin"), "the executor")
    with spoilt(logs(fleet)):
        before = fleet.pulse("goal").process
        os.kill(fork_server_of(supervisor), signal.SIGKILL)
        os.kill(before.pid, signal.SIGKILL)
        wait_for_another(fleet, "goal", before)
        assert fleet.pulse(SUPERVISOR).pid == supervisor
        fleet.add(1, "goal")
        all_is_done(fleet, 2)


def test_logs_that_were_removed_are_made_again_by_who_starts_next(fleet: Fleet) -> None:
    fleet.up()
    before = fleet.pulse("goal").process
    with removed(logs(fleet)):
        os.kill(before.pid, signal.SIGKILL)
        wait_for_another(fleet, "goal", before)
        assert fleet.state.log("goal").stat().st_size


def test_a_person_is_told(fleet: Fleet) -> None:
    fleet.up()
    with unwritable(logs(fleet)):
        (problem,) = fleet.json("status", expect=None)["problems"]
        (check,) = [check for check in fleet.json("doctor", expect=None)["checks"] if check["name"] == "logs"]
    assert str(logs(fleet)) in problem
    assert (check["status"], check["detail"]) == ("warning", problem)
    assert fleet.json("status")["problems"] == []
