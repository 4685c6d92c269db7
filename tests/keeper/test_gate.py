"""Keeper against revoker: whoever creates the gate decides, and nothing else does."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from operations_center.keeper.inspect import GateState, ProcessTable, TreeQuery, read_gate, tree_of
from operations_center.keeper.launch import RunDirectoryExists, prepare, revoke, start
from tests.fleet import PATIENCE_S, wait_until

from .conftest import Bench, exit_code


def has_run(directory: Path) -> bool:
    return (directory / "work" / "ran").exists()


def test_a_run_revoked_before_its_launch_never_runs(bench: Bench) -> None:
    plan = bench.plan("touch", "ran", timeout_ms=60_000)
    prepare(plan)
    assert revoke(plan.run_directory)
    run = start(plan)
    bench.runs.append(run)
    assert [child.wait(timeout=PATIENCE_S) for child in run.children] == [0, 0]
    assert not has_run(plan.run_directory)


def test_a_run_revoked_before_it_has_a_directory_cannot_be_prepared(bench: Bench) -> None:
    plan = bench.plan("touch", "ran")
    assert revoke(plan.run_directory)
    assert plan.run_directory.stat().st_mode & 0o077 == 0
    with pytest.raises(RunDirectoryExists):
        prepare(plan)


def test_revoking_twice_is_the_same_as_once(bench: Bench) -> None:
    directory = bench.plan("true").run_directory
    assert [revoke(directory), revoke(directory)] == [True, True]
    assert read_gate(directory).state is GateState.REVOKED
    assert [path.name for path in directory.iterdir()] == ["gate"]


@pytest.mark.parametrize("plant", ["ln -s {elsewhere} {place}", "touch {place}", "mkfifo {place}"])
def test_a_run_is_revoked_nowhere_else_than_in_its_own_directory(tmp_path: Path, plant: str) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    subprocess.run(["sh", "-c", plant.format(elsewhere=elsewhere, place=place)], check=True)
    assert revoke(place)
    assert read_gate(place).state is GateState.REVOKED
    assert not any(elsewhere.iterdir())


def test_a_run_that_began_cannot_be_revoked(bench: Bench) -> None:
    plan = bench.finish("touch", "ran")
    assert not revoke(plan.run_directory)
    assert has_run(plan.run_directory)


@pytest.mark.parametrize("content", ["", "12", "12 34", "12 34 en", "revoked", "x y end\n"])
def test_a_gate_that_is_not_whole_is_unreadable_and_not_absent(tmp_path: Path, content: str) -> None:
    (tmp_path / "gate").write_text(content)
    assert read_gate(tmp_path).state is GateState.UNREADABLE
    assert not revoke(tmp_path)


def test_of_keeper_and_revoker_exactly_one_wins(bench: Bench) -> None:
    revoked = 0
    delay = 0.001
    for _ in range(200):
        plan = bench.plan("touch", "ran", stdin=False)
        prepare(plan)
        won: list[bool] = []

        def contend(directory: Path = plan.run_directory, won: list[bool] = won, delay: float = delay) -> None:
            time.sleep(delay)
            won.append(revoke(directory))

        revoker = threading.Thread(target=contend)
        revoker.start()
        run = start(plan)
        revoker.join()
        for child in run.children:
            child.wait(timeout=PATIENCE_S)
        assert has_run(plan.run_directory) is not won[0]
        revoked += won[0]
        # Who won comes later the next time, so that the two meet at the gate however fast the machine is.
        delay *= 1.25 if won[0] else 0.8
    assert 0 < revoked < 200, f"no race took place: revoked {revoked} of 200"


STOP_AT_STEP = """
import os, signal, sys
from pathlib import Path
from operations_center.keeper import launch, script

step = int(sys.argv[3])
plan = launch.LaunchPlan(
    run_id=sys.argv[1], run_directory=Path(sys.argv[2]), argv=("touch", "ran"),
    environment={"PATH": "/usr/bin:/bin"}, stdin=False, working_directory=None, prompt="", task_json=b"{}",
    timeout_ms=60_000, idle_timeout_ms=None, grace_ms=100, cgroup_parent=None)
