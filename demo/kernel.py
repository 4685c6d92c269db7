"""What the kernel says of the demo's processes. Written apart from the package: it is to check the package."""

import os
import select
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """A process; the start ticks tell it from a later one with the same pid."""

    pid: int
    ticks: int


def look_at(pid: int) -> Seen | None:
    """None when it is gone; a zombie is."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Seen(pid, int(fields[19]))


def processes_by_run(runs_directory: Path) -> dict[str, set[Seen]]:
    """Every live process that was started for a run below this directory."""
    found: dict[str, set[Seen]] = defaultdict(set)
    prefix = b"OPERATIONS_CENTER_RUN_DIR=" + os.fsencode(runs_directory) + b"/"
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        for entry in environment.split(b"\0"):
            seen = look_at(int(name)) if entry.startswith(prefix) else None
            if seen is not None:
                found[os.fsdecode(entry[len(prefix) :])].add(seen)
    return found


def kill(process: Seen) -> bool:
    """SIGKILL that very process, and wait until the kernel says that it is gone; False if it had gone before."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if look_at(process.pid) != process:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 10)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
