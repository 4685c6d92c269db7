"""The in-flight ledger: every run, who holds it, and the log of how it came to be so.

Writes to a run are guarded by run, fence, holder and state. A guard that does not match is an answer, None,
and not an error: somebody else has changed the run, and the log then keeps a ``run.lost_race`` event.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from operations_center.admission import Facts, Limits, Refusal
from operations_center.identity import Host, Process
from operations_center.ledger.seen_time import SeenTime
from operations_center.model import Attempts, Event, Health, JobMemory, Run

LEASE_MS = 60_000
"""How long a host is trusted to live without a sign of it. Its processes share one lease."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request for a slot. ``timeout_ms``, ``grace_ms``, ``idle_timeout_ms`` and ``max_output`` are the backend's.

    Nobody goes before a request without ``urgency``.
    """

    task_id: str
    role: str
    backend: str
    limits: Limits
    host: Host
    watcher: Process
    grace_ms: int
    timeout_ms: int | None
    release: str | None = None
    kind: str | None = None
    idle_timeout_ms: int | None = None
    max_output: int | None = None
    urgency: int | None = None


class Wish(msgspec.Struct, frozen=True, gc=False):
    """A task that a role's watcher would start on a backend, if it could."""

    backend: str
    task_id: str
    urgency: int


class Change(msgspec.Struct, frozen=True, gc=False):
    """A transition of a run: the run as it was read, the columns that change, and what the log keeps beside them."""

    old: Run
    columns: Mapping[str, Any]
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """``name`` is a role, a backend or ``*``; ``source`` is who paused: ``person``, ``watchdog`` or ``drain``."""

    name: str
    source: str
    reason: str
    since: int


@dataclass(frozen=True, slots=True)
class Lease:
    """When a host last said that it lives, on which boot, and until when it may be trusted (wall-clock ms).

    ``renewed_mono`` is the monotonic clock of that boot; None where an older program has written it.
    """

    boot_id: str
    renewed_at: int
    lease_until: int
    renewed_mono: int | None = None


class Ledger(Protocol):
    def transaction(self) -> AbstractContextManager[None]:
        """Several writes as one; each alone is a transaction of its own."""

    def snapshot(self) -> AbstractContextManager[None]: ...
    def within(self, seconds: float) -> AbstractContextManager[None]:
        """All writes of a block together wait no longer than this for other writers; then LedgerBusy."""

    # Runs
    def admit(self, admission: Admission) -> Run | list[Refusal]: ...
    def admission_facts(
        self, task_id: str, role: str, backend: str, limits: Limits, urgency: int | None = None
    ) -> Facts: ...
    def announce(self, role: str, at_once: int, wishes: Sequence[Wish]) -> None:
        """Say what a role would start next, at most ``at_once`` of it at once, in the order of its tasks.

        Admission leaves slots to what is more urgent than what it is asked for, as long as its role takes them.
        """

    def change_run(self, old: Run, event: str, *, note: Mapping[str, Any] | None = None, **changes: Any) -> Run | None:
        """Make one transition of the table; None when ``old`` is not the run's present any more."""

    def change_runs(self, event: str, changes: Sequence[Change]) -> list[Run | None]:
        """The same transition of many runs as one write. Each wins or loses for itself, as with ``change_run``."""

    def set_attempts(self, task_id: str, attempts: Attempts) -> None: ...
    def attempts_of(self, task_ids: Collection[str]) -> dict[str, Attempts]:
        """By task; one of which nothing is remembered is missing."""

    def set_attempts_of(self, attempts: Mapping[str, Attempts]) -> None: ...
    def hold_task(self, task_id: str, until: int) -> bool:
        """Keep admission off a task without an open run; False if it has one."""

    def release_task(self, task_id: str) -> None: ...
    def run(self, run_id: str) -> Run | None: ...
    def open_runs(self, *, role: str | None = None, backend: str | None = None) -> list[Run]: ...
    def tasks_with_slot(self, *, backend: str | None = None) -> list[str]:
        """The tasks of the runs that hold a slot."""

    def recent_runs(self, *, task_id: str | None, backend: str | None, limit: int) -> list[Run]: ...
    def closed_before(self, wall_ms: int, limit: int) -> list[str]:
        """Closed runs that are so old by the wall clock, and by the time that was seen to pass as well."""

    def observe_clocks(self) -> SeenTime:
        """Look at the clocks, and keep how much time was seen to pass."""

    def certainly_before(self, wall_ms: int) -> int:
        """The same moment, or an earlier one where less time was seen to pass than the wall clock says."""

    def slots_held(self) -> dict[str, int]: ...

    # Jobs at providers
    def jobs(self, run_ids: Collection[str]) -> dict[str, JobMemory]:
        """By run; one that was never heard of is missing."""

    def remember_jobs(self, jobs: Mapping[str, JobMemory]) -> None: ...
    def health(self) -> dict[str, Health]:
        """By backend; one that is well is missing."""

    def set_health(self, backend: str, health: Health | None) -> None: ...

    # Admission's switches, hosts, reports
    def pauses(self) -> list[Pause]: ...
    def pause(self, pause: Pause) -> None: ...
    def resume(self, name: str | None, source: str) -> int: ...
    def keep_lease(self, host: Host, lease_ms: int) -> None:
        """Renew a host's lease when a third of it is over; several processes of a host share one lease."""

    def leases(self) -> dict[tuple[str, int], Lease]: ...
    def record_reconcile(self, report: Mapping[str, Any], at: int) -> None: ...
    def reconciles(self) -> dict[str, dict[str, Any]]: ...

    # The log, and care of the ledger
    def note(self, kind: str, data: Mapping[str, Any], *, run_id: str | None = None) -> None: ...
    def events(self, *, run_id: str | None = None, since: int | None = None, after: int = 0) -> Iterator[Event]: ...
    def last_event(self) -> int: ...
    def restored_since(self, wall_ms: int) -> bool:
        """Whether this ledger was restored from a backup at this time or later."""

    def prune(self, run_ids: Sequence[str], events_before: int) -> int: ...
    def verify(self) -> list[str]: ...
    def backup(self, destination: Path) -> None: ...
