"""What is known of processes and done to them, as one parameter for everything that judges, ends or starts runs."""

import os
import signal
from pathlib import Path
from typing import Protocol

from operations_center import identity
from operations_center.identity import Process, read_stat
from operations_center.keeper import inspect, launch
from operations_center.keeper.inspect import ProcessTable, read_gate
from operations_center.keeper.launch import LaunchedRun, LaunchPlan


class Processes(Protocol):
    def scan(self) -> ProcessTable:
        """All processes at one moment, or nearly so."""

    def is_alive(self, process: Process) -> bool:
        """False for a zombie and for a stranger who reuses the pid."""

    def is_of_run(self, process: Process, run_id: str) -> bool:
        """Whether it is alive and was started as part of that run."""

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

    def is_of_run(self, process: Process, run_id: str) -> bool:
        return inspect.is_of_run(process, run_id)

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


def proven_keeper(processes: Processes, run_id: str, run_directory: Path | str) -> Process | None:
    """The keeper that a run's gate names, if the kernel agrees: the executor may have written another process there."""
    claimed = read_gate(run_directory).claimed
    return claimed if claimed is not None and processes.is_of_run(claimed, run_id) else None


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
