"""A process's heartbeat: written from inside its loop, so that a loop that hangs stops beating."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from operations_center.clock import Clock, Now
from operations_center.identity import Host, Process
from operations_center.pulse import Pulse, write_pulse

_log = logging.getLogger(__name__)

BEAT_EVERY_MS = 2_000


class Patience(NamedTuple):
    """When somebody was asked for something, in monotonic ms, and how long that may take."""

    asked_at: int
    within_ms: int


class Awake:
    """Whether this very process stood still: stopped, frozen, or starved.

    Then others may have done so with it, and their silence until ``since`` (monotonic ms) proves nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.since = self._looked_at = clock.now().monotonic

    def look(self) -> Now:
        """The time, to be taken before the heartbeats that are judged by it: who stands still in between is younger."""
        now = self._clock.now()
        if now.monotonic - self._looked_at > 2 * BEAT_EVERY_MS:
            self.since = now.monotonic
        self._looked_at = now.monotonic
        return now

    def end_of(self, patience: Patience) -> int:
        """In monotonic ms: while this process stood still, whoever was asked may have done so too."""
        return max(patience.asked_at, self.since) + patience.within_ms


@dataclass
class Heart:
    path: Path
    clock: Clock
    host: Host
    me: Process
    release: str | None = None
    config: str = ""
    config_file: str = ""

    def __post_init__(self) -> None:
        self._started_at = self.clock.now().wall
        self._state = ""
        self._progress_at: int | None = None
        self._details: dict[str, Any] = {}
        self._last_beat = 0
        self._failed_at: int | None = None

    def beat(self, state: str, **details: Any) -> None:
        """Once for each turn of the loop; the file is written when something is new, or it is time."""
        now = self.clock.now()
        known = state == self._state and details == self._details
        if known and now.monotonic - self._last_beat < BEAT_EVERY_MS:
            return
        self._state, self._details, self._last_beat = state, details, now.monotonic
        self._write(
            Pulse(
                pid=self.me.pid,
                start_ticks=self.me.start_ticks,
                boot_id=self.host.boot_id,
                state=state,
                started_at=self._started_at,
                heartbeat_at=now.wall,
                heartbeat_mono=now.monotonic,
                progress_at=self._progress_at,
                release=self.release,
                config=self.config,
                config_file=self.config_file,
                details=details,
            ),
        )

    def _write(self, pulse: Pulse) -> None:
        try:
            write_pulse(self.path, pulse)
        except OSError as error:
            self._failed_at = self.clock.now().monotonic
            _log.warning("cannot write the heartbeat %s: %s", self.path, error)

    def could_beat_for(self, milliseconds: int) -> bool:
        """Whether every beat of so long a time could be written, one right now among them.

        Where it could not, nobody else's could either, and their silence proves nothing.
        """
        self._last_beat = 0
        self.beat(self._state, **self._details)
        return self._failed_at is None or self.clock.now().monotonic - self._failed_at > milliseconds

    def progress(self) -> None:
        """Some of the process's work was done; told with the next beat."""
        self._progress_at = self.clock.now().wall
        self._last_beat = 0
