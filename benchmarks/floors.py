"""The least that a thing can cost: bare system calls and bare SQL, watched by the same eyes as ours."""

import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fleets import Announcements, LedgerEye, kill, now_ns, when_ended
from operations_center.keeper import cgroup

_ENDS_SLOTS = """
import os, select, sqlite3, sys
ledger = sqlite3.connect(sys.argv[1], isolation_level=None)
ledger.execute("PRAGMA synchronous=" + sys.argv[2])
while True:
    pid = os.posix_spawnp("sleep", ["sleep", "86399"], os.environ)
    poll = select.poll()
    poll.register(os.pidfd_open(pid), select.POLLIN)
    ledger.execute("INSERT INTO slots (pid, state) VALUES (?, 'running')", (pid,))
    os.write(1, b"%d\\n" % pid)
    poll.poll()
    ledger.execute("UPDATE slots SET state = 'free' WHERE pid = ?", (pid,))
    os.waitpid(pid, 0)
"""

_KEEPS_ALIVE = """
import os, sys
while True:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", sys.argv[1]], os.environ)
    os.waitpid(pid, 0)
"""


def free_by_pidfd(root: Path, synchronous: str, kills: int) -> list[int]:
    """ns from the kill of a process to the update of one row, by a process that waits on its pidfd."""
    path = root / f"floor-{synchronous}.db"
    with sqlite3.connect(path, isolation_level=None) as ledger:
        ledger.execute("PRAGMA journal_mode=WAL")
        ledger.execute("CREATE TABLE slots (pid INTEGER, state TEXT)")
    took = []
    with _python(_ENDS_SLOTS, str(path), synchronous) as process, LedgerEye(path) as eye:
        for _ in range(kills):
            pid = int(_line(process))
            select.select([], [], [], 0.01)
            begun = kill(pid)
            took.append(eye.when("SELECT state = 'free' FROM slots WHERE pid = ? ORDER BY rowid DESC", pid) - begun)
        _kill_children(process)
    return took


def start_again(root: Path, kills: int) -> list[int]:
    """ns from the kill of a process to the first instruction of the next: waitpid and posix_spawn, nothing else."""
    announcements = Announcements(root / "floor-announcements")
    took = []
    with _python(_KEEPS_ALIVE, announcements.executor()[2]) as process:
        pid, _ = announcements.next()
        for _ in range(kills):
            select.select([], [], [], 0.01)
            begun = kill(pid)
            pid, at = announcements.next()
            took.append(at - begun)
        _kill_children(process)
    return took


def spawn(announcements: Announcements) -> int:
    """ns from posix_spawn of a shell to its first instruction."""
    begun = now_ns()
    child = os.posix_spawn("/bin/sh", announcements.executor("exit 0"), os.environ)
    _, at = announcements.next()
    os.waitpid(child, 0)
    return at - begun


def moves_into_cgroup(times: int) -> list[int]:
    """ns that a new process needs to move into a cgroup; nothing where none can be had.

    Not without a pause: only then the kernel waits for an RCU grace period, unless cgroups are mounted favordynmods.
    """
    parent = cgroup.usable_cgroup_parent()
    if parent is None:
        return []
    home = cgroup.create(parent, f"floor-{os.getpid()}")
    took = [_moves_into(home) for _ in range(times)]
    cgroup.remove(home)
    return took


def _moves_into(home: Path) -> int:
    select.select([], [], [], 0.2)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        procs = os.open(home / "cgroup.procs", os.O_WRONLY)
        begun = now_ns()
        os.write(procs, b"0")
        os.write(write_end, b"%d" % (now_ns() - begun))
        os._exit(0)
    os.waitpid(pid, 0)
    took = int(os.read(read_end, 32))
    os.close(read_end)
    os.close(write_end)
    return took


def synced_rename(root: Path) -> int:
    """ns to write a record of 64 bytes so that it survives a power cut: sync it, rename it, sync the directory."""
    record = b" " * 63 + b"\n"
    begun = now_ns()
    file = os.open(root / "record.draft", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(file, record)
    os.fsync(file)
    os.close(file)
    os.rename(root / "record.draft", root / "record")
    parent = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(parent)
    os.close(parent)
    return now_ns() - begun


@contextmanager
def _python(code: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    # -S -E: as little interpreter as there can be.
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", code, *arguments], stdout=subprocess.PIPE, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def _kill_children(process: "subprocess.Popen[bytes]") -> None:
    """It would start the next one: so it is stopped first."""
    process.send_signal(signal.SIGSTOP)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in map(int, children):
        pidfd = os.pidfd_open(pid)
        kill(pid)
        when_ended(pidfd)
        os.close(pidfd)
