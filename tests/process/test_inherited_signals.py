"""Whoever starts a fleet may have signals ignored or blocked (nohup, ``trap ''``, a mask): that ends with it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operations_center.identity import is_alive
from operations_center.signals import SIGNALS
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.process.test_fork_server import fork_server_of, wait_for_another
from tests.promises import living_runs

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh", "-c", "echo begun; exec sleep 300"]
stdin = "none"
max_concurrent = 1
timeout = "1h"
grace = "50s"
"""

DEAF = """
import os, signal, sys
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    if sys.argv[1] == "ignored":
        signal.signal(number, signal.SIG_IGN)
if sys.argv[1] == "blocked":
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Starts a program with all signals ignored or blocked."""

IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG)
    yield fleet
    fleet.let_go()


@pytest.fixture(params=["ignored", "blocked"])
def supervisor(request: pytest.FixtureRequest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a fleet that was started like this; its executor has begun."""
    argv = fleet.argv
    with monkeypatch.context() as patched:
        patched.setattr(fleet, "argv", lambda *words: [sys.executable, "-c", DEAF, request.param, *argv(*words)])
        pid = fleet.up().pid
    fleet.add(1, "goal")
    wait_until(lambda: executors(fleet), "the executor")
    return pid


def executors(fleet: Fleet) -> set[int]:
    return {pid for pids in living(fleet).values() for pid in pids if named(pid) == "sleep"}


def living(fleet: Fleet) -> dict[str, set[int]]:
    ours = {path.name for path in fleet.state.runs.iterdir()}
    return {run_id: pids for run_id, pids in living_runs().items() if run_id in ours}


def named(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def signals_of(pid: int, which: str) -> set[int]:
    """``SigIgn``, ``SigBlk`` or ``SigCgt`` of proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith(which))
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def test_watchers_keepers_and_executors_inherit_no_disposition_and_no_mask(fleet: Fleet, supervisor: int) -> None:
    ours = [fork_server_of(supervisor), fleet.pulse("goal").pid, fleet.pulse(WATCHDOG).pid]
    of_the_run = {pid for pids in living(fleet).values() for pid in pids}
    assert len(of_the_run) == 2
    for pid in (*ours, *of_the_run):
        # Watchers read what they block, together with its sender; a fork server ends with its socket only.
        assert signals_of(pid, "SigBlk") == (SIGNALS if pid in ours else set()), named(pid)
        assert signals_of(pid, "SigIgn") <= IGNORED_BY_PYTHON, named(pid)
    for pid in executors(fleet):
        assert signals_of(pid, "SigIgn") == set()


def test_a_fork_server_and_a_watcher_that_end_are_seen_and_replaced(fleet: Fleet, supervisor: int) -> None:
    server, before = fork_server_of(supervisor), fleet.pulse("goal").process
    os.kill(server, signal.SIGKILL)
    os.kill(before.pid, signal.SIGKILL)
    wait_for_another(fleet, "goal", before)
    assert fork_server_of(supervisor) != server
    assert wait_until(lambda: ended(fleet), "the note of its end") == [before.pid]
    assert len(executors(fleet)) == 1


def ended(fleet: Fleet) -> list[int]:
    return [event["data"]["pid"] for event in fleet.json("events")["events"] if event["kind"] == "watcher.ended"]


def stop(fleet: Fleet) -> None:
    fleet.run("stop", the_run(fleet))


def down_now(fleet: Fleet) -> None:
    fleet.run("down", "--now")


@pytest.mark.parametrize("how", [stop, down_now])
def test_stop_and_down_end_them_by_asking(fleet: Fleet, supervisor: int, how: Callable[[Fleet], object]) -> None:
    run_id = the_run(fleet)
    members = [fleet.pulse(name).process for name in (SUPERVISOR, "goal", WATCHDOG)]
    how(fleet)
    assert executors(fleet) == set()
    run = next(run for run in fleet.json("runs")["runs"] if run["run_id"] == run_id)
    assert (run["outcome"], run["exit_code"]) == ("stopped", 128 + signal.SIGTERM)
    fleet.run("down")
    assert not any(is_alive(process) for process in members)
    (process,) = fleet.supervisors
    assert process.wait(PATIENCE_S) == 0


def the_run(fleet: Fleet) -> str:
    (run_id,) = living(fleet)
    return run_id
