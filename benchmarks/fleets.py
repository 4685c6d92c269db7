"""A real fleet in a directory of its own, and the eyes that watch it.

Every time is CLOCK_MONOTONIC in nanoseconds. What is watched is asked again and again without a pause, on a core of
its own: the answer is late by at most the time between two questions.
"""

import json
import os
import select
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from operations_center.boards.local import NewTask
from operations_center.wiring import Center
from tests.fleet import Fleet

PATIENCE_S = 60.0

now_ns = time.monotonic_ns


@contextmanager
def directory() -> Iterator[Path]:
    """On the disk that temporary files are on: the syncs that are measured need a real one."""
    with tempfile.TemporaryDirectory(prefix="oc bench ") as name:
        yield Path(name)


@contextmanager
def running_fleet(root: Path, config: str, environment: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """A fleet with all of its watchers ready; ended with its executors."""
    fleet = _FleetWith(root, more=environment or {})
    fleet.configure(config)
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.run("down", "--now", expect=None)
        fleet.clean_up()


@dataclass
class _FleetWith(Fleet):
    """``more`` is set in its environment."""

    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | dict(self.more)


def one_role(argv: list[str], *, cap: int = 1, more: str = "") -> str:
    """A configuration with the role ``goal``, whose runs are lost for good when they are killed."""
    return f"""
[roles.goal]
backend = "agent"
concurrency = {cap}
max_attempts = 1
[backends.agent]
kind = "command"
argv = {json.dumps(argv)}
max_concurrent = {cap}
timeout = "1h"
{more}"""


def add_task(center: Center, title: str = "a task") -> tuple[str, int]:
    """Its id, and when it was committed: before anybody was woken."""
    (task_id,) = center.board.add([NewTask(title, "goal")])
    committed = now_ns()
    center.wake_everybody()
    return task_id, committed


class Announcements:
    """A FIFO into which a new process writes its pid as its first act."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._unread: list[tuple[int, int]] = []

    def executor(self, then: str = "exec sleep 86399") -> list[str]:
        """The command of an executor that announces itself."""
        return ["sh", "-c", f"echo $$ >'{self.path}'; {then}"]

    def fileno(self) -> int:
        return self._descriptor

    def next(self, seconds: float = PATIENCE_S) -> tuple[int, int]:
        """The pid of the next that announces itself, and when. Raises TimeoutError when none does in time."""
        while not self._unread:
            if not select.select([self._descriptor], [], [], seconds)[0]:
                raise TimeoutError(f"nobody announced itself within {seconds:.0f} s")
            self.read()
        return self._unread.pop(0)

    def read(self) -> list[tuple[int, int]]:
        """All that have announced themselves, also those still to be told by ``next``; does not wait."""
        at = now_ns()
        try:
            lines = os.read(self._descriptor, 65536).split()
        except BlockingIOError:
            return self._unread
        self._unread += [(int(line), at) for line in lines]
        return self._unread

    def take(self) -> list[tuple[int, int]]:
        """All that have announced themselves since; does not wait."""
        self.read()
        taken, self._unread = self._unread, []
        return taken

    def close(self) -> None:
        os.close(self._descriptor)


def announcing_interpreters(announcements: Announcements) -> dict[str, str]:
    """The environment in which every Python announces itself when it starts, and after a fork."""
    path = announcements.path.with_name("site")
    path.mkdir()
    (path / "sitecustomize.py").write_text(_SITE.format(fifo=str(announcements.path)))
    return {"PYTHONPATH": str(path)}


_SITE = """
import os
def announce():
    fifo = os.open({fifo!r}, os.O_WRONLY | os.O_NONBLOCK)
    os.write(fifo, b"%d\\n" % os.getpid())
    os.close(fifo)
announce()
os.register_at_fork(after_in_child=announce)
"""


class LedgerEye:
    """Reads a ledger through a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self.gaps_ns: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def one(self, statement: str, *parameters: object) -> Any:
        """The first column of the first row; None without a row."""
        row = self._connection.execute(statement, parameters).fetchone()
        return row[0] if row else None

    def when(self, statement: str, *parameters: object) -> int:
        """The moment at which this is first seen to be true; ``gaps_ns`` keeps how late that may be."""
        return when(lambda: self.one(statement, *parameters), self.gaps_ns)

    def when_started(self, executor: int) -> tuple[str, int]:
        """Run id and keeper of an executor, once its start is in the ledger."""
        keeper = parent_of(executor)
        self.when("SELECT 1 FROM runs WHERE keeper_pid = ? AND state = 'running'", keeper)
        return str(self.one("SELECT run_id FROM runs WHERE keeper_pid = ? AND state = 'running'", keeper)), keeper

    def when_free(self, run_id: str) -> int:
        return self.when("SELECT state NOT IN ('reserved', 'running') FROM runs WHERE run_id = ?", run_id)


def when(condition: Callable[[], Any], gaps_ns: list[int] | None = None) -> int:
    """The moment at which a condition is first seen to hold."""
    deadline = before = now_ns()
    deadline += round(PATIENCE_S * 1e9)
    while not condition():
        before = now_ns()
        if before > deadline:
            raise TimeoutError(f"it did not happen within {PATIENCE_S:.0f} s")
    seen = now_ns()
    if gaps_ns is not None:
        gaps_ns.append(seen - before)
    return seen


def when_each(conditions: Mapping[str, Callable[[], Any]], meanwhile: Callable[[], object]) -> dict[str, int]:
    """The moment of each, in whatever order they come; ``meanwhile`` is done between the looks."""
    left, moments = dict(conditions), dict[str, int]()
    deadline = now_ns() + round(PATIENCE_S * 1e9)
    while left:
        meanwhile()
        for name in [name for name, condition in left.items() if condition()]:
            moments[name] = now_ns()
            del left[name]
        if now_ns() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {', '.join(left)}")
    return moments


def when_ended(pidfd: int) -> int:
    """The moment at which the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return when(lambda: poll.poll(0))


def kill(*pids: int) -> int:
    """SIGKILL, in this order; the moment before the first."""
    begun = now_ns()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return begun


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def processes() -> int:
    return sum(name.isdecimal() for name in os.listdir("/proc"))


@contextmanager
def crowd(size: int) -> Iterator[int]:
    """So many processes on the machine, at least: sleepers are added. Yields how many there are."""
    sleepers = [subprocess.Popen(["sleep", "86399"]) for _ in range(size - processes())]
    try:
        yield processes()
    finally:
        for sleeper in sleepers:
            sleeper.kill()
        for sleeper in sleepers:
            sleeper.wait()
