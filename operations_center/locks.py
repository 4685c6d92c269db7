"""Kernel-held locks on one host, and who holds one.

The kernel frees a lock when its holder dies, so nothing here can be stale.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from operations_center.errors import LockHeld, OperationsCenterError
from operations_center.files import open_directory, open_own_file, read_file
from operations_center.titles import holding

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs"})
"""SQLite's write-ahead log needs memory shared between processes, which these do not give (sqlite.org/wal.html)."""


PROBE_WITHIN_S = 0.5
PAUSE_S = 0.005
"""Between two tries for a lock."""

PAGE = 4096
READINGS = 3
"""The kernel hands ``/proc/locks`` out in pages: when other locks come and go meanwhile, a line can be missed."""


def take_lock(path: Path, what: str, *, inherited: int | None = None) -> int:
    """Take a lock for the rest of this process's life and return its descriptor.

    Raises LockHeld, naming the holder, when somebody else has it. ``what`` names the lock for people. ``inherited``
    is the descriptor by which this process holds it already, since before it executed itself anew.
    """
    if inherited is not None and is_still_there(inherited, path):
        os.set_inheritable(inherited, False)
        return inherited
    try:
        descriptor = _open(path)
    except OSError as error:
        raise OperationsCenterError(f"cannot start {what}: cannot open the lock {path}: {error.strerror}") from error
    deadline, is_late = time.monotonic() + PROBE_WITHIN_S, False
    while not _try_lock(descriptor):
        holder = lock_holder(path)
        # Nobody holds it for good: a probe was in the way, and is over in a moment.
        if holder is not None or is_late:
            os.close(descriptor)
            raise LockHeld(f"cannot start {what}: {holding(holder, path)}")
        time.sleep(PAUSE_S)
        is_late = time.monotonic() > deadline
    return descriptor


def is_still_there(descriptor: int, path: Path) -> bool:
    """Whether a lock that was taken is the one that others would find; False after somebody removed its file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


@contextmanager
def lock_within(path: Path, seconds: float) -> Iterator[bool]:
    """Hold a lock for a block; yields False when it could not be had in time.

    ``path`` is a file, which is made where there is none, or a directory, which need only be read.
    """
    deadline = time.monotonic() + seconds
    try:
        descriptor = open_directory(path) if path.is_dir() else _open(path)
    except OSError as error:
        raise OperationsCenterError(f"cannot take the lock {path}: {error.strerror}") from error
    try:
        yield _lock_before(deadline, descriptor)
    finally:
        os.close(descriptor)


def _lock_before(deadline: float, descriptor: int) -> bool:
    # The time is taken before each try: who stood still until it was over tries once more.
    is_late = time.monotonic() >= deadline
    while not _try_lock(descriptor):
        if is_late:
            return False
        time.sleep(PAUSE_S)
        is_late = time.monotonic() >= deadline
    return True


def _open(path: Path) -> int:
    return open_own_file(path, os.O_RDWR)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_holder(path: Path, likely: int | None = None) -> int | None:
    """The pid that took the flock on a file; None when nobody in this pid namespace has.

    ``likely`` is asked first: it is a pid that may well be the holder. ``/proc/locks`` is asked last, because its
    reader holds up every other lock of the machine for some milliseconds (fs/locks.c: file_rwsem).
    """
    if not is_locked(path):
        return None
    try:
        facts = path.lstat()
        file_id = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        if likely is not None and _holder_in(_locks_of(likely), file_id) == likely:
            return likely
        for _ in range(READINGS):
            table = Path("/proc/locks").read_text()
            holder = _holder_in(table.splitlines(), file_id)
            if holder is not None or len(table) <= PAGE:
                return holder
    except OSError:
        pass
    return None


def processes_holding(path: Path | str) -> list[int]:
    """Every process that we may look at and that has a file open on which it holds an exclusive flock.

    Asks each process of the machine: not for what is done often. ``lock_holder`` tells who has taken the lock: that
    process may have ended, and have left the open file to others.
    """
    try:
        wanted = os.lstat(path)
    except OSError:
        return []
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _holds(pid, wanted)]


def _holds(pid: int, wanted: os.stat_result) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted) and _has_lock(pid, name):
                    return True
    return False


def _has_lock(pid: int, descriptor: str) -> bool:
    lines = read_file(f"/proc/{pid}/fdinfo/{descriptor}", PAGE).decode().splitlines()
    return any(line.startswith("lock:") and line.split()[2:5:2] == ["FLOCK", "WRITE"] for line in lines)


def _locks_of(pid: int) -> Iterator[str]:
    """The lines of ``/proc/locks`` that concern a process's own files (proc_pid_fdinfo(5))."""
    directory = Path(f"/proc/{pid}/fdinfo")
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        try:
            text = (directory / name).read_text()
        except OSError:
            # Closed meanwhile.
            continue
        for line in text.splitlines():
            if line.startswith("lock:"):
                yield line.removeprefix("lock:")


def _holder_in(lines: Iterable[str], file_id: str) -> int | None:
    for line in lines:
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 1234 fd:00:5678 0 EOF"; a waiter's line has "->" as its second field.
        # A reader is only somebody's probe.
        if fields[1:4:2] == ["FLOCK", "WRITE"] and fields[5] == file_id and int(fields[4]) > 0:
            return int(fields[4])
    return None


def is_locked(path: Path | str) -> bool:
    """Whether somebody holds an exclusive flock on the file. A shared probe: two of them do not see each other."""
    try:
        # Not blocking and not following: an executor may put anything in the place of its run's lock.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_broken_locks(directory: Path) -> None:
    """Raises OperationsCenterError where a file system keeps no locks that processes can rely on."""
    kind = file_system_kind(directory)
    if kind in NETWORK_FILE_SYSTEMS:
        raise OperationsCenterError(
            f"cannot use the state directory {directory}: {kind} keeps no locks to rely on; "
            "set center.state_dir to a local file system"
        )
    probe = directory / f".lock-probe.{os.getpid()}"
    try:
        first = open_own_file(probe, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # They worked when there was room, and whoever ends something on a full disk has no other way.
            return
        raise OperationsCenterError(f"cannot write the state directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        works = is_locked(probe)
    except OSError:
        works = False
    finally:
        os.close(first)
        probe.unlink()
    if not works:
        raise OperationsCenterError(
            f"cannot use the state directory {directory}: file locks do not work on its file system; "
            "set center.state_dir to a local one"
        )


def file_system_kind(directory: Path) -> str:
    """The type of the mount that holds a directory, e.g. ``ext4``; ``unknown`` if the kernel does not say."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # proc_pid_mountinfo(5): "36 35 98:0 / /mnt rw shared:1 - ext4 /dev/sda1 rw"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"
