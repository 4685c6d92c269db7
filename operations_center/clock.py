"""Time as a parameter.

Deadlines within one boot count on CLOCK_MONOTONIC, which no person and no NTP daemon can move.
Wall-clock times are for people and for what must survive a reboot.
"""

import time
from datetime import UTC, datetime
from typing import Protocol

import msgspec


class Now(msgspec.Struct, frozen=True, gc=False):
    """One reading of both clocks, in milliseconds: ``wall`` since the epoch, ``monotonic`` since boot.

    ``slept``: how long the machine was suspended in this boot, which the monotonic clock leaves out.
    """

    wall: int
    monotonic: int
    slept: int = 0

    @property
    def boottime(self) -> int:
        return self.monotonic + self.slept


class Clock(Protocol):
    def now(self) -> Now: ...


class SystemClock:
    def now(self) -> Now:
        wall, monotonic = time.time_ns() // 1_000_000, time.monotonic_ns() // 1_000_000
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        return Now(wall, monotonic, slept=max(0, boottime - monotonic))


def rfc3339(wall_ms: int | None) -> str | None:
    """``1760000000123`` → ``"2025-10-09T08:53:20.123Z"``; None stays None."""
    if wall_ms is None:
        return None
    moment = datetime.fromtimestamp(wall_ms / 1000, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{wall_ms % 1000:03d}Z"


def from_rfc3339(text: str) -> int:
    """Milliseconds since the epoch. Raises ValueError for anything that is not an RFC 3339 time."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
