"""Signals to a run's tree: each process is held by a pidfd and verified before it is signalled.

The keeper gets no TERM and no KILL with the others: it has to record the exit. Whoever ends a run stores
the reason in the ledger first.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable

from operations_center.identity import Process, read_stat
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable, Tree, tree_of

KILL_WITHIN_SECONDS = 2.0


def signal_processes(processes: Iterable[Process], number: signal.Signals) -> int:
    """Signal those that still are who they were; returns how many took the signal."""
    return sum(_signal(process, number) for process in processes)


def terminate(tree: Tree) -> int:
    """Ask every member to end, waking up the stopped ones; returns how many were asked."""
    asked = signal_processes(tree.members, signal.SIGTERM)
    wake(tree)
    return asked


def wake(tree: Tree) -> None:
    """Continue what was stopped: a stopped keeper cannot record an exit."""
    keeper = [tree.query.keeper] if tree.query.keeper is not None else []
    signal_processes([*tree.members, *keeper], signal.SIGCONT)


def kill(
    tree: Tree,
    *,
    within_seconds: float = KILL_WITHIN_SECONDS,
    scan: Callable[[], ProcessTable] = ProcessTable.scan,
) -> int:
    """KILL everything but the keeper, scanning again until no new process shows up or the time is over.

    Returns how many processes were signalled. What is left when it returns is found by the next pass.
    """
    if tree.query.cgroup is not None:
        cgroup.kill(tree.query.cgroup / cgroup.EXECUTOR)
    deadline = time.monotonic() + within_seconds
    killed: set[Process] = set()
    while new := set(tree.members) - killed:
        signal_processes(new, signal.SIGKILL)
        killed |= new
        if time.monotonic() > deadline:
            break
        tree = tree_of(scan(), tree.query)
    wake(tree)
    return len(killed)


def kill_keeper(keeper: Process) -> bool:
    """The last resort, after its tree: no exit is recorded then. False if it is gone already."""
    return _signal(keeper, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> bool:
    pidfd = _hold(process)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def _hold(process: Process) -> int | None:
    # Not identity.open_pidfd: that takes a process whose main thread has ended for a zombie.
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    facts = read_stat(process.pid)
    if facts is not None and facts.start_ticks == process.start_ticks:
        return pidfd
    os.close(pidfd)
    return None
