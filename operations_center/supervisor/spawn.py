"""Start a watcher or the watchdog as a process of its own, and recognise one that is there already."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from operations_center.identity import Process, read_stat
from operations_center.locks import lock_holder
from operations_center.state_directory import WATCHDOG, StateDirectory


@dataclass
class Spawned:
    """A living child. ``popen`` is None for a survivor of an earlier supervisor, which is not our child."""

    process: Process
    popen: "subprocess.Popen[bytes] | None" = None

    def exit_code(self) -> int | None:
        """Once it has ended; None for a survivor, whose exit code nobody but its parent learns."""
        return self.popen.wait() if self.popen is not None else None


def spawn(name: str, config_file: Path, state: StateDirectory) -> Spawned:
    """Raises OSError when the machine has no process to give."""
    subcommand = ["watchdog"] if name == WATCHDOG else ["watch", "--role", name]
    log = os.open(state.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # -P: the directory that we happen to be in must not lend its modules to the watcher.
        popen = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "operations_center",
                *subcommand,
                "--supervised",
                "--config",
                str(config_file),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    stat = read_stat(popen.pid)
    return Spawned(Process(popen.pid, stat.start_ticks if stat else 0), popen)


def survivor(name: str, state: StateDirectory) -> Spawned | None:
    """The process that holds the lock of a role, whoever started it."""
    pid = lock_holder(state.watcher_lock(name))
    stat = read_stat(pid) if pid else None
    return Spawned(Process(pid, stat.start_ticks)) if pid and stat else None


def send(process: Process, number: signal.Signals) -> None:
    """A signal to that very process; nothing if it has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        stat = read_stat(process.pid)
        if stat is not None and stat.start_ticks == process.start_ticks:
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
