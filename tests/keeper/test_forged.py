"""What a run's files claim counts only if the kernel agrees."""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from operations_center.identity import Process, is_alive
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import (
    RUN_ID_VARIABLE,
    Gate,
    GateState,
    ProcessTable,
    Tree,
    TreeQuery,
    find_trees,
    read_gate,
)
from operations_center.keeper.processes import KERNEL, proven_keeper
from operations_center.keeper.stop import kill, terminate
from operations_center.locks import is_locked, processes_holding
from tests.fleet import wait_until
from tests.keeper.conftest import Bench

RUN_ID = "r4711-abcdef"


@contextmanager
def stranger(script: str, **options: object) -> Iterator["subprocess.Popen[str]"]:
    """A shell in a session of its own; it runs until its input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(["sh", "-c", script], **pipes | options) as popen:  # type: ignore[call-overload]
        yield popen


def tree_claimed_by(keeper: Process, run_id: str = RUN_ID) -> tuple[bool, int]:
    """Whether there is anything to a gate with this keeper, and how many processes take a signal for it."""
    tree = find_trees([TreeQuery(run_id, claimed=keeper)])[run_id]
    return tree.is_empty and tree.keeper is None, terminate(tree) + kill(tree)


def test_gate_that_names_a_stranger_names_no_keeper(tmp_path: Path) -> None:
    with stranger("read -r line") as popen:
        process = Process.of(popen.pid)
        (tmp_path / "gate").write_text(f"{process.pid} {process.start_ticks} end\n")
        assert read_gate(tmp_path) == Gate(GateState.KEEPER, process)
        assert proven_keeper(KERNEL, RUN_ID, tmp_path) is None
        assert tree_claimed_by(process) == (True, 0)
        assert is_alive(process)


def test_gate_that_names_the_dead_leader_of_a_strangers_session_finds_nobody() -> None:
    with stranger("sleep 300 >/dev/null & echo $!") as popen:
        assert popen.stdout is not None
        member = Process.of(int(popen.stdout.readline()))
        popen.wait()
        try:
            assert tree_claimed_by(Process(popen.pid, 0)) == (True, 0)
            assert is_alive(member)
        finally:
            KERNEL.signal(member, signal.SIGKILL)


def test_gate_that_names_a_process_of_the_run_names_its_keeper(bench: Bench) -> None:
    plan, run = bench.launch("sleep", "300")
    wait_until(lambda: read_gate(plan.run_directory).state is GateState.KEEPER, "the gate")
    assert proven_keeper(KERNEL, plan.run_id, plan.run_directory) == run.keeper
    wait_until(lambda: tree_of_claimed(plan.run_id, run.keeper).members, "the executor")
    tree = tree_of_claimed(plan.run_id, run.keeper)
    assert (tree.keeper, tree.keeper_alive) == (run.keeper, True)
    later = run.keeper._replace(start_ticks=run.keeper.start_ticks + 1)
    assert tree_of_claimed(plan.run_id, later).keeper is None


def tree_of_claimed(run_id: str, keeper: Process) -> Tree:
    return find_trees([TreeQuery(run_id, claimed=keeper)])[run_id]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the environment of other users")
@pytest.mark.parametrize("users", [{"user": 4711}, {"user": 4711, "group": 4711}])
def test_process_of_another_user_is_of_no_run_whatever_its_environment(users: dict[str, int]) -> None:
    environment = {RUN_ID_VARIABLE: RUN_ID, "PATH": os.defpath}
    with stranger("echo; read -r line", env=environment, **users) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        assert RUN_ID not in ProcessTable.scan().run_ids
        assert not KERNEL.is_of_run(Process.of(popen.pid), RUN_ID)
    with stranger("echo; read -r line", env=environment) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        assert KERNEL.is_of_run(Process.of(popen.pid), RUN_ID)


def test_directory_that_is_no_cgroup_is_none_whoever_names_it(tmp_path: Path) -> None:
    planted = tmp_path / f"{cgroup.PREFIX}{RUN_ID}"
    planted.mkdir()
    for name in ("cgroup.events", "cgroup.procs", "cgroup.kill"):
        os.mkfifo(planted / name)
    assert cgroup.of_run(RUN_ID, str(planted)) is None
    assert cgroup.of_run(RUN_ID, "/proc/\0/x") is None
    assert cgroup.of_run(RUN_ID, None) is None
    # Nor does anything wait for a FIFO that came into the place of the kernel's file.
    assert cgroup.is_populated(planted) is None
    assert cgroup.members(planted) == ()
    assert not cgroup.kill(planted)


def test_cgroup_of_another_name_is_not_the_runs(cgroup_parent: Path) -> None:
    path = cgroup.create(cgroup_parent, RUN_ID)
    try:
        assert cgroup.of_run(RUN_ID, str(path)) == path == cgroup.of_run(RUN_ID, None)
        assert cgroup.of_run("r4712-abcdef", str(path)) is None
    finally:
        cgroup.remove(path)


def test_cgroups_nested_deeper_than_a_path_are_read_and_removed(cgroup_parent: Path) -> None:
    path = cgroup.create(cgroup_parent, RUN_ID)
    here = os.open(path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("nested", dir_fd=here)
        below = os.open("nested", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert cgroup.members(path) == ()
    assert cgroup.remove(path)
    assert not path.exists()


HOLDER = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"


def test_processes_that_hold_a_lock_are_found_also_where_another_took_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        child = subprocess.Popen(["sleep", "300"], pass_fds=[file.fileno()])
    try:
        assert is_locked(lock)
        assert processes_holding(lock) == [child.pid]
    finally:
        child.kill()
        child.wait()
    assert processes_holding(lock) == []
    with stranger(f"exec python3 -c '{HOLDER}' {lock}") as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        assert processes_holding(lock) == [popen.pid]
