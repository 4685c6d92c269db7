"""All the reading: the board first, the open runs second, then the run directories and the process table.

In this order a run that ends while we read is at worst seen as still open, and the guard on the write that
follows finds out. Which tasks the board is asked for is read from the ledger beforehand: of a run that was
admitted since, nothing is known of its task, which stops nothing.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace

from operations_center.boards import Claim
from operations_center.clock import Now
from operations_center.errors import BoardUnreachable
from operations_center.identity import Host
from operations_center.in_flight_reconcile.facts import Evidence, JobFacts, LeaseState, Place, Sighting
from operations_center.in_flight_reconcile.job_facts import job_facts
from operations_center.in_flight_reconcile.plan import stale_claims
from operations_center.in_flight_reconcile.surroundings import Asking, Scope, Surroundings
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import (
    ExitRecord,
    Gate,
    GateState,
    ProcessTable,
    Tree,
    TreeQuery,
    find_trees,
    is_there,
    read_exit,
    read_gate,
    read_timed_out,
)
from operations_center.keeper.result import read_result
from operations_center.ledger import Lease, Ledger
from operations_center.locks import is_locked, lock_holder
from operations_center.model import HOLDS_SLOT, Run, RunState, TaskState
from operations_center.titles import described

_log = logging.getLogger(__name__)

LEASE_MARGIN_MS = 10_000
RECORD_OLD_MS = 60_000

SHELL_SIGNAL_BASE = 128
"""A shell's exit code for signal n is 128 + n (POSIX sh, 2.8.2)."""


@dataclass(frozen=True, slots=True)
class Gathered:
    evidence: list[Evidence]
    stale: list[Claim]
    violations: list[str]
    board_unreachable: bool


def gather_evidence(surroundings: Surroundings, scope: Scope, asking: Asking | None = None) -> Gathered:
    """Read everything that judging the open runs of a scope needs. Raises LedgerBusy, never for the board.

    Without ``asking`` no provider may be asked.
    """
    everything = scope == Scope()
    claims, tasks, unreachable = _read_board(surroundings, scope, with_claims=everything)
    runs = _open_runs(surroundings.ledger, scope)
    if everything:
        surroundings.silence.forget_all_but([run.run_id for run in runs])
    table = surroundings.processes.scan() if runs or everything else None
    evidence = _look_at(surroundings, runs, tasks, table, asking) if table else []
    return Gathered(
        evidence=evidence,
        stale=stale_claims(claims, runs) if everything else [],
        violations=_live_without_slot(surroundings.ledger, table, runs) if table and everything else [],
        board_unreachable=unreachable,
    )


@dataclass(frozen=True, slots=True)
class Executing:
    """Open runs of which a process lives here. ``unkept``: but not their keeper; ``unknown``: nobody can tell."""

    kept: Sequence[Run] = ()
    unkept: Sequence[Run] = ()
    unknown: Sequence[Run] = ()

    @property
    def count(self) -> int:
        return len(self.kept) + len(self.unkept)


def look_for_executors(surroundings: Surroundings) -> Executing:
    """Look at ledger and kernel only. Raises OperationsCenterError where the ledger cannot be read."""
    runs = [run for run in surroundings.ledger.open_runs() if run.state in HOLDS_SLOT and not run.is_job]
    if not runs:
        return Executing()
    evidence = _look_at(surroundings, runs, {}, surroundings.processes.scan(), None)
    alive = [seen for seen in evidence if seen.tree is Sighting.ALIVE]
    return Executing(
        kept=[seen.run for seen in alive if seen.keeper is Sighting.ALIVE],
        unkept=[seen.run for seen in alive if seen.keeper is not Sighting.ALIVE],
        unknown=[seen.run for seen in evidence if seen.tree is Sighting.UNKNOWN and not seen.not_begun],
    )


def _read_board(
    surroundings: Surroundings, scope: Scope, *, with_claims: bool
) -> tuple[Sequence[Claim], Mapping[str, TaskState | None], bool]:
    wanted = _tasks_with_slot(surroundings.ledger, scope)
    try:
        claims = surroundings.board.running() if with_claims else ()
        running = {claim.task_id: TaskState.RUNNING for claim in claims}
        others = [task_id for task_id in wanted if task_id not in running]
        return claims, {**running, **surroundings.board.states(others)} if others else running, False
    except BoardUnreachable:
        return (), {}, True


def _tasks_with_slot(ledger: Ledger, scope: Scope) -> list[str]:
    if scope.run_id is not None:
        return [run.task_id for run in _open_runs(ledger, scope) if run.state in HOLDS_SLOT]
    return ledger.tasks_with_slot(backend=scope.backend)


