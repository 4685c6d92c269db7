"""A person ends what has filled the disk: ending comes first, and what is lost of the record is told."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from operations_center.keeper.inspect import ProcessTable
from tests.fleet import Fleet, wait_until
from tests.process.test_full_disk import Disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 3
poll_interval = "200ms"
retry_backoff = { initial = "1h" }
[backends.agent]
kind = "command"
argv = ["sh", "-c", "trap '' TERM; while {test}; do echo more and more || sleep 0.01; done; exec sleep 600"]
stdin = "none"
max_concurrent = 3
grace = "300ms"
[watchdog]
every = "200ms"
min_free_disk = "0B"
"""
LOUD = "test $OPERATIONS_CENTER_TASK_ID = t1"
"""The executor of the first task fills the disk, takes every byte that is given back, and does not mind to be asked to
end."""

ALL_LOUD = ":"

Full = Callable[[Fleet], AbstractContextManager[Callable[[], object]]]

READING = ("runs", "task list", "task show t1", "events", "why", "explain {run}", "ledger verify", "releases")


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    configure(fleet, LOUD)
    yield fleet


def configure(fleet: Fleet, test: str) -> None:
    fleet.configure(CONFIG.replace("{test}", test))


@contextmanager
def without_blocks(fleet: Fleet) -> Iterator[Callable[[], object]]:
    """Yields what frees it again. The executors go on to fill it."""
    with Disk(fleet.state.root).mounted("size=24m") as disk:
        begin(fleet)
        disk.fill()
        yield disk.free
        fleet.clean_up()


@contextmanager
def without_inodes(fleet: Fleet) -> Iterator[Callable[[], object]]:
    with Disk(fleet.state.root).mounted("size=1g,nr_inodes=300") as disk:
        begin(fleet)
        many = disk.directory / "many"
        many.mkdir()
        take_every_inode(many)
        yield lambda: shutil.rmtree(many)
        fleet.clean_up()


def take_every_inode(directory: Path) -> None:
    for number in range(1000):
        try:
            (directory / str(number)).touch()
        except OSError:
            return


def begin(fleet: Fleet) -> None:
    fleet.add(3, "goal")
    fleet.up()
    wait_until(lambda: len(open_runs(fleet)) == 3, "three runs")
    wait_until((fleet.state.reserve / "part-7").exists, "the reserve")


def open_runs(fleet: Fleet) -> dict[str, str]:
    """By task."""
    runs = fleet.json("runs", "--open")["runs"]
    return {run["task_id"]: run["run_id"] for run in runs if run["state"] == "running"}


def make_read_only(mount: Path) -> None:
    """By a read-only view of it: the executors have files of it open for writing."""
    subprocess.run(["mount", "--bind", mount, mount], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)


def is_alive(run_id: str) -> bool:
    return run_id in ProcessTable.scan().run_ids


def read_everything(fleet: Fleet, run_id: str) -> None:
    for words in READING:
        fleet.run(*words.format(run=run_id).split())
    fleet.run("logs", run_id, "-n", "1")
    assert fleet.json("status", expect=None)["ledger_error"] is None


@pytest.mark.parametrize("full", [without_blocks, without_inodes])
def test_what_fills_a_disk_is_ended_and_its_end_recorded(fleet: Fleet, full: Full) -> None:
    with full(fleet) as free:
        runs = open_runs(fleet)
        read_everything(fleet, runs["t1"])
        fleet.run("doctor")
        fleet.run("stop", runs["t1"], "--reason", "too loud")
        assert not is_alive(runs["t1"])
        fleet.run("task", "cancel", "t2")
        assert not is_alive(runs["t2"])
        fleet.run("down", "--now")
        assert not is_alive(runs["t3"])
        read_everything(fleet, runs["t1"])

        free()
        fleet.run("reconcile")
        tasks = {task["id"]: (task["state"], task["reason"]) for task in fleet.json("task", "list")["tasks"]}
        assert tasks["t1"] == ("blocked", "too loud")
        assert tasks["t2"][0] == "cancelled"
        assert tasks["t3"][0] == "ready"
        assert fleet.broken_promises() == []


def test_a_run_is_stopped_where_nothing_can_be_recorded_and_that_is_told(fleet: Fleet) -> None:
    with Disk(fleet.state.root).mounted("size=24m"):
        begin(fleet)
        runs = open_runs(fleet)
        fleet.run("down")
        make_read_only(fleet.state.root)
        try:
            told = fleet.run("stop", runs["t1"], expect=75).stderr
            assert told.startswith(f"cannot record why run {runs['t1']} ended by KILL")
            assert not is_alive(runs["t1"])
            fleet.run("task", "cancel", "t2", expect=75)
            assert not is_alive(runs["t2"])
            read_everything(fleet, runs["t1"])
            assert runs["t3"] in fleet.run("down", "--now").stderr
            assert not is_alive(runs["t3"])
        finally:
            subprocess.run(["umount", "-l", fleet.state.root], check=True)
        fleet.clean_up()


def test_what_others_fill_again_at_once_is_ended_all_the_same(fleet: Fleet) -> None:
    """They may take the reserve before the end is settled: then it is told, and no stop that was told is lost."""
    configure(fleet, ALL_LOUD)
    with without_blocks(fleet) as free:
        runs = open_runs(fleet)
        told = fleet.run("stop", runs["t1"], "--reason", "too loud", expect=None)
        assert told.returncode in (0, 75), told.stderr
        assert not is_alive(runs["t1"])
        fleet.run("down", "--now")
        assert not any(is_alive(run_id) for run_id in runs.values())
        free()
        fleet.run("reconcile")
        (task,) = [task for task in fleet.json("task", "list")["tasks"] if task["id"] == "t1"]
        is_stored = told.returncode == 0 or "the stop is stored" in told.stderr
        assert task["state"] == ("blocked" if is_stored else "ready")
