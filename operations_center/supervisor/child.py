"""One supervised process as a small state machine. Pure: time and chance come in, a new value comes out.

starting ──ready──▶ ready ──ended──▶ starting (at once, however often, unless it never lives for a second)
starting ──ended──▶ backoff ──time──▶ starting        0.5 s × 2, up to 30 s
starting ──ended──▶ failed  ──time──▶ starting        after five such deaths, once a minute
any      ──stop───▶ stopped
"""

from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_BACKOFF_MS = 500
LONGEST_BACKOFF_MS = 30_000
FAILED_AFTER = 5
FAILED_RETRY_MS = 60_000
STABLE_MS = 1_000
"""One that dies again and again just after it was ready is no better than one that never is."""


class ChildState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Child:
    """``deaths`` counts early ones in a row; ``start_at`` (None while it lives) and ``ready_at`` are monotonic ms."""

    name: str
    state: ChildState = ChildState.STARTING
    start_at: int | None = 0
    deaths: int = 0
    restarts: int = -1
    ready_at: int = 0

    def is_due(self, now: int) -> bool:
        return self.start_at is not None and now >= self.start_at


def started(child: Child) -> Child:
    return replace(child, state=ChildState.STARTING, start_at=None, restarts=child.restarts + 1)


def found_alive(child: Child) -> Child:
    """A survivor of an earlier supervisor: it is not started a second time."""
    return replace(child, state=ChildState.STARTING, start_at=None, restarts=max(child.restarts, 0))


def became_ready(child: Child, now: int) -> Child:
    return replace(child, state=ChildState.READY, ready_at=now)


def ended(child: Child, now: int, jitter: float) -> Child:
    """``jitter`` between 0 and 1 spreads restarts, so that children that died together do not come back so."""
    was_ready = child.state is ChildState.READY
    if was_ready and now - child.ready_at >= STABLE_MS:
        return replace(child, state=ChildState.STARTING, start_at=now, deaths=0)
    deaths = child.deaths + 1
    if was_ready and deaths < FAILED_AFTER:
        return replace(child, state=ChildState.STARTING, start_at=now, deaths=deaths)
    if deaths >= FAILED_AFTER:
        return replace(child, state=ChildState.FAILED, deaths=deaths, start_at=now + FAILED_RETRY_MS)
    wait = min(FIRST_BACKOFF_MS * 2 ** (deaths - 1), LONGEST_BACKOFF_MS)
    return replace(child, state=ChildState.BACKOFF, deaths=deaths, start_at=now + round(wait * (1 + jitter / 4)))


def stopped(child: Child) -> Child:
    return replace(child, state=ChildState.STOPPED, start_at=None)
