"""One selector for all that a process sleeps on: ended processes, wake-ups, signals, a timer."""

import os
import selectors
import signal
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Protocol

from operations_center.identity import Process
from operations_center.pidfds import open_pidfd
from operations_center.wakeups import WakeUp

LONGEST_S = 3600.0
"""No sleep is longer, whatever a configuration asks for: epoll takes at most 2^31 ms."""

RE_EXECUTE = signal.SIGUSR2
"""Asks the supervisor to become what is installed now."""

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RE_EXECUTE})


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Waiting:
    """``stop_requests`` counts SIGTERM, SIGINT and, unless it is ignored, SIGHUP."""

    def __init__(self, wake_directory: Path, name: str) -> None:
        self.stop_requests = 0
        self.interrupted = False
        self.woken = True
        self._re_execution_asked = False
        self._selector = selectors.DefaultSelector()
        self._pidfds: dict[str, int] = {}
        self._ended: set[str] = set()
        self._wake_up = WakeUp(wake_directory, name)
        self._selector.register(self._wake_up, selectors.EVENT_READ, self._wake_up)
        self._catch_signals()

    def for_end_of(self, name: str, process: Process) -> None:
        """From now on ``wait`` returns when this process ends; at once if it already has."""
        self.forget(name)
        pidfd = open_pidfd(process)
        if pidfd is None:
            self._ended.add(name)
            return
        self._pidfds[name] = pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, name)

    def forget(self, name: str) -> None:
        self._ended.discard(name)
        pidfd = self._pidfds.pop(name, None)
        if pidfd is not None:
            self._selector.unregister(pidfd)
            os.close(pidfd)

    def for_readable(self, source: HasDescriptor) -> None:
        """From now on ``wait`` returns while there is something to read, which is the caller's to do."""
        self._selector.register(source, selectors.EVENT_READ, source)

    def forget_readable(self, source: HasDescriptor) -> None:
        self._selector.unregister(source)

    def wait(self, seconds: float) -> list[str]:
        """Sleep until something happens; the processes that have ended, each told once."""
        timeout = 0.0 if self._ended or self.woken else max(0.0, min(seconds, LONGEST_S))
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, str):
                self._ended.add(key.data)
            elif isinstance(key.data, WakeUp):
                self.woken = True
                key.data.drain()
            elif key.fd == self._signals_read:
                os.read(self._signals_read, 4096)
        ended = sorted(self._ended)
        for name in ended:
            self.forget(name)
        return ended

    def take_wake_up(self) -> bool:
        """Whether somebody has woken us since this was last asked."""
        woken, self.woken = self.woken, False
        return woken

    def take_re_execution(self) -> bool:
        """Whether a re-execution was asked for since this was last asked."""
        asked, self._re_execution_asked = self._re_execution_asked, False
        return asked

    def close(self) -> None:
        for name in list(self._pidfds):
            self.forget(name)
        self._selector.close()
        self._wake_up.close()
        signal.set_wakeup_fd(-1)
        os.close(self._signals_read)
        os.close(self._signals_write)

    def _catch_signals(self) -> None:
        self._signals_read, self._signals_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(RE_EXECUTE, self._request_re_execution)
        # Whoever started us may have ignored it, and then the kernel keeps no child until we have asked how it ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Whoever started us may have had them blocked; a supervisor's earlier image does, so that none is lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._selector.register(self._signals_read, selectors.EVENT_READ, None)

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        # A terminal that closes hangs up more than once, and never asks for more than a stop.
        self.stop_requests = max(self.stop_requests, 1)

    def _request_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_requests += 1
        self.interrupted = number == signal.SIGINT

    def _request_re_execution(self, _number: int, _frame: FrameType | None) -> None:
        self._re_execution_asked = True


def seconds_until(moments_ms: Iterable[int | None], now_ms: int, at_most_s: float) -> float:
    """How long to sleep for the first of some moments (ms, one clock), never longer than ``at_most_s``."""
    waits = [(moment - now_ms) / 1000 for moment in moments_ms if moment is not None]
    return max(0.0, min([at_most_s, *waits]))
