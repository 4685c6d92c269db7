"""One supervised process as a small state machine. Pure: time and chance come in, a new value comes out.

    starting ──ready──▶ ready ──ended──▶ starting         at once, however often
    starting ──ended──▶ backoff ──time──▶ starting        0.5 s × 2, up to 30 s
    starting ──ended──▶ failed  ──time──▶ starting        the same waits, from the fifth such death on
    any      ──stop───▶ stopped

One that exits by itself within a second of being ready, again and again, is no better than one that never is
ready, and is treated alike from its fifth such death on; one that is killed is not to blame.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

FIRST_BACKOFF_MS = 500
LONGEST_BACKOFF_MS = 30_000
FAILED_AFTER = 5
STABLE_MS = 1_000


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


def not_started(child: Child, now: int) -> Child:
    """It was asked for in vain, through no fault of its own."""
    return replace(child, state=ChildState.STARTING, start_at=now, restarts=child.restarts - 1)


def exchanged(child: Child, now: int) -> Child:
    """The one before has ended in its favour, or in the trial of a release that counts the deaths by itself."""
    return replace(child, state=ChildState.STARTING, start_at=now, deaths=0)


def found_alive(child: Child) -> Child:
    """A survivor of an earlier supervisor: it is not started a second time."""
    return replace(child, state=ChildState.STARTING, start_at=None, restarts=max(child.restarts, 0))


def became_ready(child: Child, now: int) -> Child:
    return replace(child, state=ChildState.READY, ready_at=now)


def ended(child: Child, now: int, jitter: float, *, by_itself: bool) -> Child:
    """``jitter`` between 0 and 1 spreads restarts, so that children that died together do not come back so.

    ``by_itself``: it exited, and was not killed by a signal.
    """
    was_ready = child.state is ChildState.READY
    if was_ready and not (by_itself and now - child.ready_at < STABLE_MS):
        return replace(child, state=ChildState.STARTING, start_at=now, deaths=0)
    deaths = child.deaths + 1
    if was_ready and deaths < FAILED_AFTER:
        return replace(child, state=ChildState.STARTING, start_at=now, deaths=deaths)
    state = ChildState.FAILED if deaths >= FAILED_AFTER else ChildState.BACKOFF
    wait = backoff_ms(deaths) * (1 + jitter / 4)
    return replace(child, state=state, deaths=deaths, start_at=now + round(wait))


def backoff_ms(deaths: int) -> int:
    doublings = min(deaths - 1, LONGEST_BACKOFF_MS.bit_length())
    return min(FIRST_BACKOFF_MS << doublings, LONGEST_BACKOFF_MS)


def stopped(child: Child) -> Child:
    return replace(child, state=ChildState.STOPPED, start_at=None)
