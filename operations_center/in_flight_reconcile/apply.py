"""One guarded write per action. Whoever was quicker wins; the other reports ``lost_race`` and changes nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from operations_center.in_flight_reconcile.escalation import escalate, request_stop
from operations_center.in_flight_reconcile.freeing import FREEING, batches, failed, free
from operations_center.in_flight_reconcile.job_records import record_doubt
from operations_center.in_flight_reconcile.out_of_turn import ask
from operations_center.in_flight_reconcile.plan import Action, Deed, evidence_of, run_of
from operations_center.in_flight_reconcile.report import ActionReport, Done
from operations_center.in_flight_reconcile.surroundings import Surroundings
from operations_center.keeper.executor import executor_of
from operations_center.model import Run, RunState

HOLD_TASK_MS = 60_000


def apply_actions(
    surroundings: Surroundings, actions: Sequence[Action], trigger: str, out_of_time: Callable[[], bool]
) -> list[ActionReport]:
    """Do what was planned; what the time did not suffice for is not in the answer."""
    reports = []
    for batch in batches(actions):
        if out_of_time():
            break
        reports += free(surroundings, batch, trigger)
    for action in actions:
        if action.deed in FREEING or action.deed is Deed.ASK:
            continue
        if out_of_time():
            return reports
        reports.append(_apply_one(surroundings, action))
    asking = [action for action in actions if action.deed is Deed.ASK]
    return reports + (ask(surroundings, asking, trigger) if asking else [])


def _apply_one(surroundings: Surroundings, action: Action) -> ActionReport:
    try:
        return ActionReport(action, Done.APPLIED if _DEEDS[action.deed](surroundings, action) else Done.LOST_RACE)
    except Exception as error:
        return failed(action, error)


def _doubt(surroundings: Surroundings, action: Action) -> bool:
    return record_doubt(surroundings, run_of(action), action.reason) is not None


def _tell_poller(surroundings: Surroundings, action: Action) -> bool:
    assert action.order is not None
    told = request_stop(surroundings.ledger, surroundings.clock, run_of(action), action.order)
    surroundings.wake_everybody()
    return told is not None


def _stop(surroundings: Surroundings, action: Action) -> bool:
    assert action.order is not None
    ledger, clock, processes = surroundings.ledger, surroundings.clock, surroundings.processes
    directory = surroundings.directory_of(run_of(action).run_id)
    return escalate(ledger, clock, processes, evidence_of(action), action.order, directory) is not None


def _adopt(surroundings: Surroundings, action: Action) -> bool:
    run, tree = run_of(action), evidence_of(action).seen
    keeper = tree.keeper if tree else run.keeper
    executor = run.executor or (executor_of(keeper) if keeper else None)
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
        cgroup=str(tree.query.cgroup) if tree and tree.query.cgroup else run.cgroup,
        executor_pid=executor.pid if executor else None,
        executor_ticks=executor.start_ticks if executor else None,
        started_at=run.started_at or surroundings.clock.now().wall,
        **(_brought_here(surroundings, run) if run.is_job else {}),
    )
    return adopted is not None


def _brought_here(surroundings: Surroundings, run: Run) -> dict[str, Any]:
    """A job outlives its boot and its host: from now on its poller, and its deadline's clock, are those of this one."""
    host = surroundings.host
    return {
        "host_id": host.host_id,
        "boot_id": host.boot_id,
        "pid_namespace": host.pid_namespace,
        "host": host.name,
        "deadline_mono": run.deadline_mono if run.boot_id == host.boot_id else _deadline_here(surroundings, run),
    }


def _deadline_here(surroundings: Surroundings, run: Run) -> int | None:
    """By the wall clock, which is all that two boots share, within what is certain should it be wrong.

    It is no later than if the run began now, and no earlier than if it began with this boot.
    """
    now = surroundings.clock.now()
    if run.deadline_at is None:
        return None
    allowed_ms = run.deadline_at - run.reserved_at
    return min(now.monotonic + allowed_ms, max(now.monotonic + run.deadline_at - now.wall, allowed_ms))


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
    Deed.DOUBT: _doubt,
    Deed.TELL_POLLER: _tell_poller,
}
