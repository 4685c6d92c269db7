"""A writer that waits at the turnstile: for how long, and what it hears meanwhile."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from operations_center.errors import LedgerBusy
from tests.points import Stepped
from tests.races.test_admission import Child, admit, opened, wait_for_a_holder

SHORT_S = 0.2


def write_until_killed(directory: Path) -> None:
    with opened(directory) as ledger, ledger.transaction():
        assert admit(ledger, "never committed") is not None
        while True:
            signal.pause()


@contextmanager
def writing(directory: Path) -> Iterator[int]:
    """The pid of a process that is inside a transaction; killed at the latest at the end."""
    writer = Child(partial(write_until_killed, directory))
    writer.start()
    wait_for_a_holder(directory / "ledger.write", writer.pid)
    try:
        yield writer.pid
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.end_signal() == signal.SIGKILL


def test_a_writer_gives_up_when_its_time_is_over_and_stands_in_nobodys_way_later(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger, opened(tmp_path) as other:
        with writing(tmp_path), ledger.within(SHORT_S), pytest.raises(LedgerBusy, match="holds"):
            admit(ledger, "t1")
        assert admit(other, "t2") is not None
        assert admit(ledger, "t3") is not None
        assert sorted(run.task_id for run in ledger.open_runs()) == ["t2", "t3"]


def test_a_signal_that_comes_while_a_writer_waits_is_handled_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger, writing(tmp_path) as writer:
        # The writer that is waited for ends by what the handler does, and by nothing else.
        before = signal.signal(signal.SIGUSR1, lambda *_: os.kill(writer, signal.SIGKILL))
        caller = threading.Timer(SHORT_S, os.kill, (os.getpid(), signal.SIGUSR1))
        caller.start()
        try:
            assert admit(ledger, "t1") is not None
        finally:
            caller.join()
            signal.signal(signal.SIGUSR1, before)


def test_a_thread_waits_until_its_time_is_over_too(tmp_path: Path) -> None:
    answers: list[str] = []

    def wait_in_vain() -> None:
        try:
            with opened(tmp_path) as ledger, ledger.within(SHORT_S):
                admit(ledger, "t1")
        except LedgerBusy:
            answers.append("busy")

    with opened(tmp_path), writing(tmp_path):
        thread = threading.Thread(target=wait_in_vain)
        thread.start()
        thread.join()
    assert answers == ["busy"]


def test_somebody_elses_alarm_is_still_set_after_a_wait(tmp_path: Path) -> None:
    def other(*_: object) -> None: ...

    handler = signal.signal(signal.SIGALRM, other)
    timer = signal.setitimer(signal.ITIMER_REAL, 1_000)
    try:
        with opened(tmp_path) as ledger, writing(tmp_path), ledger.within(SHORT_S), pytest.raises(LedgerBusy):
            admit(ledger, "t1")
        assert signal.getsignal(signal.SIGALRM) is other
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1_000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def looks(frame: FrameType, event: str, _argument: object) -> str | None:
    return "looks" if event == "call" and frame.f_code.co_qualname == "_Look.__call__" else None


@pytest.mark.parametrize("look", [1, 2])
def test_a_writer_that_stood_still_until_its_time_was_over_writes_if_nobody_else_does(
    tmp_path: Path, look: int
) -> None:
    def write() -> None:
        with opened(tmp_path) as ledger, ledger.within(SHORT_S):
            os._exit(0 if admit(ledger, "t1") is not None else 1)

    with opened(tmp_path):
        with writing(tmp_path):
            waiter = Stepped(write, look, signal.SIGSTOP, looks)
        signal.sigtimedwait([], 2 * SHORT_S)
        waiter.go_on()
        assert waiter.wait() == 0
