"""Reconciliation: gather → judge → plan → apply. The only place that decides which open run is an orphan.

    find_orphaned_in_flight          what would be done, on a snapshot; changes nothing
    clear_orphaned_in_flight         the same, done
    reconcile_in_flight_on_startup   the same for a watcher that starts: serialised, bounded, never raises

Used by the watcher's start, the watchdog, admission before it refuses for a full backend, and the CLI.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from operations_center.boards import Board
from operations_center.errors import BoardUnreachable, OperationsCenterError
from operations_center.in_flight_reconcile.apply import apply_actions
from operations_center.in_flight_reconcile.escalation import request_stop
from operations_center.in_flight_reconcile.evidence import Executing, Gathered, gather_evidence, look_for_executors
from operations_center.in_flight_reconcile.facts import Evidence, Sighting, Verdict
from operations_center.in_flight_reconcile.orphans import RESERVATION_YOUNG_MS, Judgement, judge
from operations_center.in_flight_reconcile.plan import Action, Deed, StopOrder, plan_actions
from operations_center.in_flight_reconcile.report import (
    Mode,
    Report,
    Skipped,
    Trigger,
    count_verdicts,
    report_job,
    with_done,
    would_apply,
)
from operations_center.in_flight_reconcile.surroundings import BY_TIMER, Asking, Scope, Surroundings
from operations_center.keeper.inspect import read_exit, read_gate
from operations_center.keeper.processes import proven_keeper
from operations_center.locks import lock_within
from operations_center.model import Run, RunState, TaskState

__all__ = [
    "Asking",
    "Deed",
    "Evidence",
    "Executing",
    "Judgement",
    "Mode",
    "Report",
    "Scope",
    "Sighting",
    "StopOrder",
    "Surroundings",
    "Trigger",
    "Verdict",
    "adopt_own_runs",
    "clear_orphaned_in_flight",
    "explain_run",
    "find_orphaned_in_flight",
    "look_for_executors",
    "may_be_orphaned",
    "needs_attention",
    "reconcile_in_flight_on_startup",
    "request_stop",
]

LOCK_WITHIN_S = 2.0
STARTUP_BUDGET_S = 3.5
"""Of the five seconds within which a watcher comes up, whatever fails."""

_WAKES_ADOPTERS = frozenset({Trigger.WATCHDOG, Trigger.CLI})
"""A watcher that woke everybody, itself included, for a run that it cannot adopt would never sleep again."""

_FOR_ADOPTERS = frozenset({Verdict.ADOPT, Verdict.RESUBMIT, Verdict.ASK_PROVIDER})

ASKING = {
    Trigger.CLI: Asking(by_person=True),
    Trigger.HTTP: Asking(by_person=True),
    Trigger.WATCHDOG: BY_TIMER,
}
"""Who may ask a provider about a job that nobody polls. A watcher adopts its job, and polls it."""

_log = logging.getLogger(__name__)


def find_orphaned_in_flight(
    surroundings: Surroundings, *, trigger: Trigger, scope: Scope | None = None, asking: Asking | None = None
) -> Report:
    """What a reconciliation would do now; no provider is asked. Raises LedgerBusy."""
    begun = time.monotonic()
    asking = asking or ASKING.get(trigger)
    with surroundings.ledger.snapshot():
        gathered = gather_evidence(surroundings, scope or Scope(), asking)
    judgements = judge(gathered.evidence)
    actions = _within_reach(plan_actions(judgements, gathered.stale), adopt_role=None)
    report = _report(surroundings, trigger, Mode.DRY_RUN, gathered, judgements, asking)
    return _timed(report, begun, actions=would_apply(actions))


def clear_orphaned_in_flight(
    surroundings: Surroundings,
    *,
    trigger: Trigger,
    scope: Scope | None = None,
    adopt_role: str | None = None,
    budget_s: float | None = None,
    asking: Asking | None = None,
) -> Report:
    """One reconciliation. Raises LedgerBusy when the ledger cannot be read.

    ``adopt_role``: take over live runs of that role; others are left to a watcher of theirs, which is woken.
    ``asking``: which jobs providers may be asked about; by default what the trigger allows.
    """
    begun = time.monotonic()
    deadline = begun + budget_s if budget_s is not None else None
    asking = asking or ASKING.get(trigger)
    gathered = gather_evidence(surroundings, scope or Scope(), asking)
    judgements = judge(gathered.evidence)
    actions = _within_reach(plan_actions(judgements, gathered.stale), adopt_role)
    done = apply_actions(surroundings, actions, trigger, lambda: deadline is not None and time.monotonic() > deadline)
    report = with_done(_report(surroundings, trigger, Mode.APPLY, gathered, judgements, asking), done)
    report = _timed(report, begun, skipped=Skipped.BUDGET if len(done) < len(actions) else report.skipped)
    _remember(surroundings, report)
    if trigger in _WAKES_ADOPTERS and any(judgement.verdict in _FOR_ADOPTERS for judgement in judgements):
        surroundings.wake_everybody()
    return report


def reconcile_in_flight_on_startup(
    surroundings: Surroundings, *, role: str, budget_s: float = STARTUP_BUDGET_S
) -> Report:
    """The sweep before a watcher's first claim. Best effort: whatever fails is in the report, nothing is raised."""
    begun = time.monotonic()
    empty = Report(Trigger.STARTUP, Mode.APPLY, surroundings.host.name, surroundings.clock.now().wall)
    try:
        with lock_within(surroundings.startup_lock, min(LOCK_WITHIN_S, budget_s)) as alone:
            left = budget_s - (time.monotonic() - begun)
            if not alone:
                report = _timed(empty, begun, skipped=Skipped.LOCK_HELD)
                _remember_skip(surroundings, report, left)
                return report
            with surroundings.ledger.within(left):
                return clear_orphaned_in_flight(surroundings, trigger=Trigger.STARTUP, adopt_role=role, budget_s=left)
    except Exception as error:
        _log.warning("start-up reconciliation failed: %s", error, exc_info=not isinstance(error, OperationsCenterError))
        return _timed(empty, begun, error=str(error) or type(error).__name__)


