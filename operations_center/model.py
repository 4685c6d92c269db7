"""The words that everyone uses: task, run, outcome, proof, and the table of a run's transitions.

What there are thousands of at once are msgspec structs: one is made in a twentieth of a dataclass's time. To change
one is ``msgspec.structs.replace``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from operations_center.identity import Process


class TaskState(StrEnum):
    BACKLOG = "backlog"
    READY = "ready"
    RUNNING = "running"
    REVIEW = "review"
    DONE = "done"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"


class Priority(StrEnum):
    URGENT = "urgent"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


LEVEL_MS = 86_400_000
"""A task that has waited for so long is as urgent as one of the next higher priority that is new."""


def urgency_of(priority: Priority, created_at: int) -> int:
    """Return what ready tasks are ordered by, the lowest first: nobody waits for ever, and the order never changes."""
    return created_at + LEVEL_MS * tuple(Priority).index(priority)


class RunState(StrEnum):
    RESERVED = "reserved"
    RUNNING = "running"
    SETTLING = "settling"
    CLOSED = "closed"


HOLDS_SLOT = frozenset({RunState.RESERVED, RunState.RUNNING})
"""States in which something of the run may still be executing."""

OPEN = HOLDS_SLOT | {RunState.SETTLING}
"""States in which the run holds its task."""


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    BLOCKED = "blocked"
    RETRY = "retry"
    LOST = "lost"
    TIMED_OUT = "timed_out"
    KILLED = "killed"
    NEVER_STARTED = "never_started"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


COUNTED_AS_ATTEMPT = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.FAILED,
        Outcome.BLOCKED,
        Outcome.LOST,
        Outcome.TIMED_OUT,
        Outcome.KILLED,
        Outcome.UNKNOWN,
    }
)


class Proof(StrEnum):
    """Why a slot could be freed."""

    EXIT_RECORDED = "exit_recorded"
    RESULT_WRITTEN = "result_written"
    PROCESS_GONE = "process_gone"
    NEVER_STARTED = "never_started"
    BOOT_CHANGED = "boot_changed"
    LEASE_EXPIRED = "lease_expired"
    NEVER_SUBMITTED = "never_submitted"
    PROVIDER_ANSWERED = "provider_answered"
    DEADLINE_PASSED = "deadline_passed"
    RESOLVED = "resolved"


class Transition(NamedTuple):
    event: str
    before: RunState | None
    after: RunState


TRANSITIONS: tuple[Transition, ...] = (
    Transition("run.reserved", None, RunState.RESERVED),
    Transition("run.started", RunState.RESERVED, RunState.RUNNING),
    Transition("run.submitting", RunState.RESERVED, RunState.RUNNING),
    Transition("run.submitting", RunState.RUNNING, RunState.RUNNING),
    Transition("run.submitted", RunState.RUNNING, RunState.RUNNING),
    Transition("run.in_doubt", RunState.RUNNING, RunState.RUNNING),
    Transition("run.executor_seen", RunState.RUNNING, RunState.RUNNING),
    Transition("run.adopted", RunState.RESERVED, RunState.RUNNING),
    Transition("run.adopted", RunState.RUNNING, RunState.RUNNING),
    Transition("run.stop_requested", RunState.RESERVED, RunState.RESERVED),
    Transition("run.stop_requested", RunState.RUNNING, RunState.RUNNING),
    Transition("run.signalled", RunState.RESERVED, RunState.RESERVED),
    Transition("run.signalled", RunState.RUNNING, RunState.RUNNING),
    Transition("run.settled", RunState.RESERVED, RunState.SETTLING),
    Transition("run.settled", RunState.RUNNING, RunState.SETTLING),
    Transition("run.finish_taken_over", RunState.SETTLING, RunState.SETTLING),
    Transition("run.closed", RunState.SETTLING, RunState.CLOSED),
    # Of one whose outcome is unknown, by a person: see settlement.py.
    Transition("run.resolved", RunState.CLOSED, RunState.SETTLING),
)
"""Every change of a run that exists. A write that is not in this table is a defect."""


@dataclass(frozen=True, slots=True)
class Task:
    """An item of a board. Times are wall-clock milliseconds since the epoch.

    ``depth``: how many follow-ups lead to it from the first task of its lineage, which has 0.
    """

    task_id: str
    title: str
    kind: str
    body: str
    state: TaskState
    priority: Priority
    backend: str | None
    attempts: int
    retries: int
    interruptions: int
    parent: str | None
    depth: int
    reason: str | None
    not_before: int | None
    created_at: int
    updated_at: int

    @property
    def urgency(self) -> int:
        return urgency_of(self.priority, self.created_at)

    @property
    def prompt(self) -> str:
        return f"{self.title}\n\n{self.body}" if self.body else self.title


class Attempts(msgspec.Struct, frozen=True, gc=False):
    """What the ledger remembers of a task between its runs.

    It backs off from ``since`` until ``not_before`` (wall-clock ms). ``interruptions``: runs that were ended by
    somebody or something else, which no attempt counts.
    """

    attempts: int = 0
    retries: int = 0
    not_before: int | None = None
    since: int | None = None
    interruptions: int = 0

    def backs_off_until(self, now: int) -> int | None:
        """None when it does not back off, or when the clock was set back to before it began."""
        if self.not_before is None or self.not_before <= now or (self.since is not None and self.since > now):
            return None
        return self.not_before


class FollowUp(msgspec.Struct, frozen=True, gc=False):
    """A task that follows another. Without a title it has the other's title and body; without a kind, the other's."""

    title: str | None
    kind: str | None = None
    body: str = ""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """What the board is to be told about a task when its run has settled.

    ``max_follow_ups``: how many follow-ups may lead from the first task of a lineage to its last; None is no limit.
    """

    state: TaskState
    reason: str | None = None
    follow_ups: tuple[FollowUp, ...] = ()
    max_follow_ups: int | None = None


def in_one_reason(*parts: str | None) -> str | None:
    """Join what there is to say; None where there is nothing."""
    return "; ".join(part for part in parts if part) or None


class Run(msgspec.Struct, frozen=True, gc=False):
    """One attempt at a task: a row of the ledger.

    ``…_at`` are wall-clock milliseconds; ``…_mono`` are CLOCK_MONOTONIC milliseconds, valid only while
    ``boot_id`` is the host's; ``grace_ms`` is the time between TERM and KILL.

    ``kind`` is None for a command and ``http_job`` for a provider run. Of such a one ``submitting_…`` is when its last
    submission began, ``provider_job_id`` comes from the answer, and ``doubt`` says why nobody here can know whether
    there is a job.

    ``executor_…`` led a session below the keeper, as the kernel said while that lived. ``idle_timeout_ms`` and
    ``max_output`` (bytes) are the backend's when the run was admitted.
    """

    run_id: str
    task_id: str
    role: str
    backend: str
    attempt: int
    fence: int
    holder: int
    state: RunState
    host_id: str
    boot_id: str
    pid_namespace: int
    host: str
    watcher_pid: int
    watcher_ticks: int
    reserved_at: int
    reserved_mono: int
    grace_ms: int
    keeper_pid: int | None = None
    keeper_ticks: int | None = None
    cgroup: str | None = None
    provider_job_id: str | None = None
    release: str | None = None
    started_at: int | None = None
    deadline_at: int | None = None
    deadline_mono: int | None = None
    stop_outcome: Outcome | None = None
    stop_reason: str | None = None
    stop_then: TaskState | None = None
    kill_mono: int | None = None
    signalled_at: int | None = None
    termed_at: int | None = None
    outcome: Outcome | None = None
    proof: Proof | None = None
    exit_code: int | None = None
    reason: str | None = None
    finish: Finish | None = None
    settled_at: int | None = None
    settled_mono: int | None = None
    closed_at: int | None = None
    kind: str | None = None
    submitting_at: int | None = None
    submitting_mono: int | None = None
    doubt: str | None = None
    executor_pid: int | None = None
    executor_ticks: int | None = None
    idle_timeout_ms: int | None = None
    max_output: int | None = None

    @property
    def is_job(self) -> bool:
        return self.kind is not None

    def is_late(self, monotonic: int, by_ms: int = 0) -> bool:
        """Whether its deadline is over, for more than ``by_ms``; on the boot that it runs on, whatever clocks show."""
        return self.deadline_mono is not None and monotonic > self.deadline_mono + by_ms

    @property
    def watcher(self) -> Process:
        return Process(self.watcher_pid, self.watcher_ticks)

    @property
    def keeper(self) -> Process | None:
        if self.keeper_pid is None or self.keeper_ticks is None:
            return None
        return Process(self.keeper_pid, self.keeper_ticks)

    @property
    def executor(self) -> Process | None:
        if self.executor_pid is None or self.executor_ticks is None:
            return None
        return Process(self.executor_pid, self.executor_ticks)


class JobMemory(msgspec.Struct, frozen=True):
    """What was last heard of a provider's job. Times in wall-clock ms; ``failures``: asks in a row without an answer.

    ``urls`` are where the provider wants to be asked; they are shown nowhere. ``ask_at``: not to be asked before.
    """

    urls: Mapping[str, str]
    heard_at: int
    word: str | None = None
    progress: float | None = None
    failures: int = 0
    trouble: str | None = None
    ask_at: int | None = None


class Health(msgspec.Struct, frozen=True):
    """Whether a backend takes anything. ``failures`` in a row; ``reason`` of the last; ``since`` when it is from."""

    failures: int
    since: int
    cooldown_until: int | None = None
    broken_until: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log. ``data`` holds the changed columns of the subject, enough to fold them again."""

    seq: int
    at: int
    kind: str
    run_id: str | None
    task_id: str | None
    data: dict[str, Any]