def _open_runs(ledger: Ledger, scope: Scope) -> list[Run]:
    if scope.run_id is not None:
        run = ledger.run(scope.run_id)
        return [run] if run is not None and run.state is not RunState.CLOSED else []
    return ledger.open_runs(backend=scope.backend)


def _look_at(
    surroundings: Surroundings,
    runs: Sequence[Run],
    tasks: Mapping[str, TaskState | None],
    table: ProcessTable,
    asking: Asking | None,
) -> list[Evidence]:
    """The gates are read before the process table, the records after it."""
    # Before they are read: a lease that is renewed while we are stopped in between must not look expired.
    leases_at = surroundings.clock.now()
    leases = surroundings.ledger.leases()
    watchers = {watcher: surroundings.processes.is_alive(watcher) for watcher in {run.watcher for run in runs}}
    looks = [_Look.at(surroundings, run) for run in runs]
    trees = _find_trees(surroundings, [look.query for look in looks if look.has_tree_here], table)
    now = surroundings.clock.now()
    jobs = job_facts(surroundings, [run for run in runs if run.is_job], asking, now)
    evidence = [
        look.evidence(
            now,
            job=jobs.get(look.run.run_id),
            watcher=Sighting.ALIVE if watchers[look.run.watcher] else Sighting.GONE,
            lease=leases.get((look.run.host_id, look.run.pid_namespace)),
            leases_at=leases_at,
            tree=trees.get(look.run.run_id),
            task=tasks.get(look.run.task_id),
        )
        for look in looks
    ]
    return [_with_gap_of_ledger(seen, surroundings.ledger) for seen in evidence]


def _with_gap_of_ledger(seen: Evidence, ledger: Ledger) -> Evidence:
    """Look whether the ledger may have forgotten a signal of ours, where one is what ended the run."""
    if not isinstance(seen.exit_record, ExitRecord) or seen.exit_record.code <= SHELL_SIGNAL_BASE:
        return seen
    return replace(seen, restored=ledger.restored_since(seen.run.reserved_at))


def _find_trees(surroundings: Surroundings, queries: Iterable[TreeQuery], table: ProcessTable) -> dict[str, Tree]:
    """The table that is there serves as the first of the passes."""
    tables = [table]
    return find_trees(queries, scan=lambda: tables.pop() if tables else surroundings.processes.scan())


_NO_GATE = Gate(GateState.ABSENT)


class _Look(msgspec.Struct, frozen=True, gc=False):
    """One run while it is looked at."""

    surroundings: Surroundings
    run: Run
    place: Place
    holds_slot: bool
    directory: str
    gate: Gate

    @classmethod
    def at(cls, surroundings: Surroundings, run: Run) -> Self:
        directory = surroundings.directory_of(run.run_id)
        place = _place(surroundings.host, run)
        gate = _NO_GATE if run.is_job else read_gate(directory)
        return cls(surroundings, run, place, run.state in HOLDS_SLOT, directory, gate)

    @property
    def has_tree_here(self) -> bool:
        return self.holds_slot and self.place is Place.HERE and not self.run.is_job

    @property
    def query(self) -> TreeQuery:
        return query_of(self.run, self.gate)

    def evidence(
        self,
        now: Now,
        *,
        watcher: Sighting,
        lease: Lease | None,
        leases_at: Now,
        tree: Tree | None,
        task: TaskState | None,
        job: JobFacts | None,
    ) -> Evidence:
        locked = self.holds_slot and not self.run.is_job and self._is_locked(tree)
        seen = Evidence(
            run=self.run,
            now=now,
            place=self.place,
            watcher=watcher if self.place is Place.HERE else Sighting.UNKNOWN,
            lease=self._lease_state(lease, leases_at, locked),
            lock_held=locked,
            task=task,
            job=job,
        )
        if not self.holds_slot or self.run.is_job:
            return seen
        return self._with_records(self._with_tree(seen, tree), now)

    def _is_locked(self, tree: Tree | None) -> bool:
        """Whether the run's lock tells that its keeper may live.

        It was given to the keeper alone. So it does not where the ledger knows the keeper and that is gone: whoever
        holds it has taken it to have the slot held, and may hide that from us.
        """
        path = Path(self.directory, "lock")
        if not is_locked(path):
            return False
        if tree is None or self.run.keeper is None or not tree.is_empty:
            return True
        _log.warning("%s holds %s and is no part of its run: that keeps no slot", described(lock_holder(path)), path)
        return False

    def _lease_state(self, lease: Lease | None, at: Now, locked: bool) -> LeaseState:
        here = self.surroundings.host.boot_id
        if self.place is Place.OTHER_BOOT:
            return LeaseState.CLASH if lease is not None and is_held_by_another(lease, here, at) else LeaseState.NONE
        if locked and self.run.boot_id == here:
            # Another pid namespace of this very kernel: the lock that its keeper holds is proof of life.
            return LeaseState.VALID
        if lease is None:
            return LeaseState.NONE
        over_ms = over_for_ms(lease, here, at)
        if over_ms < 0:
            return LeaseState.VALID
        return LeaseState.EXPIRED if over_ms > self.run.grace_ms + LEASE_MARGIN_MS else LeaseState.EXPIRING

    def _with_tree(self, seen: Evidence, tree: Tree | None) -> Evidence:
        if tree is None:
            return seen
        keeper = Sighting.ALIVE if tree.keeper_alive else Sighting.GONE
        if self.gate.state is GateState.UNREADABLE and tree.members:
            keeper = Sighting.UNKNOWN
        executor = Sighting.ALIVE if tree.members else Sighting.GONE
        if tree.populated and not tree.members and not tree.keeper_alive:
            executor = Sighting.UNKNOWN
        return replace(seen, gate=self.gate.state, keeper=keeper, executor=executor, seen=tree)

    def _with_records(self, seen: Evidence, now: Now) -> Evidence:
        exit_record = read_exit(self.directory)
        alive = seen.tree is Sighting.ALIVE
        output = is_there(f"{self.directory}/stdout")
        return replace(
            seen,
            output=output,
            directory=Sighting.ALIVE if output or os.access(self.directory, os.F_OK) else Sighting.GONE,
            exit_record=exit_record,
            exit_age_ms=_age_ms(f"{self.directory}/exit", now) if exit_record is not None else 0,
            result=None if alive else read_result(self.directory),
            timed_out=None if alive and exit_record is None else read_timed_out(self.directory),
            childless_ms=self._childless_ms(seen, now),
            silent_ms=self.surroundings.silence.of(self.run) if alive and exit_record is None else 0,
        )

    def _childless_ms(self, seen: Evidence, now: Now) -> int:
        memory = self.surroundings.childless_since
        if seen.keeper is Sighting.ALIVE and seen.executor is Sighting.GONE:
            return now.monotonic - memory.setdefault(self.run.run_id, now.monotonic)
        memory.pop(self.run.run_id, None)
        return 0


