"""One selector for all that a process sleeps on: ended processes, wake-ups, signals, a timer."""

import os
import selectors
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Protocol

from operations_center.identity import Process
from operations_center.pidfds import open_pidfd
from operations_center.signals import RE_EXECUTE, REFUSED, SIGNALS, Sent, SignalQueue, Standing
from operations_center.wakeups import WakeUp

LONGEST_S = 3600.0
"""No sleep is longer, whatever a configuration asks for: epoll takes at most 2^31 ms."""

Judge = Callable[[Sent], Standing]
"""Finds out what the sender of a signal is to this process."""


class HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def trust_everybody(_sent: Sent) -> Standing:
    return Standing.OWNER


class Waiting:
    """``judge`` is asked about the sender of each signal that asks for a stop; what a run sends changes nothing.

    ``reload_on_hang_up``: SIGHUP asks for a reload. Else it is a terminal that closes, and asks for a stop.
    """

    def __init__(
        self, wake_directory: Path, name: str, judge: Judge = trust_everybody, *, reload_on_hang_up: bool = False
    ) -> None:
        self.interrupted = False
        self.woken = True
        self._judge = judge
        self._reload_on_hang_up = reload_on_hang_up
        self._stop_requests = 0
        self._stopped_by: list[Sent] = []
        self._owner_stopped = False
        self._re_execution_asked = False
        self._reload_asked = False
        self._selector = selectors.DefaultSelector()
        self._pidfds: dict[str, int] = {}
        self._ended: set[str] = set()
        self._wake_up = WakeUp(wake_directory, name)
        self._selector.register(self._wake_up, selectors.EVENT_READ, self._wake_up)
        self._signals = self._queue_signals()
        self._selector.register(self._signals, selectors.EVENT_READ, self._signals)

    @property
    def stop_requests(self) -> int:
        """How often a stop was asked for: by SIGTERM, SIGINT or, unless it is ignored, a terminal that closes."""
        self._take_signals()
        return self._stop_requests

    @property
    def exit_code(self) -> int:
        """0 where the fleet's owner asked for the stop; else 128 and the signal, so that a service is started again."""
        return 0 if self._owner_stopped or not self._stopped_by else 128 + self._stopped_by[0].number

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
            elif isinstance(key.data, SignalQueue):
                self._take_signals()
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
        self._take_signals()
        asked, self._re_execution_asked = self._re_execution_asked, False
        return asked

    def take_reload(self) -> bool:
        """Whether a reload was asked for since this was last asked."""
        self._take_signals()
        asked, self._reload_asked = self._reload_asked, False
        return asked

    def close(self) -> None:
        for name in list(self._pidfds):
            self.forget(name)
        self._selector.close()
        self._wake_up.close()
        self._signals.close()

    def _queue_signals(self) -> SignalQueue:
        # Whoever started us may have had them ignored, and the kernel would drop them.
        wanted = SIGNALS if self._reload_on_hang_up else SIGNALS - {signal.SIGHUP}
        for number in wanted:
            signal.signal(number, _leave_to_queue)
        # Likewise, and then the kernel keeps no child until we have asked how it ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return SignalQueue(SIGNALS)

    def _take_signals(self) -> None:
        for sent in self._signals.take():
            self._take(sent)

    def _take(self, sent: Sent) -> None:
        """What ends nothing is for everybody to ask, as ``operations-center restart`` inside of a run does."""
        if sent.number == RE_EXECUTE:
            self._re_execution_asked = True
        elif sent.number == signal.SIGHUP and self._reload_on_hang_up:
            self._reload_asked = True
        elif (standing := self._judge(sent)) not in REFUSED:
            self._request_stop(sent, standing)

    def _request_stop(self, sent: Sent, standing: Standing) -> None:
        self._stopped_by.append(sent)
        self._owner_stopped = self._owner_stopped or standing is Standing.OWNER
        self.interrupted = sent.number == signal.SIGINT
        if sent.number == signal.SIGHUP:
            # A terminal that closes hangs up more than once, and never asks for more than a stop.
            self._stop_requests = max(self._stop_requests, 1)
        else:
            self._stop_requests += 1


def _leave_to_queue(_number: int, _frame: FrameType | None) -> None:
    """Do nothing where a thread takes a signal that it should have blocked: a process must not end by it."""


def seconds_until(moments_ms: Iterable[int | None], now_ms: int, at_most_s: float) -> float:
    """How long to sleep for the first of some moments (ms, one clock), never longer than ``at_most_s``."""
    waits = [(moment - now_ms) / 1000 for moment in moments_ms if moment is not None]
    return max(0.0, min([at_most_s, *waits]))
