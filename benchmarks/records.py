"""Runs that are faked by their records: rows, events, run directories. ``ledger verify`` finds nothing wrong with them.

Trees that are gone have a gate, a free lock, blank records and outputs, as a killed keeper leaves them. Trees that live
share a hundred living keepers, and their locks are links to those that these hold: what is looked at is what would be
looked at with ten thousand keepers, but for the size of the process table.
"""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.identity import Process, read_stat
from operations_center.keeper.launch import RECORD_SIZE
from operations_center.ledger import Admission
from operations_center.model import Run, RunState
from operations_center.wiring import Center

KEEPERS = 100
_RECORD = b" " * (RECORD_SIZE - 1) + b"\n"


@dataclass(frozen=True, slots=True)
class Keeper:
    process: Process
    lock: Path | None = None


def dead_process() -> Process:
    """Was there once: its pid is free, or a stranger's."""
    child = subprocess.Popen(["true"])
    child.wait()
    return Process(child.pid, 1)


@contextmanager
def living_keepers(directory: Path) -> Iterator[list[Keeper]]:
    """Each is a shell in a session of its own with a sleeper as its executor, and holds a lock."""
    directory.mkdir()
    children = []
    try:
        for number in range(KEEPERS):
            lock = directory / f"lock{number}"
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            children.append(subprocess.Popen(["sh", "-c", "sleep 86399; :"], stdin=descriptor, start_new_session=True))
            os.close(descriptor)
        yield [Keeper(_identify(child.pid), directory / f"lock{n}") for n, child in enumerate(children)]
    finally:
        for child in children:
            os.killpg(child.pid, 9)
            child.wait()


def add_open_runs(center: Center, roles: Sequence[str], count: int, watcher: Process, keepers: Sequence[Keeper]) -> None:
    """Running runs of as many tasks, dealt out to roles and keepers in turn; their slots are all there are."""
    with center.ledger.transaction():
        for number in range(count):
            role, keeper = roles[number % len(roles)], keepers[number % len(keepers)]
            (task_id,) = center.board.add([NewTask(f"task {number}", role)])
            request = Admission(task_id, role, "agent", Limits(count), center.host, watcher, 1000, None)
            run = center.ledger.admit(request)
            assert isinstance(run, Run), run
            center.board.claim(task_id, run.run_id)
            now = center.clock.now().wall
            center.ledger.change_run(
                run,
                "run.started",
                state=RunState.RUNNING,
                keeper_pid=keeper.process.pid,
                keeper_ticks=keeper.process.start_ticks,
                started_at=now,
            )
            _make_directory(center.state.run(run.run_id), keeper, task_id)


def _make_directory(directory: Path, keeper: Keeper, task_id: str) -> None:
    directory.mkdir()
    (directory / "work").mkdir()
    files = {
        "task.json": json.dumps({"id": task_id, "title": "a task", "kind": "goal", "body": ""}).encode(),
        "prompt": b"a task",
        "timed_out": _RECORD,
        "exit": _RECORD,
        "gate": b"%d %d end\n" % keeper.process,
        "stdout": b"",
        "stderr": b"",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    if keeper.lock is None:
        (directory / "lock").touch()
    else:
        os.link(keeper.lock, directory / "lock")


def _identify(pid: int) -> Process:
    stat = read_stat(pid)
    assert stat is not None
    return Process(pid, stat.start_ticks)
