"""When a backend is left alone: as long as a provider asks for it, and ever longer while it fails. Pure.

A breaker opens after several failures in a row, of whatever job; after its time one more try is let through, and
another failure opens it for twice as long (Nygard, Release It!, "Circuit Breaker"). A command has one, too: it counts
runs that fail at once, and its pause is the configured one.
"""

from typing import Literal

import msgspec

from operations_center.admission import Breaker
from operations_center.model import Health, JobMemory
from operations_center.providers import Ill

COOLDOWN_MS = 30_000
"""After "too many requests" without a word about when to come again."""

LEAST_COOLDOWN_MS = 1_000
"""However soon a provider says that it may be asked again: it has just said that it is too often."""

LONGEST_COOLDOWN_MS = 3_600_000
"""However long a provider asks for."""

FIRST_PAUSE_MS = 5_000
LONGEST_PAUSE_MS = 300_000
"""Between asks for one job that told nothing."""

BREAKS_AT = 5
BROKEN_MS = 15_000
LONGEST_BROKEN_MS = 600_000

OF_THE_PROVIDER = frozenset({Ill.FAILING, Ill.UNREADABLE})
"""What says that the provider is ill, and not our request."""


def after_answer(before: Health | None, ill: Ill | None, retry_after_ms: int | None, now: int) -> Health | None:
    """``now`` in wall-clock ms; None is well. ``ill`` None is an answer as it should be.

    It says nothing of a cooldown: others had been asked for before the provider wanted to be left alone.
    """
    if ill is None:
        until = cools_down_until(before, now)
        return Health(0, before.since, until) if before is not None and until is not None else None
    if ill is Ill.THROTTLED:
        wanted = COOLDOWN_MS if retry_after_ms is None else retry_after_ms
        wait = min(max(wanted, LEAST_COOLDOWN_MS), LONGEST_COOLDOWN_MS)
        return Health(before.failures if before else 0, now, now + wait, before.broken_until if before else None)
    if ill not in OF_THE_PROVIDER:
        return before
    if before and breaker_of(before, now) == "open":
        return before  # it was asked before the breaker opened, and tells nothing that is not known
    failures = before.failures + 1 if before else 1
    broken = min(BROKEN_MS * 2 ** min(failures - BREAKS_AT, 20), LONGEST_BROKEN_MS) if failures >= BREAKS_AT else None
    return Health(failures, now, before.cooldown_until if before else None, now + broken if broken else None)


def after_run(
    before: Health | None, works: bool | None, breaker: Breaker, reason: str | None, now: int
) -> Health | None:
    """Judge a command by a run that has ended: it works, it does not, or (None) the run tells neither.

    ``now`` in wall-clock ms. A run that began before the breaker opened tells nothing that is not known.
    """
    if works:
        return None
    if works is None or (before is not None and breaker_of(before, now) == "open"):
        return before
    failures = before.failures + 1 if before else 1
    told = f"{failures} runs in a row have failed within {breaker.within_ms / 1000:g} s, the last: {reason}"
    return Health(failures, now, None, now + breaker.cooldown_ms if failures >= breaker.failures else None, told)


def closed_by_person(health: Health) -> Health:
    """Close a breaker. The next failure opens it again, and what a provider has asked for stands."""
    return msgspec.structs.replace(health, broken_until=None)


def not_before(health: Health | None, now: int) -> int | None:
    """Until when nothing is to be asked of a provider (wall-clock ms); None when it may be."""
    if health is None or health.since > now:
        return None
    until = max(health.cooldown_until or 0, health.broken_until or 0)
    return until if until > now else None


def cools_down_until(health: Health | None, now: int) -> int | None:
    """Until when a provider has asked to be left alone; None when it has not, or that is over."""
    until = health.cooldown_until if health is not None and health.since <= now else None
    return until if until is not None and until > now else None


def breaker_of(health: Health | None, now: int) -> Literal["closed", "open", "half_open"]:
    """Half open: the pause is over, and the next answer decides."""
    if health is None or health.broken_until is None:
        return "closed"
    return "open" if health.broken_until > now >= health.since else "half_open"


def pause_after_ms(failures: int) -> int:
    """How long to leave a job alone after so many asks in a row that told nothing."""
    return int(min(FIRST_PAUSE_MS * 2 ** min(failures - 1, 20), LONGEST_PAUSE_MS))


def may_be_asked(health: Health | None, memory: JobMemory | None, now: int, *, by_person: bool) -> bool:
    """Whether a job may be asked for now. A person goes before all pauses but the one that the provider asked for."""
    if by_person:
        return cools_down_until(health, now) is None
    rests = memory is not None and memory.ask_at is not None and memory.ask_at > now
    return not rests and not_before(health, now) is None
