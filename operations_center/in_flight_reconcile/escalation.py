"""End a run's tree: store why, TERM, grace, KILL. Each pass goes on where the last one left off.

The reason and the time of the KILL are in the ledger before the first signal, so that whoever comes after a
death in between does the same, and so that the exit which follows is not taken for the run's own.
"""

from pathlib import Path

from operations_center.clock import Clock
from operations_center.in_flight_reconcile.facts import Evidence
from operations_center.in_flight_reconcile.plan import StopOrder
from operations_center.keeper.inspect import Tree, read_exit
from operations_center.keeper.processes import Processes
from operations_center.keeper.stop import kill, kill_keeper, terminate
from operations_center.ledger import Ledger
from operations_center.model import Run

TERM_WITHIN_MS = 1_000
"""Between the record of a signal and the signal itself."""

KEEPER_LAST_MS = 5_000
"""After the KILL of its tree a keeper has this long to record the exit before it is killed, too."""


def escalate(
    ledger: Ledger, clock: Clock, processes: Processes, evidence: Evidence, order: StopOrder, directory: Path | str
) -> Run | None:
    """The run as it is now; None when somebody else has changed it meanwhile. ``directory`` is the run's."""
    run = request_stop(ledger, clock, evidence.run, order)
    if run is None or evidence.seen is None:
        return run
    if run.signalled_at is None:
        # Recorded first: an exit is taken for the run's own as long as the ledger knows of no signal.
        signalled = ledger.change_run(run, "run.signalled", holder=run.holder + 1, signalled_at=clock.now().wall)
        if signalled is None:
            return None
        if not evidence.exit_recorded and read_exit(directory) is not None:
            # However long ago it was looked at: what it has recorded before a signal was sent is its own end.
            return ledger.change_run(signalled, "run.signalled", holder=signalled.holder + 1, signalled_at=None)
        return _terminate(ledger, clock, processes, signalled, evidence.seen)
    if run.termed_at is None and abs(clock.now().wall - run.signalled_at) > TERM_WITHIN_MS:
        # Whoever was about to send it has died.
        return _terminate(ledger, clock, processes, run, evidence.seen)
    if run.kill_mono is not None and clock.now().monotonic >= run.kill_mono:
        _kill(processes, evidence.seen, clock.now().monotonic - run.kill_mono)
    return run


def _terminate(ledger: Ledger, clock: Clock, processes: Processes, run: Run, tree: Tree) -> Run | None:
    terminate(tree, processes)
    return ledger.change_run(run, "run.signalled", holder=run.holder + 1, termed_at=clock.now().wall)


def request_stop(ledger: Ledger, clock: Clock, run: Run, order: StopOrder) -> Run | None:
    """Store a stop before anything is signalled; one that is stored already stays as it is."""
    if (run.stop_outcome, run.stop_reason) == (order.outcome, order.reason):
        return run
    return ledger.change_run(
        run,
        "run.stop_requested",
        holder=run.holder + 1,
        stop_outcome=order.outcome,
        stop_reason=order.reason,
        stop_then=order.then,
        kill_mono=_kill_at(run, order, clock.now().monotonic),
    )


def _kill_at(run: Run, order: StopOrder, now: int) -> int:
    kill_at = run.kill_mono if run.kill_mono is not None else now + run.grace_ms
    return kill_at if order.kill_within_ms is None else min(kill_at, now + order.kill_within_ms)


def _kill(processes: Processes, tree: Tree, overdue_ms: int) -> None:
    kill(tree, processes)
    if tree.keeper_alive and tree.keeper is not None and overdue_ms >= KEEPER_LAST_MS:
        kill_keeper(tree.keeper, processes)
