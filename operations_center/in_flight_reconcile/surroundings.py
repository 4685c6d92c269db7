"""What reconciliation works with, which runs it looks at, and for whom it may ask providers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from operations_center.boards import Board
from operations_center.clock import Clock
from operations_center.identity import Host, Process
from operations_center.in_flight_reconcile.silence import Silence
from operations_center.keeper.processes import Processes
from operations_center.ledger import Ledger
from operations_center.providers import JobBackend
from operations_center.settlement import Settlement

ASKED_AT_MOST = 25
"""Jobs that one reconciliation asks for, unless a person wants more."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What reconciliation reads and writes through.

    ``me`` is this process; ``processes`` are all that it can see; ``directory_of`` maps a run id to its
    directory; ``wake_everybody`` tells the others that a slot or a task is free, ``wake`` one role's watcher;
    ``job_backends`` are those whose runs are jobs at a provider, ``roles`` the names of those that have watchers;
    ``beat`` is called while providers are waited for; ``childless_since`` remembers, for as long as this process
    lives, since when (monotonic ms) a keeper has been seen without an executor; ``silence`` remembers how long runs
    have printed nothing.
    """

    ledger: Ledger
    board: Board
    clock: Clock
    host: Host
    me: Process
    processes: Processes
    settlement: Settlement
    directory_of: Callable[[str], str]
    wake_everybody: Callable[[], None]
    wake: Callable[[str], None]
    startup_lock: Path
    job_backends: Mapping[str, JobBackend]
    roles: Collection[str]
    silence: Silence
    beat: Callable[[], None] = lambda: None
    childless_since: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which open runs are looked at; None is no limit."""

    run_id: str | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Asking:
    """Who may ask providers out of turn: a person, or a timer for backends that allow it; at most ``limit`` jobs.

    ``min_age_ms``: younger jobs are left alone; None is the backend's own for a timer, and none for a person.
    ``again_after_ms``: runs whose jobs this person's command has asked about already. They are asked about again only
    so long after they were heard of, and as pauses and breaker allow.
    """

    by_person: bool
    min_age_ms: int | None = None
    limit: int = ASKED_AT_MOST
    again_after_ms: Mapping[str, int] = field(default_factory=dict)


BY_TIMER = Asking(by_person=False)
