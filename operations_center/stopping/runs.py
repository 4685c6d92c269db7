"""End a run, or every run. Nothing here decides how it ends: a stop is stored, and reconciliation is driven."""

import time
from collections.abc import Callable, Iterable, Sequence

from operations_center.errors import (
    LedgerHeld,
    LedgerUnwritable,
    NotFound,
    OperationsCenterError,
    Unavailable,
    Unrecorded,
)
from operations_center.fleet import survivors
from operations_center.in_flight_reconcile import Scope, StopOrder, request_stop
from operations_center.in_flight_reconcile.orphans import RESERVATION_YOUNG_MS
from operations_center.keeper.inspect import read_exit
from operations_center.model import HOLDS_SLOT, Outcome, Run, RunState, TaskState
from operations_center.stopping.ends import Passes, listed, wait_for_change
from operations_center.stopping.hindrances import Hindered, Hindrance, hindered_runs, refusal, without
from operations_center.stopping.last_resort import end_at_once, with_reserve
from operations_center.wiring import Center

DOWN_WITHIN_S = 60.0
BEYOND_GRACE_S = 10.0
"""What is left of a tree is killed after grace, and its keeper five seconds later; then reconciliation settles."""

TAKEN_OVER_WITHIN_S = 2.0
"""For a watcher that has just been woken, or started again, to take over what nobody looks after."""

DOWN_NOW = StopOrder(Outcome.STOPPED, "down --now", TaskState.READY)

KILLED_BEFORE_S = 2.0
"""The end of the time that a stop of ours has: for keepers to record the ends, and for us to settle them."""


def stop_run(center: Center, run_id: str, reason: str | None, *, wait: bool = True) -> Run:
    """End a run; its task becomes ``blocked``. The run as it is then; one that has ended already is left.

    Raises NotFound, and OperationsCenterError when it still lives after its grace and ten seconds, or at once where it
    cannot be ended from here. Where the ledger cannot be written it is ended by KILL, and Unrecorded is raised if that
    could not be recorded.
    """
    run = _known(center, run_id)
    order = StopOrder(Outcome.STOPPED, reason or "stopped by a person", TaskState.BLOCKED)
    return _end_or_kill(center, run, order, lambda: None, wait=wait)


def cancel_task(center: Center, task_id: str, *, wait: bool = True) -> Run | None:
    """Cancel a task and end its run; that run, None if it had none.

    Raises NotFound, and OperationsCenterError when the task is done or its run, as above, still lives.
    """
    if center.board.task(task_id) is None:
        raise NotFound(f"cannot cancel task {task_id}: there is no such task; see `operations-center task list`")
    run = next((run for run in center.ledger.open_runs() if run.task_id == task_id), None)
    if run is None:
        with_reserve(center, lambda: _cancel_on_board(center, task_id))
        # It may have begun to run in between.
        run = next((run for run in center.ledger.open_runs() if run.task_id == task_id), None)
        if run is None:
            return None
    order = StopOrder(Outcome.CANCELLED, "its task was cancelled", TaskState.CANCELLED)
    return _end_or_kill(center, run, order, lambda: _cancel_on_board(center, task_id), wait=wait)


def _cancel_on_board(center: Center, task_id: str) -> None:
    center.board.cancel(task_id)
    center.wake_everybody()


def our_stop(within_s: float) -> StopOrder:
    """Ask executors to end because all processes end with us, in so many seconds."""
    kill_within_s = max(within_s - KILLED_BEFORE_S, within_s / 2)
    return StopOrder(
        Outcome.STOPPED,
        "the whole fleet was stopped, and no executor can outlive it",
        TaskState.READY,
        round(kill_within_s * 1000),
    )


def end_open_runs(
    center: Center, within_s: float | None = None, order: StopOrder = DOWN_NOW
) -> tuple[Sequence[Hindered], str | None]:
    """End every open run of the ledger; their tasks become ready.

    Returns those that cannot be ended from here, and what could not be recorded: that the ledger cannot be written
    keeps nobody from ending what runs. Raises Unavailable when others are left.

    Without ``within_s``, the longest grace and ten seconds, at least a minute.
    """
    obstacle = center.obstacle
    if within_s is None:
        within_s = max([DOWN_WITHIN_S, *(_patience_s(run) for run in center.ledger.open_runs())])
    if obstacle is None:
        try:
            return _stop_open_runs(center, within_s, order), None
        except (LedgerUnwritable, LedgerHeld) as error:
            obstacle = error.obstacle
    return (), _kill_open_runs(center, order, obstacle, time.monotonic() + within_s)


def _stop_open_runs(center: Center, within_s: float, order: StopOrder) -> Sequence[Hindered]:
    until = time.monotonic() + within_s
    # First without a stop: what has ended by itself is settled as that.
    Passes(center, Scope()).reconcile()
    passes = Passes(center, Scope())
    while True:
        is_late = time.monotonic() > until
        for run in undoubted(center.ledger.open_runs()):
            _store_stop(center, run, order)
        passes.reconcile()
        hindered = hindered_runs(center, Scope())
        left = without(center.ledger.open_runs(), hindered)
        if not left:
            return hindered
        if is_late:
            raise Unavailable(f"cannot end {listed(left)} within {within_s:.0f} s; each has a stop stored, try again")
        wait_for_change(center, left, until)


