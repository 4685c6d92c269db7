"""Who holds a lock, as the kernel tells it."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from operations_center.locks import lock_holder, lock_within
from tests.points import Stepped

HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, int(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    lock = tmp_path / "a lock"
    lock.touch()
    return lock


@contextmanager
def held(path: Path, how: int) -> Iterator[int]:
    command = [sys.executable, "-I", "-S", "-c", HOLDER, str(path), str(how)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield holder.pid
        holder.communicate()


def test_a_free_lock_has_no_holder_whoever_is_likely(path: Path) -> None:
    assert lock_holder(path) is None
    assert lock_holder(path, likely=os.getpid()) is None


def test_the_holder_is_found_whoever_is_likely(path: Path) -> None:
    with held(path, fcntl.LOCK_EX) as pid:
        assert lock_holder(path) == pid
        assert lock_holder(path, likely=pid) == pid
        assert lock_holder(path, likely=os.getpid()) == pid
        assert lock_holder(path, likely=2**22 + 1) == pid


def test_a_probe_is_no_holder(path: Path) -> None:
    with held(path, fcntl.LOCK_SH) as pid:
        assert lock_holder(path) is None
        assert lock_holder(path, likely=pid) is None


def test_a_lock_that_a_dead_process_has_left_to_its_child_is_still_its_own(path: Path) -> None:
    """The kernel names who took it; the descriptor lives on in the child."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with subprocess.Popen(["sleep", "60"], pass_fds=(file.fileno(),)) as child:
            file.close()
            try:
                assert lock_holder(path, likely=child.pid) == lock_holder(path) == os.getpid()
            finally:
                child.kill()


def has_tried(frame: FrameType, event: str, _argument: object) -> str | None:
    return "tried" if event == "return" and frame.f_code.co_qualname == "_try_lock" else None


def test_who_stood_still_until_its_time_was_over_takes_the_lock_that_is_free_by_then(path: Path) -> None:
    def wait_for_it() -> None:
        with lock_within(path, 0.2) as is_ours:
            os._exit(0 if is_ours else 1)

    with path.open() as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        waiter = Stepped(wait_for_it, 1, signal.SIGSTOP, has_tried)
        fcntl.flock(ours, fcntl.LOCK_UN)
    signal.sigtimedwait([], 0.3)
    waiter.go_on()
    assert waiter.wait() == 0
