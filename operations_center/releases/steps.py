"""Run one program with a limit of time, and end whatever it has started.

``timeout`` of coreutils keeps the limit, so it is kept also when we are gone. Programs of a release carry a mark in
their environment, by which those that have left their session are found: at the end of a step, or by the next stage.
"""

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.files import open_file, open_own_file
from operations_center.heart import Awake
from operations_center.identity import Process
from operations_center.keeper.inspect import environment_values
from operations_center.keeper.processes import KERNEL
from operations_center.logs import LOG_BYTES
from operations_center.text import hide_secrets, on_one_line

MARK = "OPERATIONS_CENTER_STAGE_OF"
"""The variable that marks what a stage starts; its value is the state directory that the release is made for."""

KILL_AFTER_S = 5
END_WITHIN_S = 5.0
LOOK_EVERY_S = 1.0
LONGEST_REASON = 300
LONGEST_LINE = 4096
TAIL_BYTES = 64 * 1024
LARGEST_LOG = 256 << 20

_TIMED_OUT = (124, 128 + signal.SIGKILL, -signal.SIGKILL)
"""How ``timeout`` ends then (timeout(1))."""


class Refused(Exception):
    """The release is bad. ``str(refusal)`` is one line: which step, and what it said."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a program and all that it starts may take; None is no limit. Bytes."""

    file: int | None = None
    memory: int | None = None

    def around(self, command: Sequence[str]) -> list[str]:
        """The command, with these limits set by a shell: what runs between fork and exec here would be ours."""
        if self == NO_BOUNDS:
            return list(command)
        return ["/bin/sh", "-c", _BOUNDED, "sh", _units(self.file, 512), _units(self.memory, 1024), *command]


NO_BOUNDS = Bounds()

# A limit that is lower already stays.
_BOUNDED = 'ulimit -f "$1" 2>/dev/null; ulimit -d "$2" 2>/dev/null; shift 2; exec "$@"'


