"""The disk is full for a while, from any step of a watcher's work on: nothing runs twice, and it goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from operations_center.boards.local import NewTask
from operations_center.errors import OperationsCenterError
from operations_center.watcher import Watcher
from tests.fleet import Fleet, wait_until

POINTS = 24
AT_ONCE = 12
WITHIN_S = 60.0
FULL_FOR_S = 10.0

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
retry_backoff = { initial = "0s" }
[backends.agent]
kind = "command"
argv = ["sh", "-c", 'echo "begin $OPERATIONS_CENTER_TASK_ID" >>"$HOME/told"; echo output || true']
stdin = "prompt"
max_concurrent = 1
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


class Disk:
    """A small file system of its own, in which a state directory lies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    @contextmanager
    def mounted(self, options: str) -> Iterator["Disk"]:
        self.directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", self.directory], check=True)
        try:
            yield self
        finally:
            subprocess.run(["umount", "-l", self.directory], check=True)

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class FullDuring:
    """To be called at each call of and return from a function of the package: fills the disk and frees it again.

    A watcher that has nothing to do takes few steps a second, so the disk is freed after some seconds at the latest.
    """

    def __init__(self, disk: Disk, steps: range) -> None:
        self._disk = disk
        self._steps = steps
        self._until: float | None = None
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "return") and frame.f_globals.get("__name__", "").startswith("operations_center"):
            if self.count == self._steps.start:
                self._disk.fill()
                self._until = time.monotonic() + FULL_FOR_S
            elif self._until is not None and (self.count >= self._steps.stop or time.monotonic() > self._until):
                self._disk.free()
                self._until = None
            self.count += 1


class Point:
    """A fleet of its own, whose watcher, a forked process, finds its disk full during some of its steps."""

    def __init__(self, root: Path, steps: range) -> None:
        root.mkdir()
        self.steps = steps
        self.fleet = Fleet(root)
        self.fleet.configure(CONFIG)
        self._mount = Disk(self.fleet.state.root).mounted("size=1m")
        self._disk = self._mount.__enter__()
        with self.fleet.center() as center:
            center.board.add([NewTask(f"task {number}", "goal") for number in range(2)])
        self._full_during = FullDuring(self._disk, steps)
        self._pid = self._fork(self._full_during)

    def _fork(self, watch: FullDuring | None) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ["HOME"] = str(self.fleet.root)
                os.dup2(os.open(self.fleet.root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                sys.setprofile(watch)
                with self.fleet.center() as center:
                    code = Watcher(center, center.config.roles["goal"]).run()
                sys.setprofile(None)
                (self.fleet.root / "steps").write_text(str(watch.count if watch else 0))
            finally:
                os._exit(code)
        return pid

    def wait(self) -> int:
        """Until every task is done; how many steps it took. A watcher that ends is followed by another."""
        wait_until(self._is_done, f"the end, full during {self.steps}", WITHIN_S)
        os.kill(self._pid, signal.SIGTERM)
        assert os.waitpid(self._pid, 0)[1] == 0, self.steps
        return int((self.fleet.root / "steps").read_text())

    def _is_done(self) -> bool:
        if os.waitpid(self._pid, os.WNOHANG)[0]:
            self._disk.free()
            self._pid = self._fork(None)
        try:
            with self.fleet.center() as center:
                return center.board.counts()["done"] == 2
        except (OperationsCenterError, OSError):
            # Not even the index of the ledger's log can be made: it is still full.
            return False

    def check(self) -> None:
        told = (self.fleet.root / "told").read_text().splitlines()
        assert sorted(told) == ["begin t1", "begin t2"], self.steps
        with self.fleet.center() as center:
            assert center.ledger.open_runs() == [], self.steps
            assert center.ledger.slots_held() == {}, self.steps
            assert center.ledger.verify() == [], self.steps

    def clean_up(self) -> None:
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        self.fleet.clean_up()
        self._mount.__exit__(None, None, None)


def live_through(root: Path, ranges: Sequence[range]) -> None:
    for first in range(0, len(ranges), AT_ONCE):
        points: list[Point] = []
        try:
            for steps in ranges[first : first + AT_ONCE]:
                points.append(Point(root / f"full at {steps.start}", steps))
            for point in points:
                point.wait()
                point.check()
        finally:
            for point in points:
                point.clean_up()


def count_steps(root: Path) -> int:
    point = Point(root / "never full", range(-1, -1))
    try:
        return point.wait()
    finally:
        point.clean_up()


@pytest.mark.parametrize("length", [100, 3000])
def test_a_disk_that_is_full_for_a_while_from_any_step_on_costs_no_run_and_doubles_none(
    tmp_path: Path, length: int
) -> None:
    steps = count_steps(tmp_path)
    assert steps > POINTS
    starts = [steps * number // POINTS for number in range(POINTS)]
    live_through(tmp_path, [range(start, start + length) for start in starts])
