"""One guarded write per action. Whoever was quicker wins; the other reports ``lost_race`` and changes nothing."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from operations_center.errors import OperationsCenterError
from operations_center.in_flight_reconcile.escalation import escalate
from operations_center.in_flight_reconcile.evidence import Surroundings
from operations_center.in_flight_reconcile.plan import Action, Deed
from operations_center.in_flight_reconcile.report import ActionReport, Done
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import read_cgroup
from operations_center.keeper.launch import revoke
from operations_center.model import Run, RunState

BATCH = 100
"""Runs that are freed in one transaction: one sync for all of them."""

HOLD_TASK_MS = 60_000


def apply(
    surroundings: Surroundings, actions: Sequence[Action], trigger: str, out_of_time: Callable[[], bool]
) -> list[ActionReport]:
    """Do what was planned; what the time did not suffice for is not in the answer."""
    freeing = [action for action in actions if action.deed in _FREEING]
    reports = []
    for batch in _batches(freeing):
        if out_of_time():
            break
        reports += _free(surroundings, batch, trigger)
    for action in actions:
        if action.deed in _FREEING:
            continue
        if out_of_time():
            break
        reports.append(_apply_one(surroundings, action))
    return reports


_FREEING = frozenset({Deed.FREE, Deed.REVOKE_AND_FREE, Deed.REPLAY})


def _batches(actions: Sequence[Action]) -> Iterator[list[Action]]:
    left = iter(actions)
    while batch := list(islice(left, BATCH)):
        yield batch


def _free(surroundings: Surroundings, batch: Sequence[Action], trigger: str) -> list[ActionReport]:
    """Settle all, then tell the board of all, then close all: three syncs, however many runs."""
    barred = {id(action): report for action in batch if (report := _barred(surroundings, action))}
    free = [action for action in batch if id(action) not in barred]
    try:
        with surroundings.ledger.transaction():
            settled = [(action, _settle(surroundings, action, trigger)) for action in free]
    except (OperationsCenterError, OSError) as error:
        return [*barred.values(), *(ActionReport(action, Done.ERROR, str(error)) for action in free)]
    freed = [run for _, run in settled if run is not None]
    for run in freed:
        _remove_cgroup(surroundings, run)
    told = _tell_board(surroundings, freed)
    return [*barred.values(), *(_freed(action, run, told) for action, run in settled)]


def _barred(surroundings: Surroundings, action: Action) -> ActionReport | None:
    """Create the gate before the slot is freed: after this no keeper can start anything for the run."""
    if action.deed is not Deed.REVOKE_AND_FREE or action.run is None:
        return None
    try:
        won = revoke(surroundings.directory_of(action.run.run_id))
    except OSError as error:
        return ActionReport(action, Done.ERROR, f"cannot create the gate: {error}")
    return None if won else ActionReport(action, Done.LOST_RACE)


def _freed(action: Action, run: Run | None, told: str | None) -> ActionReport:
    if run is None:
        return ActionReport(action, Done.LOST_RACE)
    if told is None:
        return ActionReport(action, Done.APPLIED)
    return ActionReport(action, Done.ERROR if action.deed is Deed.REPLAY else Done.APPLIED, told)


def _settle(surroundings: Surroundings, action: Action, trigger: str) -> Run | None:
    assert action.run is not None
    if action.deed is Deed.REPLAY:
        return surroundings.settlement.take_over(action.run, surroundings.me)
    assert action.ending is not None
    note = {"trigger": trigger, "rule": action.rule, "verdict": action.verdict, "evidence": action.reason}
    return surroundings.settlement.settle(action.run, action.ending, surroundings.me, note)


def _remove_cgroup(surroundings: Surroundings, run: Run) -> None:
    path = read_cgroup(surroundings.directory_of(run.run_id))
    if path is not None:
        cgroup.remove(path)


def _tell_board(surroundings: Surroundings, settled: Sequence[Run]) -> str | None:
    """None, or why the board could not be told: the runs stay settling and are told of later."""
    if not settled:
        return None
    try:
        surroundings.settlement.finish_and_close(settled)
    except (OperationsCenterError, OSError) as error:
        return str(error)
    finally:
        surroundings.wake_everybody()
    return None


def _apply_one(surroundings: Surroundings, action: Action) -> ActionReport:
    try:
        return ActionReport(action, Done.APPLIED if _DEEDS[action.deed](surroundings, action) else Done.LOST_RACE)
    except (OperationsCenterError, OSError) as error:
        return ActionReport(action, Done.ERROR, str(error))


def _stop(surroundings: Surroundings, action: Action) -> bool:
    assert action.evidence is not None
    assert action.order is not None
    return escalate(surroundings.ledger, surroundings.clock, action.evidence, action.order) is not None


def _adopt(surroundings: Surroundings, action: Action) -> bool:
    assert action.run is not None
    assert action.evidence is not None
    run, tree = action.run, action.evidence.seen
    keeper = tree.query.keeper if tree else run.keeper
    adopted = surroundings.ledger.change_run(
        run,
        "run.adopted",
        note={"from_watcher": run.watcher_pid, "evidence": action.reason},
        state=RunState.RUNNING,
        holder=run.holder + 1,
        watcher_pid=surroundings.me.pid,
        watcher_ticks=surroundings.me.start_ticks,
        keeper_pid=keeper.pid if keeper else None,
        keeper_ticks=keeper.start_ticks if keeper else None,
        started_at=run.started_at or surroundings.clock.now().wall,
    )
    return adopted is not None


def _requeue(surroundings: Surroundings, action: Action) -> bool:
    """The ledger holds the task meanwhile, so that nobody admits a run for it before the board is told."""
    assert action.claim is not None
    ledger, task_id = surroundings.ledger, action.claim.task_id
    if not ledger.hold_task(task_id, surroundings.clock.now().wall + HOLD_TASK_MS):
        return False
    try:
        return surroundings.board.requeue(action.claim)
    finally:
        ledger.release_task(task_id)
        surroundings.wake_everybody()


_DEEDS: dict[Deed, Callable[[Surroundings, Action], bool]] = {
    Deed.STOP: _stop,
    Deed.ADOPT: _adopt,
    Deed.REQUEUE: _requeue,
}
