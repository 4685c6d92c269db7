"""May this task run on this backend now? The pure half of admission: facts and limits in, obstacles out.

The ledger gathers the facts and records the run in one transaction, so that no two admissions decide on the
same slot; ``why`` asks the same question without recording anything.
"""

from dataclasses import dataclass
from enum import StrEnum

from operations_center.clock import rfc3339


class Obstacle(StrEnum):
    """What stands in the way, in the words of ``operations-center why``."""

    ANOTHER_RUN = "another_run"
    HELD = "held"
    PAUSE = "pause"
    BACKOFF = "backoff"
    CAP = "cap"
    BUDGET = "budget"
    COOLDOWN = "cooldown"
    BREAKER = "breaker"
    MEMORY = "memory"
    NO_ROLE = "no_role"
    NO_BACKEND = "no_backend"
    CONCURRENCY = "concurrency"
    PRIORITY = "priority"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a backend is left alone: after so many runs in a row that each failed ``within_ms``, for ``cooldown_ms``."""

    failures: int
    within_ms: int
    cooldown_ms: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backend allows; None is no limit. ``min_available_memory`` in bytes."""

    max_concurrent: int
    max_per_hour: int | None = None
    max_per_day: int | None = None
    min_available_memory: int | None = None
    breaker: Breaker | None = None

    @property
    def has_budget(self) -> bool:
        return self.max_per_hour is not None or self.max_per_day is not None


@dataclass(frozen=True, slots=True)
class Probe:
    """The open run that tries whether a backend works again."""

    run_id: str
    reserved_at: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """A more urgent task of another role, which waits for the same backend and could start.

    ``offered_at``: since when a free slot has been left to its role (wall-clock ms); None: none has been.
    """

    role: str
    task_id: str
    offered_at: int | None


OFFERED_FOR_MS = 5_000
"""A slot is left so long to a role with a more urgent task. Its watcher may be dead, or stopped."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the ledger and the machine say; ``available_memory`` in bytes, times in wall-clock ms.

    What no limit asks for is not looked up: ``in_last_…`` are 0 without a budget, and None is no memory asked for.
    ``attempt`` is the one that would begin, counted from 1. ``cooldown_until`` is what the provider has asked for,
    ``broken_until`` our own pause after too many failures, ``broken_reason`` the last of them, ``probe`` the first run
    since that pause, if it is open. ``has_wishes``: whether anybody has
    announced what waits for the backend; ``ahead``: what goes first, the most urgent at the head.
    """

    now: int
    open_run: str | None
    task_held: bool
    slots_held: int
    in_last_hour: int
    in_last_day: int
    pauses: tuple[str, ...]
    not_before: int | None
    available_memory: int | None
    attempt: int
    cooldown_until: int | None = None
    broken_until: int | None = None
    broken_reason: str | None = None
    probe: Probe | None = None
    has_wishes: bool = False
    ahead: tuple[Ahead, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """``until``: when it is over (wall-clock ms), where that is known. ``role``: the one that goes first."""

    obstacle: Obstacle
    reason: str
    until: int | None = None
    role: str | None = None


def refusals(facts: Facts, limits: Limits, backend: str) -> list[Refusal]:
    """Everything that stands in the way; empty: admit."""
    found = []
    if facts.open_run:
        found.append(Refusal(Obstacle.ANOTHER_RUN, f"run {facts.open_run} of this task is still open"))
    if facts.task_held:
        found.append(Refusal(Obstacle.HELD, "the task is just being given back to the board"))
    found += [Refusal(Obstacle.PAUSE, text) for text in facts.pauses]
    if facts.not_before is not None and facts.not_before > facts.now:
        found.append(Refusal(Obstacle.BACKOFF, f"backs off until {rfc3339(facts.not_before)}", facts.not_before))
    if facts.slots_held >= limits.max_concurrent:
        found.append(
            Refusal(Obstacle.CAP, f"backend {backend} holds {facts.slots_held} of {limits.max_concurrent} slots")
        )
    if facts.cooldown_until is not None and facts.cooldown_until > facts.now:
        reason = f"backend {backend} cools down until {rfc3339(facts.cooldown_until)}: its provider takes no more"
        found.append(Refusal(Obstacle.COOLDOWN, reason, facts.cooldown_until))
    found += _breaker(facts, limits, backend)
    found += _more_urgent(facts, limits)
    found += _budget(facts.in_last_hour, limits.max_per_hour, backend, "hour")
    found += _budget(facts.in_last_day, limits.max_per_day, backend, "day")
    found += _memory(facts.available_memory, limits.min_available_memory, backend)
    return found


def _breaker(facts: Facts, limits: Limits, backend: str) -> list[Refusal]:
    """Leave a backend alone while its breaker is open. Then one run tries it, and has to last for as long as counts."""
    if facts.broken_until is not None and facts.broken_until > facts.now:
        why = facts.broken_reason or "its last requests have failed"
        reason = (
            f"backend {backend} is not used until {rfc3339(facts.broken_until)}: {why}; "
            f"see `operations-center runs --backend {backend}`, or try it now: `operations-center resume {backend}`"
        )
        return [Refusal(Obstacle.BREAKER, reason, facts.broken_until)]
    if facts.probe is None or limits.breaker is None:
        return []
    until = facts.probe.reserved_at + limits.breaker.within_ms
    if until <= facts.now:
        return []
    reason = f"run {facts.probe.run_id} tries whether backend {backend} works again: {facts.broken_reason}"
    return [Refusal(Obstacle.BREAKER, reason, until)]


def _more_urgent(facts: Facts, limits: Limits) -> list[Refusal]:
    """As many slots as there are more urgent tasks are left to these."""
    free = max(0, limits.max_concurrent - facts.slots_held)
    if not facts.ahead or len(facts.ahead) < free:
        return []
    first = facts.ahead[0]
    until = (facts.now if first.offered_at is None else first.offered_at) + OFFERED_FOR_MS
    reason = f"a more urgent task {first.task_id} of role {first.role} goes first"
    return [Refusal(Obstacle.PRIORITY, reason, until, first.role)]


def _memory(available: int | None, least: int | None, backend: str) -> list[Refusal]:
    if available is None or least is None or available >= least:
        return []
    reason = f"{available >> 20} MiB of memory available, backend {backend} wants {least >> 20}"
    return [Refusal(Obstacle.MEMORY, reason)]


def _budget(used: int, limit: int | None, backend: str, period: str) -> list[Refusal]:
    if limit is None or used < limit:
        return []
    return [Refusal(Obstacle.BUDGET, f"backend {backend} has used {used} of {limit} runs in the last {period}")]