def adopt_own_runs(surroundings: Surroundings, role: str) -> list[Report]:
    """Look at every open run of a role that another watcher holds: adopt it if that one is dead."""
    return [
        clear_orphaned_in_flight(surroundings, trigger=Trigger.WATCHER, scope=Scope(run_id=run.run_id), adopt_role=role)
        for run in surroundings.ledger.open_runs(role=role)
        if run.watcher != surroundings.me and not surroundings.processes.is_alive(run.watcher)
    ]


def explain_run(surroundings: Surroundings, run_id: str) -> tuple[Judgement, Sequence[Action]] | None:
    """The judgement on one open run and what `reconcile` would do; None when it is not open."""
    with surroundings.ledger.snapshot():
        gathered = gather_evidence(surroundings, Scope(run_id=run_id), ASKING[Trigger.CLI])
    judgements = judge(gathered.evidence)
    return (judgements[0], plan_actions(judgements, ())) if judgements else None


def may_be_orphaned(surroundings: Surroundings, run: Run) -> bool:
    """A cheap look at one run, without the process table: is it worth gathering evidence?"""
    if run.state is RunState.SETTLING:
        return False
    if run.is_job:
        return not surroundings.processes.is_alive(run.watcher)
    directory = surroundings.directory_of(run.run_id)
    if run.keeper is not None:
        return not surroundings.processes.is_alive(run.keeper) or read_exit(directory) is not None
    if read_gate(directory).claimed is not None:
        keeper = proven_keeper(surroundings.processes, run.run_id, directory)
        return keeper is None or read_exit(directory) is not None
    age = surroundings.clock.now().monotonic - run.reserved_mono
    return not surroundings.processes.is_alive(run.watcher) or not 0 <= age < RESERVATION_YOUNG_MS


