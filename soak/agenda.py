"""What is to be done and when, in one thread: no two deeds of the soak come at once unless they are meant to."""

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Actor(Protocol):
    """Draws one decision after the other from its own seeded chance, whatever became of the ones before."""

    def next_wait_s(self) -> float: ...
    def act(self) -> None: ...


class Agenda:
    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), deed))

    def engage(self, actor: Actor, until: float) -> None:
        """Let an actor act again and again until a monotonic time (seconds)."""

        def turn() -> None:
            if time.monotonic() < until:
                actor.act()
                self.after(actor.next_wait_s(), turn)

        self.after(actor.next_wait_s(), turn)

    def run(self, until: float, meanwhile: Callable[[], None]) -> None:
        """Do what is due until a monotonic time (seconds); ``meanwhile`` is done a hundred times a second."""
        while (now := time.monotonic()) < until:
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            meanwhile()
            next_at = self._due[0][0] if self._due else until
            time.sleep(max(0.0, min(next_at - time.monotonic(), 0.01)))

    def finish(self) -> None:
        """Do all that is left, now: whoever was stopped goes on."""
        while self._due:
            heapq.heappop(self._due)[2]()
