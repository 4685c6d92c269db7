"""Threads that speak with providers and know nothing of the ledger."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger(__name__)

THREADS = 16
"""Questions and downloads at the same time, and submissions beside them."""


class Requests:
    """Threads that end with their process, whatever a provider takes its time for.

    ``at_once``: none of the requests waits for a thread. ``under_way`` are those whose answers are not recorded.
    """

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads = 0
        self.under_way = 0

    def has_room(self) -> bool:
        """Whether a request may be put; a thread more is started if need be, as far as the machine has one."""
        if self.under_way < self._threads or self._start_thread():
            return True
        return self._threads > 0 and not self._at_once

    def put(self, request: Callable[[], None]) -> None:
        self.under_way += 1
        self._waiting.put(request)

    def _start_thread(self) -> bool:
        if self._threads == THREADS:
            return False
        try:
            threading.Thread(target=self._work, name=f"provider {self._threads}", daemon=True).start()
        except RuntimeError as error:
            _log.warning("cannot start a thread for provider runs: %s", error)
            return False
        self._threads += 1
        return True

    def _work(self) -> None:
        while True:
            self._waiting.get()()