def needs_attention(surroundings: Surroundings, runs: Sequence[Run]) -> list[str]:
    """Which of a watcher's own runs are worth a full look now, without reading the process table.

    None of them is settling, or in doubt.
    """
    tasks = _states(surroundings.board, [run.task_id for run in runs])
    return [
        run.run_id
        for run in runs
        if (run.is_job and _job_needs_attention(surroundings, run, tasks.get(run.task_id)))
        or (not run.is_job and _program_needs_attention(surroundings, run, tasks.get(run.task_id)))
    ]


def _program_needs_attention(surroundings: Surroundings, run: Run, task: TaskState | None) -> bool:
    return (
        run.stop_outcome is not None
        or run.is_late(surroundings.clock.now().monotonic)
        or surroundings.silence.is_over(run)
        or task in (TaskState.CANCELLED, TaskState.DONE)
        or may_be_orphaned(surroundings, run)
    )


def _job_needs_attention(surroundings: Surroundings, run: Run, task: TaskState | None) -> bool:
    """Its poller looks after it; what may not be stored yet is that it is to stop."""
    not_wanted = run.is_late(surroundings.clock.now().monotonic) or task in (TaskState.CANCELLED, TaskState.DONE)
    return not_wanted and (run.provider_job_id is None or run.stop_outcome is None)


def _states(board: Board, task_ids: Sequence[str]) -> Mapping[str, TaskState | None]:
    """A board that does not answer must not keep a watcher from its runs."""
    try:
        return board.states(task_ids) if task_ids else {}
    except BoardUnreachable:
        return {}


def _within_reach(actions: Sequence[Action], adopt_role: str | None) -> list[Action]:
    return [
        action
        for action in actions
        if action.deed is not Deed.ADOPT or (action.run is not None and action.run.role == adopt_role)
    ]


def _report(
    surroundings: Surroundings,
    trigger: Trigger,
    mode: Mode,
    gathered: Gathered,
    judgements: Sequence[Judgement],
    asking: Asking | None,
) -> Report:
    return Report(
        trigger=trigger,
        mode=mode,
        host=surroundings.host.name,
        started_at=surroundings.clock.now().wall,
        verdicts=count_verdicts(judgements),
        scanned_count=len(gathered.evidence),
        violations=tuple(gathered.violations),
        skipped=Skipped.BOARD_UNREACHABLE if gathered.board_unreachable else None,
        min_age_ms=_min_age_ms(surroundings, asking),
        jobs=tuple(report_job(each) for each in gathered.evidence if each.job is not None and not each.settling),
    )


def _min_age_ms(surroundings: Surroundings, asking: Asking | None) -> int:
    """The least that counts for some backend; 0 where no provider may be asked anyway."""
    if asking is None or asking.by_person:
        return (asking.min_age_ms or 0) if asking is not None else 0
    if asking.min_age_ms is not None:
        return asking.min_age_ms
    return min((backend.min_age_ms for backend in surroundings.job_backends.values()), default=0)


def _timed(report: Report, begun: float, **changes: Any) -> Report:
    return replace(report, wall_ms=(time.monotonic() - begun) * 1000, **changes)


def _remember(surroundings: Surroundings, report: Report) -> None:
    """For ``status``. Admission asks often and is only worth a write when it did something."""
    if report.trigger is Trigger.WATCHER or (report.trigger is Trigger.ADMISSION and not report.applied):
        return
    surroundings.ledger.record_reconcile(replace(report, actions=()).as_json(), report.started_at)


def _remember_skip(surroundings: Surroundings, report: Report, within_s: float) -> None:
    """Best effort. Whoever holds the lock puts its own report in the place of this one; if it just has, that stays."""
    ledger = surroundings.ledger
    try:
        with ledger.within(within_s), ledger.transaction():
            last = ledger.reconciles().get(report.trigger)
            if last is None or last["at"] <= report.started_at:
                _remember(surroundings, report)
    except Exception as error:
        _log.warning("cannot remember that the start-up reconciliation was skipped: %s", error)
