"""A fair gate in front of SQLite's single writer.

SQLite's busy handler polls, so whoever wrote last writes next and others starve: of eight processes one
got a single cycle in five seconds while another had 17,000. Here a writer first takes the *turn*, then the
*write* lock, then gives the turn back. Whoever has just written must queue for the turn again, behind the
one that waits for the write lock; nobody can pass it.

Kernel locks fall with their process, so a killed writer blocks nobody. A *stopped* one would: SIGSTOP inside
a transaction freezes every other writer. Whoever waits for it finds it in ``/proc/locks`` and ends it; its
transaction rolls back, and what it ran lives on and is adopted.

Who waits sleeps in the kernel, which hands the lock on at once: with a try every 50 µs instead, four and eight writers
got half as much done. An interval timer's signal makes the sleeper look at the deadline and at the holder.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from operations_center.errors import LedgerBusy, LedgerHeld
from operations_center.files import open_own_file
from operations_center.identity import Process, is_stopped, read_stat
from operations_center.locks import lock_holder
from operations_center.pidfds import open_pidfd
from operations_center.titles import described, holding, is_one_of_ours

PAUSE_S = 0.0005
"""Between two tries of a thread that no signal wakes."""

LOOK_EVERY_S = 0.05
"""How often a waiter looks whether its time is over, or the holder is stopped."""

STOPPED_FOR_S = 0.5
"""A holder that is seen stopped twice, this far apart, is ended."""


class Turnstile:
    def __init__(self, ledger: Path) -> None:
        self._turn_path, self._write_path = locks_of(ledger)
        self._turn = _open(self._turn_path)
        try:
            self._write = _open(self._write_path)
        except OSError:
            os.close(self._turn)
            raise

    def enter(self, seconds: float) -> None:
        """Raises LedgerBusy when the lock cannot be had within ``seconds``."""
        deadline = time.monotonic() + seconds
        try:
            _lock(self._turn, self._turn_path, deadline)
            _lock(self._write, self._write_path, deadline)
        except BaseException:
            # It may have been ours for a moment.
            fcntl.flock(self._write, fcntl.LOCK_UN)
            raise
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def leave(self) -> None:
        fcntl.flock(self._write, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._turn)
        os.close(self._write)


def locks_of(ledger: Path) -> tuple[Path, Path]:
    """The files whose locks are the turn and the write lock."""
    return ledger.with_name("ledger.turn"), ledger.with_name("ledger.write")


def _open(path: Path) -> int:
    return open_own_file(path, os.O_RDWR)


def _lock(descriptor: int, path: Path, deadline: float) -> None:
    try:
        _wait_for(descriptor, path, deadline)
    except LedgerBusy:
        # Who stood still until its time was over tries once more.
        if not _try_lock(descriptor):
            raise


def _wait_for(descriptor: int, path: Path, deadline: float) -> None:
    if _try_lock(descriptor):
        return
    look = _Look(path, deadline)
    look()
    if threading.current_thread() is threading.main_thread():
        with _calling_now_and_then(look):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    while not _try_lock(descriptor):
        look()
        time.sleep(PAUSE_S)


@contextmanager
def _calling_now_and_then(look: Callable[[], None]) -> Iterator[None]:
    """By the signal of an interval timer: it interrupts a call that blocks, which then raises what ``look`` raises."""

    def tick(_number: int, _frame: FrameType | None) -> None:
        try:
            look()
        except BaseException:
            # The call may just be over: nothing is to be raised into what comes after it.
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise

    handler = signal.signal(signal.SIGALRM, tick)
    timer = signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY_S, LOOK_EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


class _Look:
    """What one who waits for a lock does now and then."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._path = path
        self._deadline = deadline
        self._look_at = time.monotonic() + STOPPED_FOR_S
        self._suspect: Process | None = None

    def __call__(self) -> None:
        """Raises LedgerBusy."""
        now = time.monotonic()
        if now >= self._deadline:
            raise _busy(self._path, lock_holder(self._path))
        if now >= self._look_at:
            self._suspect = _end_if_still_stopped(self._path, self._suspect)
            self._look_at = now + STOPPED_FOR_S


def _busy(path: Path, holder: int | None) -> LedgerBusy:
    if holder is None or is_one_of_ours(holder):
        return LedgerBusy(f"cannot write the ledger: {described(holder)} holds {path}; try again")
    return LedgerHeld(path.with_name("ledger.db"), holding(holder, path))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_if_still_stopped(path: Path, suspect: Process | None) -> Process | None:
    """Returns the holder if it is stopped, for the next look; ends it if it was stopped at the last one."""
    holder = _process(lock_holder(path))
    if holder is None or not is_stopped(holder) or not is_one_of_ours(holder.pid):
        return None
    if holder == suspect:
        _end(holder)
    return holder


def _process(pid: int | None) -> Process | None:
    stat = read_stat(pid) if pid else None
    return Process(pid, stat.start_ticks) if pid and stat else None


def _end(process: Process) -> None:
    pidfd = open_pidfd(process)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(pidfd)
