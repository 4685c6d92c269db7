"""What is known about an open run when it is judged. Values only: no reading, no deciding.

Evidence has three values: what could not be read is neither alive nor gone.
"""

from enum import Enum, StrEnum

import msgspec

from operations_center.clock import Now
from operations_center.keeper.inspect import ExitRecord, GateState, Tree, UnreadableExit
from operations_center.keeper.result import Result, UnreadableResult
from operations_center.model import JobMemory, Run, RunState, TaskState


class Sighting(Enum):
    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Place(Enum):
    """Where a run was admitted, as seen from here."""

    HERE = "this host and boot"
    OTHER_BOOT = "another boot of this host"
    ELSEWHERE = "another host or pid namespace"


class LeaseState(Enum):
    NONE = "no lease known"
    VALID = "valid"
    EXPIRING = "expired, but its host may still be ending its executors"
    EXPIRED = "expired past kill time and margin"
    CLASH = "renewed by another boot"


class JobFacts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a provider run beside the run itself. Durations in milliseconds.

    ``may_ask``: the provider may be asked out of turn now, by this caller.
    ``may_submit_again``: its backend takes it twice, and its role has watchers to do it. ``submit_timeout_ms`` is its
    backend's; a backend that is gone may nothing.
    ``heard_ms`` is how long ago its provider was last heard of it, ``memory`` what was heard. ``min_age_ms`` is its
    backend's; ``is_eligible``: a timer may ask about it now, if nobody polls it.
    """

    may_ask: bool = False
    may_submit_again: bool = False
    submit_timeout_ms: int = 0
    heard_ms: int = 0
    min_age_ms: int = 0
    is_eligible: bool = False
    memory: JobMemory | None = None


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """Everything that a judgement may look at. Durations in milliseconds.

    ``executor`` stands for every process of the tree but the keeper, ``seen`` are the processes themselves, for
    whoever has to end them; ``childless_ms`` is how long the keeper has been seen without any of them,
    ``exit_age_ms`` how old the exit record is, ``silent_ms`` how long it has been seen to print nothing; ``output``
    whether an executor has ever had its output opened; ``result`` and ``timed_out`` are read when there is an end that
    they could explain; ``restored``: the ledger was restored from a backup since the run was reserved; ``task`` is None
    when the board was not read or does not know the task.
    """

    run: Run
    now: Now
    place: Place
    watcher: Sighting
    lease: LeaseState = LeaseState.NONE
    gate: GateState = GateState.UNREADABLE
    keeper: Sighting = Sighting.UNKNOWN
    executor: Sighting = Sighting.UNKNOWN
    seen: Tree | None = None
    lock_held: bool = False
    output: bool = False
    directory: Sighting = Sighting.UNKNOWN
    exit_record: ExitRecord | UnreadableExit | None = None
    result: Result | UnreadableResult | None = None
    timed_out: str | None = None
    restored: bool = False
    task: TaskState | None = None
    childless_ms: int = 0
    silent_ms: int = 0
    exit_age_ms: int = 0
    job: JobFacts | None = None

    @property
    def settling(self) -> bool:
        return self.run.state is RunState.SETTLING

    @property
    def tree(self) -> Sighting:
        """Keeper, executor and every descendant. A lock that is held by nobody visible makes it unknown."""
        keeper, executor = self.keeper, self.executor
        if keeper is Sighting.ALIVE or executor is Sighting.ALIVE:
            return Sighting.ALIVE
        if keeper is Sighting.GONE and executor is Sighting.GONE and not self.lock_held:
            return Sighting.GONE
        return Sighting.UNKNOWN

    @property
    def not_begun(self) -> bool:
        """No keeper has passed the gate. A gate or a directory deleted under a live tree says nothing of that."""
        if self.gate in (GateState.KEEPER, GateState.UNREADABLE) or self.output or self.run.keeper is not None:
            return False
        if self.gate is GateState.REVOKED:
            # A keeper that lost the gate is gone in a moment; what lives on has begun all the same.
            return self.seen is None or self.seen.is_empty
        return self.directory is Sighting.ALIVE or self.seen is None or self.seen.is_empty

    @property
    def reserved_ms(self) -> int:
        return self.now.monotonic - self.run.reserved_mono

    @property
    def settled_ms(self) -> int:
        return self.now.monotonic - (self.run.settled_mono or 0)

    @property
    def past_deadline(self) -> bool:
        return self.run.is_late(self.now.monotonic)

    @property
    def past_idle_timeout(self) -> bool:
        return self.run.idle_timeout_ms is not None and self.silent_ms >= self.run.idle_timeout_ms

    @property
    def poller(self) -> Sighting:
        """The watcher that polls a provider run, or was about to submit it; dead with its boot, and past its lease."""
        if self.place is Place.HERE:
            return self.watcher
        if self.place is Place.OTHER_BOOT or self.lease in (LeaseState.EXPIRED, LeaseState.NONE):
            return Sighting.GONE
        return Sighting.ALIVE if self.lease is LeaseState.VALID else Sighting.UNKNOWN

    @property
    def submitting_ms(self) -> int:
        return self.now.monotonic - (self.run.submitting_mono or 0)

    @property
    def overdue(self) -> bool:
        """Of a job, whose deadline outlives a boot."""
        return self._is_late_by(0)

    @property
    def past_grace(self) -> bool:
        """Of a job: overdue for so long that its cancellation has had its time."""
        return self._is_late_by(self.run.grace_ms)

    def _is_late_by(self, milliseconds: int) -> bool:
        """By the wall clock where the monotonic one says nothing.

        After a reboot the wall clock may be wrong for a while: this boot has to have lasted as long as the run may.
        """
        if self.place is Place.HERE:
            return self.run.is_late(self.now.monotonic, milliseconds)
        if self.run.deadline_at is None or self.now.wall <= self.run.deadline_at + milliseconds:
            return False
        allowed_ms = self.run.deadline_at - self.run.reserved_at + milliseconds
        return self.place is not Place.OTHER_BOOT or self.now.monotonic > allowed_ms

    @property
    def not_wanted(self) -> bool:
        """Of a job: its run is to stop, is overdue, or its task was cancelled or is done."""
        return self.run.stop_outcome is not None or self.overdue or self.task in (TaskState.CANCELLED, TaskState.DONE)

    @property
    def exit_recorded(self) -> bool:
        return self.exit_record is not None

    @property
    def valid_result(self) -> bool:
        return isinstance(self.result, Result) and self.result.outcome is not None


class Verdict(StrEnum):
    KEEP = "keep"
    REPLAY = "replay"
    ORPHAN = "orphan"
    SUSPECT = "suspect"
    SETTLE = "settle"
    STOP = "stop"
    CANCEL = "cancel"
    REAP = "reap"
    ADOPT = "adopt"
    UNKNOWABLE = "unknowable"
    RESUBMIT = "resubmit"
    ASK_PROVIDER = "ask_provider"
