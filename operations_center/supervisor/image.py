"""The program that the supervisor's process runs, exchanged for the one that is installed now."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from operations_center.waiting import SIGNALS

CHECK_WITHIN_S = 10.0
"""An image that takes longer to say that it can start is not changed to."""


def why_not_start(config_file: Path) -> str | None:
    """The image that would start now, asked beforehand whether it can be imported and likes the configuration."""
    check = [sys.executable, "-P", "-m", "operations_center", "config", "check", "--config", str(config_file)]
    try:
        done = subprocess.run(
            check, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_WITHIN_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def execute(command: Sequence[str], lock: int) -> OSError:
    """Execute a command line in this process, with the descriptor of its lock appended; returns only the failure.

    A signal that comes meanwhile waits: the next image takes it when it is ready to.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.set_inheritable(lock, True)
    try:
        os.execv(command[0], [*command, str(lock)])
    except OSError as error:
        return error
    finally:
        os.set_inheritable(lock, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
