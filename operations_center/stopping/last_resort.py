"""End runs where the ledger cannot be written: ending comes first, and what is lost of the record is told.

    suspend the trees → give the reserve back → record why → KILL → let reconciliation go on from there

The trees are suspended first, for an executor that has filled the disk would take the reserve as well. No TERM is sent:
an executor that went on would do the same, and one that ended well on it would be taken for one that has done its work.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from operations_center.errors import LedgerUnwritable, Unavailable
from operations_center.in_flight_reconcile import Scope
from operations_center.in_flight_reconcile.evidence import gather_evidence
from operations_center.keeper.inspect import Tree, tree_of
from operations_center.keeper.processes import Processes
from operations_center.keeper.stop import kill, signal_processes, wake
from operations_center.locks import processes_holding
from operations_center.model import Run
from operations_center.pidfds import wait_for_end
from operations_center.stopping.ends import Passes, listed, wait_for_change
from operations_center.store.reserve import Reserve
from operations_center.store.turnstile import locks_of
from operations_center.wiring import Center

SETTLED_WITHIN_S = 5.0
"""For the keepers to record the ends, and for reconciliation to settle them."""

SUSPENDED_WITHIN_S = 1.0


def end_at_once(center: Center, scope: Scope, record: Callable[[], None], obstacle: str, until: float) -> str | None:
    """KILL what lives of a scope's runs on this host; what of it could not be recorded, None where all was.

    ``record`` writes why they end, in one transaction; ``obstacle`` is what has kept the ledger from being written.
    Raises Unavailable when something is left at the monotonic time ``until``.
    """
    trees = _living_trees(center, scope)
    with _suspended(trees, center.processes):
        _end_who_holds_the_ledger(center, trees)
        recorded = _record(center, record)
        for _run, tree in trees:
            kill(tree, center.processes)
    _wait_until_gone(trees, until)
    killed = [run for run, _ in trees]
    if recorded and _settle(center, scope, until):
        return None
    return _what_is_lost(center, scope, killed, obstacle, recorded=recorded)


def with_reserve(center: Center, write: Callable[[], None]) -> None:
    """Write, at the cost of the reserve if need be. Raises LedgerUnwritable."""
    if center.obstacle is not None:
        raise LedgerUnwritable(center.state.ledger, center.obstacle)
    Reserve(center.state.reserve).spend_on(write)


def _living_trees(center: Center, scope: Scope) -> list[tuple[Run, Tree]]:
    with center.ledger.snapshot():
        gathered = gather_evidence(center.surroundings, scope)
    return [(each.run, each.seen) for each in gathered.evidence if each.seen is not None and each.seen.members]


@contextmanager
def _suspended(trees: Sequence[tuple[Run, Tree]], processes: Processes) -> Iterator[None]:
    """What is still alive afterwards goes on: whoever is interrupted in between leaves nothing that stands still."""
    try:
        for _, tree in trees:
            _suspend(tree, processes)
        yield
    finally:
        for _, tree in trees:
            wake(tree, processes)


def _suspend(tree: Tree, processes: Processes) -> None:
    """Until no new process shows up; the keeper, which records the exit, is not among them."""
    deadline = time.monotonic() + SUSPENDED_WITHIN_S
    known: set[object] = set()
    while (new := set(tree.members) - known) and time.monotonic() < deadline:
        signal_processes(new, signal.SIGSTOP, processes)
        known |= new
        tree = tree_of(processes.scan(), tree.query)


def _end_who_holds_the_ledger(center: Center, trees: Sequence[tuple[Run, Tree]]) -> None:
    """KILL members that hold its locks, and with that keep everybody from writing.

    Their keepers are suspended: they record the end when it is known why it came.
    """
    holders = {pid for path in locks_of(center.state.ledger) for pid in processes_holding(path)}
    for _, tree in trees:
        found = [member for member in tree.members if member.pid in holders]
        if found and tree.keeper is not None:
            signal_processes([tree.keeper], signal.SIGSTOP, center.processes)
        signal_processes(found, signal.SIGKILL, center.processes)


def _record(center: Center, record: Callable[[], None]) -> bool:
    try:
        with_reserve(center, record)
    except (LedgerUnwritable, Unavailable):
        return False
    return True


def _wait_until_gone(trees: Sequence[tuple[Run, Tree]], until: float) -> None:
    left = wait_for_end([process for _, tree in trees for process in tree.members], until)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise Unavailable(f"cannot end executors in time: left are processes {pids}; try again")


def _settle(center: Center, scope: Scope, until: float) -> bool:
    """Drive reconciliation until all are closed; False where the ledger cannot be written again, or something waits."""
    passes, until = Passes(center, scope), min(until, time.monotonic() + SETTLED_WITHIN_S)
    with suppress(LedgerUnwritable, Unavailable):
        while True:
            is_late = time.monotonic() > until
            with_reserve(center, passes.reconcile)
            left = _open_runs(center, scope)
            if not left or is_late:
                return not left
            wait_for_change(center, left, until)
    return False


def _open_runs(center: Center, scope: Scope) -> list[Run]:
    return [run for run in center.ledger.open_runs() if scope.run_id in (None, run.run_id)]


def _what_is_lost(center: Center, scope: Scope, killed: Sequence[Run], obstacle: str, *, recorded: bool) -> str | None:
    why = f"{center.state.root}: {obstacle}"
    if killed and not recorded:
        return (
            f"cannot record why {listed(killed)} ended by KILL: {why}; the ends are settled when that is possible, and "
            "the tasks may run again then"
        )
    left = _open_runs(center, scope)
    if not left:
        return None
    stored = ", and the stop is stored" if recorded else ""
    return (
        f"cannot record the end of {listed(left)}: {why}; nothing of it is alive{stored}, and it is settled when there "
        "is a way to"
    )
