"""What is known of processes and done to them, as one parameter for everything that judges, ends or starts runs."""

import os
import signal
from typing import Protocol

from operations_center import identity
from operations_center.identity import Process, read_stat
from operations_center.keeper import launch
from operations_center.keeper.inspect import ProcessTable
from operations_center.keeper.launch import LaunchedRun, LaunchPlan


class Processes(Protocol):
    def scan(self) -> ProcessTable:
        """All processes at one moment, or nearly so."""

    def is_alive(self, process: Process) -> bool:
        """False for a zombie and for a stranger who reuses the pid."""

    def signal(self, process: Process, number: signal.Signals) -> bool:
        """False when it is gone, is somebody else by now, or is not ours to signal."""

    def start(self, plan: LaunchPlan) -> LaunchedRun:
        """Start the keeper of a prepared run. Raises OSError, ValueError; then nothing was started."""


class KernelProcesses:
    """Those of this pid namespace, by ``/proc`` and pidfds."""

    def scan(self) -> ProcessTable:
        return ProcessTable.scan()

    def is_alive(self, process: Process) -> bool:
        return identity.is_alive(process)

    def signal(self, process: Process, number: signal.Signals) -> bool:
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

    def start(self, plan: LaunchPlan) -> LaunchedRun:
        return launch.start(plan)


KERNEL = KernelProcesses()


def _hold(process: Process) -> int | None:
    # Not pidfds.open_pidfd: that takes a process whose main thread has ended for a zombie.
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    facts = read_stat(process.pid)
    if facts is not None and facts.start_ticks == process.start_ticks:
        return pidfd
    os.close(pidfd)
    return None