def _units(number: int | None, unit: int) -> str:
    return "unlimited" if number is None else str(number // unit)


@dataclass(frozen=True, slots=True)
class Ended:
    """``code`` is None for a program that was not done in time."""

    code: int | None
    within_s: float

    @property
    def in_words(self) -> str:
        return f"not done within {self.within_s:g} s" if self.code is None else f"exit code {self.code}"


def run_limited(
    command: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    within_s: float,
    out: IO[bytes],
    err: IO[bytes] | None = None,
    given: IO[bytes] | None = None,
    meanwhile: Callable[[], object] = lambda: None,
    bounds: Bounds = NO_BOUNDS,
) -> Ended:
    """In a session of its own; ``given`` None: without input; ``err`` None: where ``out`` goes. Raises OSError.

    TERM when the time is over, and KILL to those of its group that are left after 5 s. ``meanwhile`` is called now and
    then until it has ended.
    """
    begun = time.monotonic()
    program = shutil.which("timeout", path=os.confstr("CS_PATH")) or "timeout"
    popen = subprocess.Popen(
        bounds.around([program, "-k", str(KILL_AFTER_S), str(within_s), *command]),
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL if given is None else given,
        stdout=out,
        stderr=subprocess.STDOUT if err is None else err,
        start_new_session=True,
    )
    try:
        # Not reaped yet, so that nobody else's group can have this number.
        _wait_for_end(popen.pid, meanwhile)
        is_late = time.monotonic() - begun >= within_s
    except BaseException:
        os.killpg(popen.pid, signal.SIGTERM)
        popen.wait()
        raise
    if is_late:
        # Who has ended in time may have left something for others, such as a cache of passwords.
        os.killpg(popen.pid, signal.SIGKILL)
    code = popen.wait()
    return Ended(None if is_late and code in _TIMED_OUT else code, within_s)


def _wait_for_end(pid: int, meanwhile: Callable[[], object]) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        while not select.select([pidfd], [], [], LOOK_EVERY_S)[0]:
            meanwhile()
    finally:
        os.close(pidfd)


@dataclass(frozen=True, slots=True)
class Steps:
    """The programs of one stage, run in ``directory`` with ``environment``; their output goes to the end of ``log``.

    ``root`` is the state directory that a release is made for. ``awake``: whether this process stood still, and what it
    runs with it.
    """

    root: Path
    log: Path
    directory: Path
    environment: Mapping[str, str]
    awake: Awake

    def run(self, name: str, command: Sequence[str], *, within_s: float) -> str:
        """The end of its output; nothing of it is left. Raises Refused when it fails or is too slow, OSError.

        Raises Unavailable when it fails, and this process stood still meanwhile.
        """
        try:
            return self.begin(name, command, within_s=within_s)
        finally:
            end_marked(self.root)

    def begin(self, name: str, command: Sequence[str], *, within_s: float) -> str:
        """As ``run``, but what it leaves in the background lives on, until ``end_marked``."""
        begun = self.awake.look().monotonic
        with self._open_log() as log:
            log.write(f"== {name}\n".encode())
            begin = log.tell()
            marked = {**self.environment, MARK: str(self.root)}
            ended = run_limited(
                command,
                directory=self.directory,
                environment=marked,
                within_s=within_s,
                out=log,
                meanwhile=lambda: self._look(name, log),
            )
            output = read_tail(self.log, begin)
        if ended.code == 0:
            return output
        if self._is_disk_full(output):
            raise OperationsCenterError(
                f"cannot make a release: the disk is full at its step {name}; make room in {self.root} and try again"
            )
        self.excuse_since(begun, name)
        # Paths in a release say the same without the way to it.
        said = reason_of(output.replace(f"{self.directory}/", "")) if ended.code else ""
        raise Refused(f"{name}: {said or ended.in_words}")

    def _look(self, name: str, log: IO[bytes]) -> None:
        self.awake.look()
        if os.fstat(log.fileno()).st_size > LARGEST_LOG:
            raise Refused(f"{name}: it writes more than {LARGEST_LOG >> 20} MiB into its log")

    def excuse_since(self, begun: int, name: str) -> None:
        """Raises Unavailable if this process stood still since then (monotonic ms): its time-outs say nothing."""
        self.awake.look()
        if self.awake.since > begun:
            raise Unavailable(
                f"cannot make a release: the machine, or this process, stood still during its step {name}; try again"
            )

    def _open_log(self) -> IO[bytes]:
        if self.log.exists() and self.log.lstat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        return os.fdopen(open_own_file(self.log, os.O_RDWR | os.O_APPEND), "r+b", buffering=0)

    def _is_disk_full(self, output: str) -> bool:
        """That is no fault of the release."""
        return "No space left on device" in output or shutil.disk_usage(self.root).free < 1024 * 1024


def end_marked(root: Path) -> None:
    """KILL everything that a stage for this state directory has started and that still lives."""
    until = time.monotonic() + END_WITHIN_S
    while (found := _marked(root)) and time.monotonic() < until:
        for process in found:
            KERNEL.signal(process, signal.SIGKILL)
        time.sleep(0.01)


def _marked(root: Path) -> list[Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    entry = f"{MARK}=".encode()
    return [Process.of(pid) for pid in pids if str(root) in environment_values(pid, entry)]


def reason_of(output: str) -> str:
    """The last line that says something, on one line and without passwords; Python's and ours say it all there."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return on_one_line(hide_secrets(lines[-1][:LONGEST_LINE]))[:LONGEST_REASON] if lines else ""


def last_words(log: Path, begin: int = 0) -> str:
    """Of the program that has written last; empty for none since the log was ``begin`` bytes long. Raises OSError."""
    return reason_of(read_tail(log, begin))


def read_tail(log: Path, begin: int = 0) -> str:
    """The end of a log that programs of others write. Raises OSError."""
    descriptor = open_file(log)
    try:
        begin = max(begin, os.fstat(descriptor).st_size - TAIL_BYTES)
        return os.pread(descriptor, TAIL_BYTES, begin).decode(errors="replace")
    finally:
        os.close(descriptor)
