"""Executors that do what they can to get away: the slot is held until nothing of them is left.

What lives of an executor is told by a mark in the command lines of its processes, which none of them can drop.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from operations_center.boards.local import NewTask
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.keeper.cgroup import usable_cgroup_parent
from operations_center.model import HOLDS_SLOT, Outcome, Run, RunState
from operations_center.pidfds import wait_for_end
from operations_center.stopping.runs import stop_run
from operations_center.watcher import Watcher
from operations_center.wiring import Center
from tests.fleet import Fleet, kill_if_there, wait_until
from tests.runs import run_of_a_dead_watcher
from tests.syscalls import EVERY_POINT

CONFIG = """
[center]
cgroup = "{cgroup}"
[roles.goal]
backend = "agent"
max_attempts = 1
max_interruptions = 1
[backends.agent]
kind = "command"
argv = {argv}
stdin = "none"
max_concurrent = 1
timeout = "{timeout}"
grace = "200ms"
"""

EXECUTOR = r"""
import ctypes, os, shutil, signal, sys, time
mark, kind, end = sys.argv[1:]
home, run = os.environ["HOME"], os.environ["OPERATIONS_CENTER_RUN_DIR"]

def linger(word="lives"):
    # Whoever begins anew has another session, no environment, no descriptors, and is in no directory of the run.
    script = "import os, time; os.closerange(0, 1024); time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", script, mark, word], {})

def detached(what):
    if os.fork():
        return os.wait()
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    what()

def ignore():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

def child(what):
    if not os.fork():
        what()
        os._exit(0)

def daemon():
    detached(linger)

def stubborn_daemon():
    ignore()
    detached(linger)

def many():
    for _ in range(500):
        child(lambda: time.sleep(600))

def sessions():
    for _ in range(20):
        child(lambda: (os.setsid(), linger()))

def chain():
    # One dies and the next is born all the time.
    def go_on():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(0.002)
    detached(go_on)

def stopped():
    child(lambda: os.kill(os.getpid(), signal.SIGSTOP))

def traced():
    def trace_me():
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    ignore()
    child(trace_me)

def namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    def apart():
        assert libc.unshare(0x10000000 | 0x20000000) == 0, os.strerror(ctypes.get_errno())
        if not os.fork():
            ignore()
            linger()
        time.sleep(600)
    child(apart)

def kill_keeper():
    child(lambda: time.sleep(600))
    os.kill(os.getppid(), signal.SIGKILL)

def kill_keeper_and_hide():
    detached(linger)
    os.kill(os.getppid(), signal.SIGKILL)

def shed_and_kill_keeper():
    # What is left has neither an environment nor a parent of the run, and is in the executor's own session.
    child(linger)
    os.kill(os.getppid(), signal.SIGKILL)

def kill_timer():
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
            if b"timer" in words and os.readlink(f"/proc/{pid}/cwd") == run:
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass

def delete_directory():
    # Nobody can record its exit then: what it leaves behind may run on.
    shutil.rmtree(run)
    child(lambda: time.sleep(1))

def close_directory():
    os.chmod(run, 0)
    child(lambda: time.sleep(600))

globals()[kind]()
os.rename(os.open(home + "/making", os.O_CREAT) and home + "/making", home + "/made")
if end == "stays":
    time.sleep(600)
