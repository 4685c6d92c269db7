"""Signals to a run's tree: each process is held by a pidfd and verified before it is signalled.

The keeper gets no TERM and no KILL with the others: it has to record the exit. Whoever ends a run stores
the reason in the ledger first.
"""

import signal
import time
from collections.abc import Iterable

from operations_center.identity import Process
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import Tree, tree_of
from operations_center.keeper.processes import KERNEL, Processes

KILL_WITHIN_SECONDS = 2.0


def signal_processes(targets: Iterable[Process], number: signal.Signals, processes: Processes = KERNEL) -> int:
    """Signal those that still are who they were; returns how many took the signal."""
    return sum(processes.signal(target, number) for target in targets)


def terminate(tree: Tree, processes: Processes = KERNEL) -> int:
    """Ask every member to end, waking up the stopped ones; returns how many were asked."""
    asked = signal_processes(tree.members, signal.SIGTERM, processes)
    wake(tree, processes)
    return asked


def wake(tree: Tree, processes: Processes = KERNEL) -> None:
    """Continue what was stopped: a stopped keeper cannot record an exit."""
    keeper = [tree.keeper] if tree.keeper is not None else []
    signal_processes([*tree.members, *keeper], signal.SIGCONT, processes)


def kill(tree: Tree, processes: Processes = KERNEL, *, within_seconds: float = KILL_WITHIN_SECONDS) -> int:
    """KILL everything but the keeper, scanning again until no new process shows up or the time is over.

    Returns how many processes were signalled. What is left when it returns is found by the next pass.
    """
    if tree.query.cgroup is not None:
        cgroup.kill(tree.query.cgroup / cgroup.EXECUTOR)
    deadline = time.monotonic() + within_seconds
    killed: set[Process] = set()
    while new := set(tree.members) - killed:
        signal_processes(new, signal.SIGKILL, processes)
        killed |= new
        if time.monotonic() > deadline:
            break
        tree = tree_of(processes.scan(), tree.query)
    wake(tree, processes)
    return len(killed)


def kill_keeper(keeper: Process, processes: Processes = KERNEL) -> bool:
    """The last resort, after its tree: no exit is recorded then. False if it is gone already."""
    return processes.signal(keeper, signal.SIGKILL)
