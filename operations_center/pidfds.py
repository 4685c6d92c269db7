"""Wait for the end of processes that are not our children: pidfd_open(2)."""

import os
import select
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from operations_center.identity import Process, is_alive


def open_pidfd(process: Process) -> int | None:
    """A descriptor that is readable once the process has ended; None if it already has.

    The pidfd is opened first and the start ticks are verified afterwards, so it never stands for a
    stranger. The caller closes it.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return pidfd
    os.close(pidfd)
    return None


@contextmanager
def opened_pidfds(processes: Iterable[Process]) -> Iterator[dict[int, Process]]:
    """A descriptor for each of the processes that live, by which its end can be waited for."""
    with ExitStack() as held:
        found = {}
        for process in processes:
            pidfd = open_pidfd(process)
            if pidfd is not None:
                held.callback(os.close, pidfd)
                found[pidfd] = process
        yield found


def reap_others(known: Collection[int | None]) -> None:
    """Reap children that have ended, without those whose exit code somebody here will ask for.

    The init process of a pid namespace gets every orphan as its child. So does a re-executed image: those of the
    image before it.
    """
    while (ended := _ended_child()) is not None and ended not in known:
        os.waitpid(ended, os.WNOHANG)


def _ended_child() -> int | None:
    try:
        # WNOWAIT: it stays as it is.
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


def wait_for_end(processes: Iterable[Process], until: float) -> list[Process]:
    """Those that still live at the monotonic time ``until`` (seconds)."""
    with opened_pidfds(processes) as left:
        # Also who stood still until the time was over looks once more.
        while left and (ended := select.select(list(left), [], [], max(until - time.monotonic(), 0.0))[0]):
            for pidfd in ended:
                del left[pidfd]
        return list(left.values())