seen = 0

def stop_here():
    global seen
    if seen == step:
        os.kill(os.getpid(), signal.SIGSTOP)
    seen += 1

def stopping(function):
    def wrapped(*arguments, **options):
        stop_here()
        return function(*arguments, **options)
    return wrapped

script._reset_signals = stopping(script._reset_signals)
for module, names in (
    (launch, ("_write", "_take_lock", "_pipe", "start_timer", "_start_keeper", "_make_cgroup")),
    (launch.os, ("rename",)),
    (launch.fcntl, ("flock",)),
    (launch.Path, ("mkdir", "rename")),
):
    for name in names:
        setattr(module, name, stopping(getattr(module, name)))
try:
    launch.prepare(plan)
    run = launch.start(plan)
    stop_here()
except launch.RunDirectoryExists:
    sys.exit(0)
for child in run.children:
    child.wait()
sys.exit(0 if seen > step else 99)
"""


def _spawn_stopping(bench: Bench, step: int) -> "tuple[Path, subprocess.Popen[bytes]]":
    plan = bench.plan("touch", "ran")
    spawner = subprocess.Popen([sys.executable, "-c", STOP_AT_STEP, plan.run_id, str(plan.run_directory), str(step)])
    return plan.run_directory, spawner


def _stopped_process(spawner: int) -> int | None:
    """The spawner itself, or what it forked: that stops between fork and exec."""
    table = ProcessTable.scan(with_environments=False)
    for pid in table.with_descendants([spawner]):
        facts = table.processes.get(pid)
        if facts is not None and facts.state == "T":
            return pid
    return None


def _has_stopped_or_ended(spawner: "subprocess.Popen[bytes]") -> bool:
    return _stopped_process(spawner.pid) is not None or spawner.poll() is not None


def _is_empty(query: TreeQuery) -> bool:
    return tree_of(ProcessTable.scan(), query).is_empty


def _has_gone_on(spawner: "subprocess.Popen[bytes]") -> bool:
    # More than once: what a step forks counts its steps apart from the spawner.
    stopped = _stopped_process(spawner.pid)
    if stopped is not None:
        os.kill(stopped, signal.SIGCONT)
    return spawner.poll() is not None


def test_a_spawner_stopped_at_any_step_starts_nothing_once_its_run_is_revoked(bench: Bench) -> None:
    stopped_at = []
    for step in range(60):
        directory, spawner = _spawn_stopping(bench, step)
        wait_until(partial(_has_stopped_or_ended, spawner), "the spawner to stop")
        stopped = _stopped_process(spawner.pid)
        if stopped is None:
            assert spawner.wait() == 99
            break
        stopped_at.append(step)
        won = revoke(directory)
        wait_until(partial(_has_gone_on, spawner), "the spawner to end")
        assert has_run(directory) is not won
    assert len(stopped_at) >= 15


def test_a_spawner_killed_at_any_step_leaves_a_run_that_can_be_judged(bench: Bench) -> None:
    for step in range(60):
        directory, spawner = _spawn_stopping(bench, step)
        wait_until(partial(_has_stopped_or_ended, spawner), "the spawner to stop")
        stopped = _stopped_process(spawner.pid)
        if stopped is None:
            assert spawner.wait() == 99
            return
        os.kill(spawner.pid, signal.SIGKILL)
        spawner.wait()
        won = revoke(directory)
        if stopped != spawner.pid:
            # Forked, and not yet executing anything of ours: it meets the gate when it wakes up.
            os.kill(stopped, signal.SIGCONT)
        query = TreeQuery(bench.plans[-1].run_id)
        wait_until(partial(_is_empty, query), "an empty tree")
        assert has_run(directory) is not won
        if not won:
            assert exit_code(bench.plans[-1]) == 0
    raise AssertionError("the spawner has more steps than were tried")