def over_for_ms(lease: Lease, here: str, at: Now) -> int:
    """Return how long a lease is over: in this boot by the clock that nobody sets, else by the wall clock."""
    if lease.boot_id == here and lease.renewed_mono is not None:
        return at.monotonic - lease.renewed_mono - (lease.lease_until - lease.renewed_at)
    return at.wall - lease.lease_until


def is_held_by_another(lease: Lease, here: str, at: Now) -> bool:
    """Whether another boot renews it. One that was renewed far in the future is of a clock that was set right since."""
    in_the_future = lease.renewed_at - at.wall > lease.lease_until - lease.renewed_at
    return lease.boot_id != here and at.wall < lease.lease_until and not in_the_future


def _place(here: Host, run: Run) -> Place:
    if run.host_id != here.host_id:
        return Place.ELSEWHERE
    if run.boot_id != here.boot_id:
        return Place.OTHER_BOOT
    return Place.HERE if run.pid_namespace == here.pid_namespace else Place.ELSEWHERE


def query_of(run: Run, gate: Gate) -> TreeQuery:
    """What is known of a run's tree: the ledger's word, and the gate's where the start is not recorded yet."""
    claimed = gate.claimed if run.keeper is None else None
    return TreeQuery(run.run_id, run.keeper, cgroup_of(run), executor=run.executor, claimed=claimed)


def cgroup_of(run: Run) -> Path | None:
    """Looked for where the start is not recorded yet, else as it was recorded: a run without one has none."""
    if run.cgroup is None and run.state is not RunState.RESERVED:
        return None
    return cgroup.of_run(run.run_id, run.cgroup)


def _age_ms(path: str, now: Now) -> int:
    """By the wall clock; a record out of the future was written before the clock was set back, so it is old."""
    try:
        age = now.wall - os.stat(path).st_mtime_ns // 1_000_000
    except OSError:
        return 0
    return age if age >= 0 else RECORD_OLD_MS


def _live_without_slot(ledger: Ledger, table: ProcessTable, open_runs: Sequence[Run]) -> list[str]:
    """The other half of I1: processes of a run that the ledger knows and that holds no slot."""
    holding = {run.run_id for run in open_runs if run.state in HOLDS_SLOT}
    found = []
    for run_id in sorted(table.run_ids - holding):
        run = ledger.run(run_id)
        pids = sorted(table.pids_of_run(run_id))
        if run is not None and run.state not in HOLDS_SLOT:
            found.append(f"processes {pids} of run {run_id} are alive, and it is {run.state}")
    return found