"""

KINDS = {
    "daemon": {Outcome.SUCCEEDED},
    "stubborn_daemon": {Outcome.SUCCEEDED},
    "many": {Outcome.SUCCEEDED},
    "sessions": {Outcome.SUCCEEDED},
    "chain": {Outcome.SUCCEEDED},
    "stopped": {Outcome.SUCCEEDED},
    "traced": {Outcome.SUCCEEDED},
    "namespace": {Outcome.SUCCEEDED},
    "kill_keeper": {Outcome.LOST},
    "kill_keeper_and_hide": {Outcome.LOST},
    "shed_and_kill_keeper": {Outcome.LOST},
    "kill_timer": {Outcome.SUCCEEDED},
    "delete_directory": {Outcome.UNKNOWN},
    # For root, modes forbid nothing.
    "close_directory": {Outcome.SUCCEEDED if os.geteuid() == 0 else Outcome.FAILED},
}
"""What executors do, and how their runs end when they then exit with 0."""

WAYS = list(product(["auto", "off"], ["watched", "unwatched"], ["ends", "stays"]))


def ways_of(number: int) -> list[tuple[str, str, str]]:
    """Each kind with a cgroup and without one; which ways beside that depends on the kind."""
    return WAYS if EVERY_POINT else [WAYS[number % 4], WAYS[4 + (number + 2) % 4]]


CASES = [(kind, *way) for number, kind in enumerate(KINDS) for way in ways_of(number)]


@pytest.fixture
def mark() -> str:
    return f"mark-{secrets.token_hex(8)}"


def marked(mark: str) -> list[int]:
    """Everything that lives of an executor, with its keeper; a zombie has no command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def watcher_of(fleet: Fleet) -> int:
    """A real watcher, forked from here; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(fleet.environment)
            with fleet.center() as center:
                Watcher(center, center.config.roles["goal"], once=True).run()
        finally:
            os._exit(0)
    return pid


@pytest.mark.parametrize(("kind", "cgroup", "watching", "end"), CASES)
def test_the_slot_is_held_until_nothing_of_the_executor_is_left(
    fleet: Fleet, mark: str, kind: str, cgroup: str, watching: str, end: str
) -> None:
    if cgroup == "auto" and usable_cgroup_parent() is None:
        pytest.skip("this machine offers no usable cgroup")
    if cgroup == "off" and kind == "kill_keeper_and_hide":
        pytest.skip("without a cgroup nothing tells of it, as `doctor` warns")
    if kind == "namespace" and not can_make_namespaces():
        pytest.skip("this machine lets nobody make a user namespace")
    (fleet.root / "executor.py").write_text(EXECUTOR)
    argv = [sys.executable, "-I", "-S", str(fleet.root / "executor.py"), mark, kind, end]
    fleet.configure(CONFIG.format(cgroup=cgroup, argv=json.dumps(argv), timeout="1h"))
    with fleet.center() as center:
        (task_id,) = center.board.add([NewTask("Do it", "goal")])
    watcher = watcher_of(fleet) if watching == "watched" else None
    if watcher is None:
        run_of_a_dead_watcher(fleet, task_id)
    try:
        wait_until((fleet.root / "made").exists, "what the executor does")
        with fleet.center() as center:
            run = see_to_the_end(center, mark, stop=end == "stays")
    finally:
        for pid in marked(mark):
            kill_if_there(pid)
        if watcher is not None:
            os.waitpid(watcher, 0)
    assert run.outcome in ({Outcome.STOPPED} | KINDS[kind] - {Outcome.SUCCEEDED} if end == "stays" else KINDS[kind])
    assert fleet.broken_promises() == []


def see_to_the_end(center: Center, mark: str, *, stop: bool) -> Run:
    """Reconcile until the run is closed: at no moment its slot is free and something of it alive."""
    deadline = time.monotonic() + 60
    while True:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=2)
        # Read in this order: a slot that is free before its tree is gone is a broken promise.
        assert run.state in HOLDS_SLOT or not marked(mark)
        if run.state is RunState.CLOSED:
            return run
        assert time.monotonic() < deadline, f"run {run.run_id} is still {run.state}, with {marked(mark)}"
        if stop:
            stop_run(center, run.run_id, "for a test", wait=False)
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        wait_for_end([run.keeper] if run.keeper is not None else [], time.monotonic() + 0.05)


def can_make_namespaces() -> bool:
    tried = subprocess.run(["unshare", "--user", "--pid", "--fork", "true"], check=False, capture_output=True)
    return tried.returncode == 0
