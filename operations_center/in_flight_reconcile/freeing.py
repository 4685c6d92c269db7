"""Settle runs whose end is known, tell the board, and free their slots: as many at once as there are."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.in_flight_reconcile.evidence import cgroup_of, query_of
from operations_center.in_flight_reconcile.facts import Place, Sighting
from operations_center.in_flight_reconcile.plan import Action, Deed, run_of
from operations_center.in_flight_reconcile.report import ActionReport, Done
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import GateState, TreeQuery, find_trees, read_gate
from operations_center.keeper.launch import revoke
from operations_center.keeper.output import bound_ended
from operations_center.locks import is_locked
from operations_center.model import Proof, Run
from operations_center.settlement import Ended

BATCH = 1000
"""Runs that are freed in one transaction: one sync for all of them, and nobody else writes meanwhile."""

FREEING = frozenset({Deed.FREE, Deed.REVOKE_AND_FREE, Deed.REPLAY})

_log = logging.getLogger(__name__)


def batches(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """Slots first: what is to be settled, then what has settled already."""
    for wanted in ([Deed.FREE, Deed.REVOKE_AND_FREE], [Deed.REPLAY]):
        some = [action for action in actions if action.deed in wanted]
        for begin in range(0, len(some), BATCH):
            yield some[begin : begin + BATCH]


def free(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[ActionReport]:
    """Settle all, then tell the board of all, then close all: three syncs, however many runs."""
    barred = _close_gates(surroundings, [action for action in batch if _needs_gate(action)])
    unbarred = [action for action in batch if id(action) not in barred]
    return [*barred.values(), *settle_and_finish(surroundings, unbarred, trigger)]


def settle_and_finish(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[ActionReport]:
    """All of them, or one by one where one of them spoils it; their gates are closed."""
    try:
        settled = list(zip(batch, _settle(surroundings, batch, trigger), strict=True))
    except Unavailable as error:
        return [ActionReport(action, Done.ERROR, str(error)) for action in batch]
    except Exception as error:
        if len(batch) == 1:
            return [failed(batch[0], error)]
        # One run that cannot be settled must not keep the slots of the others.
        return [report for action in batch for report in settle_and_finish(surroundings, [action], trigger)]
    freed = [(action, run) for action, run in settled if run is not None]
    # Before they are closed: of a closed run nobody looks after what we leave behind.
    for action, run in freed:
        _remove_cgroup(action, run)
        _bound_output(surroundings, run)
    untold = _tell_board(surroundings, [run for _, run in freed])
    return [_freed(action, run, untold) for action, run in settled]


def _close_gates(surroundings: Surroundings, actions: Sequence[Action]) -> dict[int, ActionReport]:
    """Create the gates before slots are freed: after this no keeper can start anything for these runs.

    The reports of those that must not be freed, by the action's ``id``. Looked at once more: with the gate
    created, what lives on had passed another one, which was deleted.
    """
    barred = {}
    queries = []
    for action in actions:
        report = _close_gate(surroundings, action)
        if report is not None:
            barred[id(action)] = report
        elif action.proof is not Proof.LEASE_EXPIRED:
            queries.append(_query(surroundings, action))
    trees = find_trees(queries, surroundings.processes.scan)
    for action in actions:
        tree = trees.get(run_of(action).run_id)
        if id(action) not in barred and tree is not None and not tree.is_empty:
            barred[id(action)] = ActionReport(action, Done.LOST_RACE)
    return barred


def _close_gate(surroundings: Surroundings, action: Action) -> ActionReport | None:
    directory = surroundings.directory_of(run_of(action).run_id)
    try:
        won = revoke(Path(directory))
    except OSError as error:
        if _has_nowhere_to_start(action, directory):
            return None
        return ActionReport(action, Done.ERROR, f"cannot create the gate: {error}")
    # A keeper of another pid namespace that has passed it cannot be seen from here: its lock and its lease tell.
    silent = action.proof is Proof.LEASE_EXPIRED and not is_locked(f"{directory}/lock")
    return None if won or silent else ActionReport(action, Done.LOST_RACE)


def _has_nowhere_to_start(action: Action, directory: str) -> bool:
    """Whether its spawner is dead and has made no directory: a keeper ends where there is none.

    So the slot is free where there is no room for a gate.
    """
    seen = action.evidence
    here = seen is not None and seen.place is Place.HERE and seen.watcher is Sighting.GONE
    return here and not os.path.lexists(directory)


def _query(surroundings: Surroundings, action: Action) -> TreeQuery:
    run = run_of(action)
    return query_of(run, read_gate(surroundings.directory_of(run.run_id)))


def _needs_gate(action: Action) -> bool:
    """Whatever the verdict: as long as nobody has created the gate, a spawner that wakes up could."""
    seen = action.evidence
    undecided = seen is not None and seen.gate is GateState.ABSENT and seen.directory is Sighting.ALIVE
    elsewhere = action.proof is Proof.LEASE_EXPIRED
    return action.deed is Deed.REVOKE_AND_FREE or (action.deed is Deed.FREE and (undecided or elsewhere))


def _freed(action: Action, run: Run | None, untold: Mapping[str, str]) -> ActionReport:
    if run is None:
        return ActionReport(action, Done.LOST_RACE)
    error = untold.get(run.run_id)
    if error is None:
        return ActionReport(action, Done.APPLIED)
    return ActionReport(action, Done.ERROR if action.deed is Deed.REPLAY else Done.APPLIED, error)


def _settle(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[Run | None]:
    """A batch is settled or, if its runs have settled already, taken over; see ``batches``."""
    if batch[0].deed is Deed.REPLAY:
        return surroundings.settlement.take_over_all([run_of(action) for action in batch], surroundings.me)
    return surroundings.settlement.settle_all([_ended(action, trigger) for action in batch], surroundings.me)


def _ended(action: Action, trigger: str) -> Ended:
    assert action.ending is not None
    note = {"trigger": trigger, "rule": action.rule, "verdict": action.verdict, "evidence": action.reason}
    return Ended(run_of(action), action.ending, {**note, **action.note})


def _remove_cgroup(action: Action, run: Run) -> None:
    seen = action.evidence.seen if action.evidence is not None else None
    path = seen.query.cgroup if seen is not None else cgroup_of(run)
    if path is not None:
        cgroup.remove(path)


def _bound_output(surroundings: Surroundings, run: Run) -> None:
    if run.max_output is None:
        return
    try:
        bound_ended(Path(surroundings.directory_of(run.run_id)), run.max_output)
    except OSError as error:
        # Its middle stays a hole, which `logs` shows as well.
        _log.warning("cannot shorten the output of run %s: %s", run.run_id, error)


def _tell_board(surroundings: Surroundings, settled: Sequence[Run]) -> dict[str, str]:
    """Why the board could not be told, by run: those stay settling and are told of later."""
    if not settled:
        return {}
    try:
        surroundings.settlement.finish_and_close(settled)
    except Unavailable as error:
        return {run.run_id: str(error) for run in settled}
    except Exception as error:
        if len(settled) == 1:
            _log.error("cannot finish run %s: %s", settled[0].run_id, error)
            return {settled[0].run_id: str(error) or type(error).__name__}
        return {run_id: why for run in settled for run_id, why in _tell_board(surroundings, [run]).items()}
    finally:
        surroundings.wake_everybody()
    return {}


def failed(action: Action, error: Exception) -> ActionReport:
    """Of a deed that raised; what nobody expected is logged with its stack."""
    run_id = action.run.run_id if action.run else action.task_id
    expected = isinstance(error, OperationsCenterError | OSError)
    _log.error("cannot reconcile %s: %s", run_id, error, exc_info=not expected)
    return ActionReport(action, Done.ERROR, str(error) or type(error).__name__)
