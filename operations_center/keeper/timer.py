"""The timer of a run: started before its keeper, and again where it has died.

It holds the reading end of a pipe whose only writer is the keeper. So it ends with the keeper, and that nobody reads
the pipe is how others see that it has died.
"""

import ctypes
import errno
import fcntl
import os
import select
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from operations_center.files import open_directory, open_file
from operations_center.identity import Process, is_alive
from operations_center.keeper.script import Script, start_script

CLOCK_S = 10**9
"""What the timer's clock counts down from; ``timer.sh`` knows it."""

KEEPERS_PIPE = 8
"""The keeper's descriptor of the pipe; ``keeper.sh`` knows it."""

_FIRST_UNUSED = 10
"""A script can name the descriptors below this."""

# Read once: a code pull must not change the timers of a process that is running.
_TIMER = Script("timer", Path(__file__).with_name("timer.sh").read_text())
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """``…_ms`` are milliseconds, ``max_output`` is bytes of stdout and stderr together; None means no limit."""

    timeout_ms: int | None
    idle_timeout_ms: int | None
    grace_ms: int
    max_output: int | None

    @property
    def need_a_timer(self) -> bool:
        return any(limit is not None for limit in (self.timeout_ms, self.idle_timeout_ms, self.max_output))


def start_timer(
    run_directory: Path, limits: Limits, pipe: int, keeper: Process | None = None
) -> "subprocess.Popen[bytes]":
    """Start a timer that reads ``pipe``. Without ``keeper`` the first line that it reads there says who that is.

    Raises OSError.
    """
    with ExitStack() as ours:
        limit_record = _open_limit_record(run_directory)
        ours.callback(os.close, limit_record)
        record = _out_of_the_way(open_file(run_directory / "exit"), ours)
        clock = _out_of_the_way(_start_clock(), ours)
        words = (
            str(run_directory.absolute()),
            *map(_centiseconds, (limits.timeout_ms, limits.idle_timeout_ms, limits.grace_ms)),
            str(limits.max_output or 0),
            *(str(record), str(clock), str(keeper.pid) if keeper is not None else ""),
        )
        return start_script(
            _TIMER,
            words,
            stdin=pipe,
            stdout=limit_record,
            # An environment of its own, without the run id: the timer is no part of the run's tree.
            environment={"PATH": f"{os.environ.get('PATH', '')}:{os.defpath}".lstrip(":")},
            inherited=(record, clock),
        )


def replace_timer(run_directory: Path, limits: Limits, keeper: Process) -> "subprocess.Popen[bytes] | None":
    """Start another timer where the keeper lives and its timer has died; None where there is nothing to replace.

    ``limits.timeout_ms`` is what is left of it. Raises OSError.
    """
    if not limits.need_a_timer or not is_alive(keeper) or not _is_pipe_unread(keeper):
        return None
    pipe = _open_pipe(keeper, os.O_RDONLY)
    try:
        os.set_blocking(pipe, True)
        return start_timer(run_directory, limits, pipe, keeper) if is_alive(keeper) else None
    finally:
        os.close(pipe)


def _open_limit_record(run_directory: Path) -> int:
    """Open what the timer writes into. An executor may have put another name of somebody's file in its place."""
    directory = open_directory(run_directory)
    try:
        descriptor = open_file("timed_out", os.O_WRONLY, dir_fd=directory)
    finally:
        os.close(directory)
    if os.fstat(descriptor).st_nlink != 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "it has another name", str(run_directory / "timed_out"))
    return descriptor


def _is_pipe_unread(keeper: Process) -> bool:
    """False also where there is no pipe (its run began without a limit), or no keeper."""
    try:
        pipe = _open_pipe(keeper, os.O_WRONLY)
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(pipe, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    finally:
        os.close(pipe)


def _open_pipe(keeper: Process, flags: int) -> int:
    return os.open(f"/proc/{keeper.pid}/fd/{KEEPERS_PIPE}", flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _centiseconds(milliseconds: int | None) -> str:
    # Never less than one: 0 is no limit.
    return "0" if milliseconds is None else str(max(1, -(-milliseconds // 10)))


def _out_of_the_way(descriptor: int, ours: ExitStack) -> int:
    """Give a descriptor a number that no script of ours uses."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_UNUSED)
    finally:
        os.close(descriptor)
    ours.callback(os.close, moved)
    return moved


class _Interval(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


def _start_clock() -> int:
    """A timer that counts down by CLOCK_MONOTONIC: a shell can read in ``/proc/self/fdinfo`` what is left of it."""
    descriptor = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC))
    if descriptor == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    interval = _Interval(first_s=CLOCK_S)
    if _libc.timerfd_settime(descriptor, 0, ctypes.byref(interval), None) == -1:
        error = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(error, os.strerror(error))
    return descriptor
