"""A stream that never waits for its reader: a terminal that takes no output (Ctrl-S), a pipe that nobody reads.

A thread writes, and may wait as long as it likes: it holds nothing that others need. What is kept for it is bounded.
What does not fit is lost, and the next record that fits tells how much.
"""

import os
import select
import signal
import threading
import time
from collections import deque

KEPT_BYTES = 1024 * 1024

DRAIN_WITHIN_S = 0.5
"""For what is said last. A reader that takes longer does not hold up the end of a process."""

LOOK_EVERY_S = 1.0
"""Whether a descriptor that somebody else has made non-blocking takes output again."""


class PatientStream:
    """Text for a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._changed = threading.Condition()
        thread = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
        # Signals are for the main thread.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with self._changed:
            if self._size + len(data) > KEPT_BYTES:
                self._lost += 1
                return
            self._tell_loss()
            self._keep(data)

    def flush(self) -> None:
        """Return at once: every record that is logged ends with this. See ``drain``."""

    def drain(self, within_s: float = DRAIN_WITHIN_S) -> None:
        """Wait until all is written, but no longer."""
        with self._changed:
            self._changed.wait_for(lambda: not self._size, within_s)

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        self._kept.append(data)
        self._changed.notify_all()

    def _tell_loss(self) -> None:
        """At the place where the lost ones would stand."""
        if self._lost:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._keep(f"{now} WARNING {self._lost} log records were lost here: nobody read them in time\n".encode())
            self._lost = 0

    def _write_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._kept)
                data = self._kept.popleft()
            is_written = self._write(data)
            with self._changed:
                self._size -= len(data)
                if not is_written:
                    self._lost += 1
                elif not self._kept:
                    self._tell_loss()
                self._changed.notify_all()

    def _write(self, data: bytes) -> bool:
        """False where nobody will ever read it."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], LOOK_EVERY_S)
            except OSError:
                return False
        return True
