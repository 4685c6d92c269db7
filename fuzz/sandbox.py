"""A directory to plant things in, and what must not change while they are read: files outside of it, and a process."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from operations_center.identity import Process

HANG_S = 1.0
"""Nothing that is planted may keep a reader for longer than this."""

_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
"""In memory nothing waits for a disk."""

PRECIOUS = b"precious content\n"


class Harm(Exception):
    """What was planted has led us to do something outside of the sandbox."""


class Hang(Exception):
    """What was planted has kept us for longer than ``HANG_S``."""


@dataclass
class Sandbox:
    """``inside`` is what may be written. ``outside`` and ``stranger`` are watched."""

    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="operations center fuzz ", dir=_MEMORY)))

    def __post_init__(self) -> None:
        self.inside = self.root / "inside"
        self.outside = self.root / "outside"
        self.inside.mkdir(mode=0o700)
        self.outside.mkdir(mode=0o700)
        (self.outside / "file").write_bytes(PRECIOUS)
        (self.outside / "directory").mkdir()
        (self.outside / "directory" / "file").write_bytes(PRECIOUS)
        os.mkfifo(self.outside / "fifo")
        self._start_stranger()
        self._before = self._picture()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_stranger()
        subprocess.run(["rm", "-rf", "--", str(self.root)], check=True)

    def refuse_harm(self) -> None:
        """Raise Harm when something outside was written, or the stranger was signalled.

        The next input finds a new stranger, and what is outside as it is then.
        """
        before, present = self._before, self._picture()
        self._before = present
        if self._stranger.poll() is not None or _is_stopped(self._stranger.pid):
            signalled = self._stranger.pid
            self._end_stranger()
            self._start_stranger()
            raise Harm(f"a stranger was signalled: process {signalled}")
        if present != before:
            raise Harm(f"something outside was changed: {sorted(set(present) ^ set(before))}")

    def _start_stranger(self) -> None:
        self._stranger = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE, start_new_session=True)
        self.stranger = Process.of(self._stranger.pid)

    def _end_stranger(self) -> None:
        self._stranger.kill()
        self._stranger.communicate()

    def empty(self) -> None:
        """Remove everything inside."""
        subprocess.run(["rm", "-rf", "--", str(self.inside)], check=True)
        self.inside.mkdir(mode=0o700)

    def _picture(self) -> list[tuple[str, int, int, int]]:
        """Name, kind with mode, size and time of change of everything outside."""
        found = []
        for parent, names, files in os.walk(self.outside):
            for name in (*names, *files):
                path = os.path.join(parent, name)
                facts = os.lstat(path)
                found.append((path, facts.st_mode, facts.st_size, facts.st_mtime_ns))
        return sorted(found)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise Hang in the block when it takes longer than ``HANG_S``.

    Time in which this process was ready to run, and another one ran, does not count.
    """
    begun = _own_time_s()

    def ring(_number: int, _frame: FrameType | None) -> None:
        left = HANG_S - (_own_time_s() - begun)
        if left <= 0:
            raise Hang(f"it took more than {HANG_S:g} s")
        signal.setitimer(signal.ITIMER_REAL, left)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _own_time_s() -> float:
    """Seconds of the monotonic clock without those in which this process waited for a processor."""
    # docs.kernel.org/scheduler/sched-stats.html: time on the processor, time waiting for one (ns), time slices.
    waited = int(Path("/proc/self/schedstat").read_text().split()[1])
    return time.monotonic() - waited / 1e9
