"""What our processes do, one operation each: real functions, put together as watcher, watchdog and commands do."""

from collections.abc import Callable
from pathlib import Path

from operations_center.backends.command import CommandBackend
from operations_center.care.retention import prune_closed_runs
from operations_center.config import CommandSettings
from operations_center.dispatch import Dispatcher, Started
from operations_center.in_flight_reconcile import (
    Scope,
    Trigger,
    adopt_own_runs,
    clear_orphaned_in_flight,
    needs_attention,
)
from operations_center.in_flight_reconcile.evidence import gather_evidence
from operations_center.in_flight_reconcile.orphans import judge
from operations_center.keeper.processes import proven_keeper
from operations_center.ledger import LEASE_MS
from operations_center.model import RunState
from operations_center.stopping.runs import cancel_task, end_open_runs, stop_run
from operations_center.wiring import Center

Operation = Callable[[Center], object]


def come_up(center: Center, role: str) -> object:
    """A watcher's start."""
    report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.STARTUP, adopt_role=role)
    take_over(center, role)
    return report


def keep_lease(center: Center) -> None:
    center.ledger.keep_lease(center.host, LEASE_MS)


def take_over(center: Center, role: str) -> None:
    keep_lease(center)
    adopt_own_runs(center.surroundings, role)
    for run in center.ledger.open_runs(role=role):
        keeper = proven_keeper(center.processes, run.run_id, center.state.run(run.run_id))
        if run.watcher == center.me and run.state is RunState.RESERVED and keeper is not None:
            center.ledger.change_run(
                run,
                "run.adopted",
                state=RunState.RUNNING,
                keeper_pid=keeper.pid,
                keeper_ticks=keeper.start_ticks,
                started_at=center.clock.now().wall,
            )


def tend(center: Center, role: str) -> None:
    """A watcher's look at what it runs."""
    take_over(center, role)
    runs = [run for run in center.ledger.open_runs(role=role) if run.watcher == center.me]
    untold = [run for run in runs if run.state is RunState.SETTLING]
    if untold:
        center.settlement.finish_and_close(untold)
    for run_id in needs_attention(center.surroundings, [run for run in runs if run not in untold]):
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.WATCHER, scope=Scope(run_id=run_id))


def poll(center: Center, role: str, cgroups: Path | None) -> object:
    """Start the first ready task that may run."""
    backends = {
        name: CommandBackend(settings, center.config.file, center.config.directory, {}, cgroups)
        for name, settings in center.config.backends.items()
        if isinstance(settings, CommandSettings)
    }
    dispatcher = Dispatcher(center.surroundings, center.config.roles[role], backends)
    answer: object = None
    for task in center.board.ready(center.config.roles[role].task_kinds, [None]):
        answer = dispatcher.dispatch(task)
        if isinstance(answer, Started):
            break
    return answer


def watch_over(center: Center) -> object:
    """A watchdog's cycle."""
    keep_lease(center)
    return clear_orphaned_in_flight(center.surroundings, trigger=Trigger.WATCHDOG)


def look(center: Center) -> list[int]:
    """The rows of the verdict table that the open runs meet now."""
    with center.ledger.snapshot():
        evidence = gather_evidence(center.surroundings, Scope()).evidence
    return [judgement.rule.row for judgement in judge(evidence)]


def prune(center: Center, older_than_ms: int) -> object:
    return prune_closed_runs(center.ledger, center.state.runs, older_than_ms, center.clock.now().wall)


def stop(run_id: str) -> Operation:
    return lambda center: stop_run(center, run_id, None, wait=False)


def cancel(task_id: str) -> Operation:
    return lambda center: cancel_task(center, task_id, wait=False)


def down_now(center: Center) -> None:
    end_open_runs(center, within_s=0.0)
