"""Kill or stop a process at its n-th visible system call, by strace(1): no hook in production code.

A first life is traced and its calls are listed; then each of them is a point at which another life can end. So a
new step of a shell script or of SQLite is covered without being named. strace delivers the signal at the entry of
the call: a KILL comes just before it, that is just after the call before; a STOP comes when the call is done.
"""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from operations_center.identity import read_stat

EVERY_POINT = os.environ.get("OPERATIONS_CENTER_TEST_EVERY_POINT") == "1"
"""Set to 1: not a sample of the points but all of them, which takes many minutes."""

CHANGES = re.compile(
    "p?writev?|pwrite64|ftruncate|fallocate|f(data)?sync|sync|rename(at2?)?|(un|sym)?link(at)?|mkdir(at)?|rmdir"
    "|mknod(at)?|f?chmod(at)?|flock|clone3?|v?fork|execve|wait4|waitid|t?kill|pidfd_send_signal|setsid|prctl|chdir"
    "|exit_group"
)
"""What changes files, processes or locks, or waits for a process. Beside these, ``openat`` for writing."""

Item = TypeVar("Item")

_CALL = re.compile(r"(?:(?P<pid>[0-9]+) +)?(?P<name>[a-z0-9_]+)\((?P<rest>.*)")


@dataclass(frozen=True)
class Point:
    """The ``occurrence``-th call of this name that its process makes after strace has attached to it."""

    name: str
    occurrence: int
    shown: str

    def __str__(self) -> str:
        return f"{self.name} number {self.occurrence}: {self.shown}"


def why_strace_is_of_no_use() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    tried = subprocess.run(["strace", "-qqq", "-o", os.devnull, "true"], check=False, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


_WHY = why_strace_is_of_no_use()
needs_strace = pytest.mark.skipif(_WHY is not None, reason=_WHY or "")


class Strace:
    """strace attached to a process that runs already; the caller lets it go."""

    def __init__(self, pid: int, *options: str) -> None:
        read_end, write_end = os.pipe()
        self._process = subprocess.Popen(
            ["strace", "-y", "-o", f"/proc/self/fd/{write_end}", *options, "-p", str(pid)],
            pass_fds=(write_end,),
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
        os.close(write_end)
        self._log = os.fdopen(read_end, errors="replace")
        assert self._process.stderr is not None
        said = self._process.stderr.readline().decode()
        assert "attached" in said, said

    def lines(self) -> Iterator[str]:
        """Until everything that is traced has ended."""
        return iter(self._log)

    def wait_for(self, *words: str) -> str | None:
        """The first line with one of the words; None when everything has ended without it."""
        return next((line for line in self._log if any(word in line for word in words)), None)

    def let_go(self) -> None:
        """What is traced goes on by itself, and stays stopped if it is."""
        # Not TERM: strace would wait for a parent that cannot be interrupted before its child by vfork goes on.
        self._process.kill()
        self._process.communicate()
        self._log.close()


def calls_of(log: Iterable[str], within: Path | None = None) -> dict[int, list[Point]]:
    """The visible calls by process, in order; of one process alone under the pid 0.

    ``within``: of those to files only the ones to files below this directory.
    """
    seen: Counter[tuple[int, str]] = Counter()
    points: dict[int, list[Point]] = {}
    for line in log:
        match = _CALL.match(line)
        if match is None:
            continue
        pid, name = int(match["pid"] or 0), match["name"]
        seen[pid, name] += 1
        elsewhere = within is not None and "/" in match["rest"] and str(within) not in match["rest"]
        if _is_visible(name, match["rest"]) and not elsewhere:
            points.setdefault(pid, []).append(Point(name, seen[pid, name], _shortened(match["rest"])))
    return points


def _shortened(rest: str) -> str:
    """Of the paths that strace shows beside descriptors, the last part."""
    return re.sub(r"<(?:[^<>]*/)?([^<>/]*)>", r"<\1>", rest).strip()[:120]


def _is_visible(name: str, rest: str) -> bool:
    if "/dev/null" in rest and name in ("openat", "write"):
        return False
    if name == "openat":
        return re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest) is not None
    if name == "execve":
        return "ENOENT" not in rest
    return CHANGES.fullmatch(name) is not None and "WNOHANG" not in rest


class AtPoint:
    """A process that is stopped already, let go on up to a point and there killed or stopped.

    ``of_child``: the point is one of the child that it forks next; it is itself stopped when it waits for the child,
    since the point would be one of its own as well.
    """

    def __init__(self, pid: int, point: Point, number: signal.Signals, *, of_child: bool = False) -> None:
        self._pid = pid
        self._of_child = of_child
        self._word = "killed by SIGKILL" if number is signal.SIGKILL else "--- stopped by SIGSTOP"
        options = ["-e", f"inject={point.name}:signal={number.name.removeprefix('SIG')}:when={point.occurrence}"]
        if of_child:
            options += ["-f", "-e", "inject=wait4:signal=STOP:when=1"]
        self._strace = Strace(pid, *options)
        os.kill(pid, signal.SIGCONT)

    def wait(self) -> int | None:
        """The pid of what was killed or stopped there; None when everything ended by itself."""
        # The first lines tell of the stop that it was found in.
        self._strace.wait_for("--- SIGCONT")
        line = next(filter(self._tells_of_it, self._strace.lines()), None)
        self._strace.let_go()
        if self._of_child:
            os.kill(self._pid, signal.SIGCONT)
        if line is None:
            return None
        pid = int(line.split()[0]) if self._of_child else self._pid
        wait_until_stopped(pid)
        return pid

    def _tells_of_it(self, line: str) -> bool:
        return self._word in line and not (self._of_child and line.startswith(f"{self._pid} "))


def wait_until_stopped(pid: int) -> None:
    """Or until it is dead."""
    while (stat := read_stat(pid)) is not None and stat.state not in "TZ":
        os.sched_yield()


def forked_and_stopped(body: Callable[[], object]) -> int:
    """A child that stops, and runs ``body`` when it is let go on; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            os.kill(os.getpid(), signal.SIGSTOP)
            body()
        finally:
            os._exit(0)
    wait_until_stopped(pid)
    return pid


class naming(AbstractContextManager[None]):
    """Name the point at which an assertion has failed."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(f"at {self._point}")


def some_of(points: list[Item], share: int, turn: int) -> list[Item]:
    """All of them where asked for; else each ``share``-th, which ones depends on ``turn``."""
    return points if EVERY_POINT else points[turn % share :: share]