def _kill_open_runs(center: Center, order: StopOrder, obstacle: str, until: float) -> str | None:
    def record() -> None:
        with center.ledger.transaction():
            for run in undoubted(center.ledger.open_runs()):
                _store_stop(center, run, order)

    return end_at_once(center, Scope(), record, obstacle, until)


def _end_or_kill(center: Center, run: Run, order: StopOrder, first: Callable[[], None], *, wait: bool) -> Run:
    """End a run after something that is written first; where that cannot be written, by KILL."""
    obstacle = center.obstacle
    if obstacle is None:
        try:
            first()
            return _end_run(center, run, order, wait=wait)
        except (LedgerUnwritable, LedgerHeld) as error:
            obstacle = error.obstacle

    def record() -> None:
        with center.ledger.transaction():
            first()
            _store_stop(center, center.ledger.run(run.run_id) or run, order)

    unrecorded = end_at_once(center, Scope(run_id=run.run_id), record, obstacle, time.monotonic() + _patience_s(run))
    if unrecorded is not None:
        raise Unrecorded(unrecorded)
    return center.ledger.run(run.run_id) or run


def undoubted(runs: Iterable[Run]) -> list[Run]:
    """Without those that wait for a person: nothing can be done to end them."""
    return [run for run in runs if run.doubt is None]


def _known(center: Center, run_id: str) -> Run:
    run = center.ledger.run(run_id)
    if run is None:
        raise NotFound(f"cannot stop run {run_id}: there is no such run; see `operations-center runs`")
    return run


def _end_run(center: Center, run: Run, order: StopOrder, *, wait: bool) -> Run:
    """Until it is closed; without ``wait``, until the stop is stored and reconciliation will carry it out."""
    until = time.monotonic() + _patience_s(run)
    hindered_until = time.monotonic() + TAKEN_OVER_WITHIN_S
    passes = Passes(center, Scope(run_id=run.run_id))
    while run.state is not RunState.CLOSED:
        # Before the look: however long this process stands still after it, what was seen is not judged by that.
        now = time.monotonic()
        _refuse_doubt(run)
        run = _begin_to_end(center, passes, run, order)
        if run.state is RunState.CLOSED or (not wait and run.stop_reason is not None):
            break
        hindered = _hindered(center, run)
        if hindered is None or _may_be_taken_over(center, hindered):
            hindered_until = time.monotonic() + TAKEN_OVER_WITHIN_S
        elif not _may_pass(hindered) or now > hindered_until:
            raise OperationsCenterError(refusal(hindered))
        if now > until:
            raise OperationsCenterError(refusal(hindered) if hindered else _still_alive(center, run))
        wait_for_change(center, [run], until)
    return run


def _refuse_doubt(run: Run) -> None:
    """Before a stop is stored: what a person says of it decides."""
    if run.doubt is not None and run.state in HOLDS_SLOT:
        raise OperationsCenterError(refusal(Hindered(run, Hindrance.DOUBT)))


def _hindered(center: Center, run: Run) -> Hindered | None:
    found = hindered_runs(center, Scope(run_id=run.run_id)) if run.is_job else []
    return found[0] if found else None


def _may_be_taken_over(center: Center, hindered: Hindered) -> bool:
    """By a watcher of its role, which lives and has been woken."""
    watched = {member.name for member in survivors(center.state)}
    return hindered.hindrance is Hindrance.UNANSWERED and hindered.run.role in watched


def _may_pass(hindered: Hindered) -> bool:
    """In a moment: a watcher may be about to start, or to hear that the job has ended."""
    return hindered.hindrance is Hindrance.UNANSWERED or hindered.polled


def _begin_to_end(center: Center, passes: Passes, run: Run, order: StopOrder) -> Run:
    """One pass: store the stop, let reconciliation do what is next; the run as it is then."""
    _store_stop(center, run, order)
    passes.reconcile()
    return center.ledger.run(run.run_id) or run


def _store_stop(center: Center, run: Run, order: StopOrder) -> None:
    """Somebody else's change in between is no matter: the next pass looks again."""
    if run.state not in HOLDS_SLOT or _rank(order.outcome, order.then) <= _rank(run.stop_outcome, run.stop_then):
        return
    if _has_ended_by_itself(center, run):
        return
    if request_stop(center.ledger, center.clock, run, order) is not None:
        center.wake_everybody()


def _rank(outcome: Outcome | None, then: TaskState | None) -> int:
    """A stop is replaced by a stronger one only: what the board decided, what a person decided, the others."""
    if outcome is None:
        return 0
    if outcome is Outcome.CANCELLED:
        return 3
    return 2 if outcome is Outcome.STOPPED and then is not TaskState.READY else 1


def _has_ended_by_itself(center: Center, run: Run) -> bool:
    """A stop that comes after the record must not change how the run ended, nor have its task run again."""
    return read_exit(center.state.run(run.run_id)) is not None


def _patience_s(run: Run) -> float:
    beginning_s = RESERVATION_YOUNG_MS / 1000 if run.state is RunState.RESERVED else 0.0
    return beginning_s + run.grace_ms / 1000 + BEYOND_GRACE_S


def _still_alive(center: Center, run: Run) -> str:
    if run.host_id != center.host.host_id or run.pid_namespace != center.host.pid_namespace:
        return f"cannot stop run {run.run_id} from here: it is on host {run.host}; run the command there"
    return (
        f"cannot stop run {run.run_id}: it is still {run.state} {_patience_s(run):.0f} s later; every reconciliation "
        f"goes on with it, see `operations-center explain {run.run_id}`"
    )
