"""Stop things and wait until they have ended: a run, every run, the fleet.

Nothing here decides how a run ends: a stop is stored, and the one reconciliation is driven until the run is
closed. So it works with a fleet, which does the same at the same time, and without one.
"""

import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from os import close

from operations_center.config import Config
from operations_center.errors import NotFound, OperationsCenterError, Unavailable
from operations_center.fleet import Member, called, look_at, survivors
from operations_center.identity import Process, is_alive, open_pidfd
from operations_center.in_flight_reconcile import (
    Scope,
    StopOrder,
    Trigger,
    clear_orphaned_in_flight,
    request_stop,
)
from operations_center.in_flight_reconcile.orphans import RESERVATION_YOUNG_MS
from operations_center.keeper.inspect import read_exit, read_gate
from operations_center.keeper.stop import signal_processes
from operations_center.ledger import Pause
from operations_center.locks import lock_within
from operations_center.model import HOLDS_SLOT, Outcome, Run, RunState, TaskState
from operations_center.state_directory import SUPERVISOR, StateDirectory
from operations_center.wiring import Center, open_center

DOWN_WITHIN_S = 60.0
WATCHER_KILL_AFTER_S = 5.0
"""A watcher ends within a second when it is told to; one that does not is hung, and its runs outlive it."""

SUPERVISOR_KILL_AFTER_S = 20.0
"""A supervisor gives its own watchers some seconds first."""

READY_WITHIN_S = 30.0
BEYOND_GRACE_S = 10.0
"""What is left of a tree is killed after grace, and its keeper five seconds later; then reconciliation settles."""

LOOK_EVERY_S = 0.1
LONGEST_WAIT_S = 1.0

DOWN_NOW = StopOrder(Outcome.STOPPED, "down --now", TaskState.READY)


# One run


def stop_run(center: Center, run_id: str, reason: str | None, *, wait: bool = True) -> Run:
    """End a run; its task becomes ``blocked``. The run as it is then; one that has ended already is left.

    Raises NotFound, and OperationsCenterError when it still lives after its grace and ten seconds.
    """
    run = _known(center, run_id)
    order = StopOrder(Outcome.STOPPED, reason or "stopped by a person", TaskState.BLOCKED)
    return _end_run(center, run, order, wait=wait)


def cancel_task(center: Center, task_id: str, *, wait: bool = True) -> Run | None:
    """Cancel a task and end its run; that run, None if it had none.

    Raises NotFound, and OperationsCenterError when the task is done or its run still lives.
    """
    center.board.cancel(task_id)
    center.wake_everybody()
    run = next((run for run in center.ledger.open_runs() if run.task_id == task_id), None)
    if run is None:
        return None
    order = StopOrder(Outcome.CANCELLED, "its task was cancelled", TaskState.CANCELLED)
    return _end_run(center, run, order, wait=wait)


def end_open_runs(center: Center, within_s: float | None = None) -> None:
    """End every open run of the ledger; their tasks become ready. Raises Unavailable when some are left.

    Without ``within_s``, the longest grace and ten seconds, at least a minute.
    """
    runs = center.ledger.open_runs()
    if within_s is None:
        within_s = max([DOWN_WITHIN_S, *(_patience_s(run) for run in runs)])
    until = time.monotonic() + within_s
    clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
    while runs := center.ledger.open_runs():
        if time.monotonic() > until:
            raise Unavailable(f"cannot end {_listed(runs)} within {within_s:.0f} s; each has a stop stored, try again")
        for run in runs:
            _store_stop(center, run, DOWN_NOW)
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        _wait_for_change(center, center.ledger.open_runs(), until)


def _known(center: Center, run_id: str) -> Run:
    run = center.ledger.run(run_id)
    if run is None:
        raise NotFound(f"cannot stop run {run_id}: there is no such run; see `operations-center runs`")
    return run


def _end_run(center: Center, run: Run, order: StopOrder, *, wait: bool) -> Run:
    """Until it is closed; without ``wait``, until the stop is stored and reconciliation will carry it out."""
    until = time.monotonic() + _patience_s(run)
    while run.state is not RunState.CLOSED:
        run = _begin_to_end(center, run, order)
        if run.state is RunState.CLOSED or (not wait and run.stop_reason is not None):
            break
        if time.monotonic() > until:
            raise OperationsCenterError(_still_alive(center, run))
        _wait_for_change(center, [run], until)
    return run


def _begin_to_end(center: Center, run: Run, order: StopOrder) -> Run:
    """One pass: store the stop, let reconciliation do what is next; the run as it is then."""
    _store_stop(center, run, order)
    clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI, scope=Scope(run_id=run.run_id))
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


# The fleet


class Down(Enum):
    """What happens to executors."""

    LEAVE = "they run on"
    DRAIN = "they are waited for"
    NOW = "they are ended"


@dataclass(frozen=True, slots=True)
class Ended:
    """What ``take_down`` ended, and the open runs that are left. ``watchers`` has the watchdog, too."""

    supervisor: Member
    watchers: Sequence[Member]
    runs_left: Sequence[Run] = ()
    executors_left: int = 0


def take_down(config: Config, how: Down, within_s: float | None) -> Ended:
    """Stop supervisor, watchers and watchdog. Works on what ledger and kernel know, with or without a fleet.

    Raises Unavailable when something is left after ``within_s``; for DRAIN, None is no limit.
    """
    state = StateDirectory(config.center.state_dir)
    if not state.root.is_dir():
        return Ended(Member(SUPERVISOR), ())
    if how is Down.DRAIN:
        return _drain_and_stop(config, state, within_s)
    # Before the ledger is opened: a fleet can be stopped also where the ledger is broken.
    supervisor, watchers = _stop_fleet(state, _until(within_s))
    with closing(open_center(config)) as center:
        if how is Down.NOW:
            end_open_runs(center, within_s)
        elif any(pause.source == "drain" for pause in center.ledger.pauses()):
            center.ledger.resume(None, "drain")
        return _ended(center, supervisor, watchers)


def _drain_and_stop(config: Config, state: StateDirectory, within_s: float | None) -> Ended:
    with closing(open_center(config)) as center, _admitting_nothing(center):
        _wait_for_open_runs(center, within_s)
        supervisor, watchers = _stop_fleet(state, _until(DOWN_WITHIN_S))
        return _ended(center, supervisor, watchers)


def _ended(center: Center, supervisor: Member, watchers: Sequence[Member]) -> Ended:
    left = center.ledger.open_runs()
    keepers = [_keeper(center, run) for run in left if run.state in HOLDS_SLOT]
    executing = sum(keeper is not None and is_alive(keeper) for keeper in keepers)
    return Ended(supervisor, watchers, left, executing)


@contextmanager
def _admitting_nothing(center: Center) -> Iterator[None]:
    # Killed, we leave the pause behind, and the watchdog ends it as soon as nobody holds the lock.
    with lock_within(center.state.drain_lock, 0.0) as alone:
        if not alone:
            raise Unavailable("cannot drain the fleet: another `operations-center down --drain` is still at it")
        before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
        center.ledger.pause(Pause("*", "drain", "down --drain waits for open runs", center.clock.now().wall))
        try:
            yield
        finally:
            center.ledger.resume("*", "drain")
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _wait_for_open_runs(center: Center, within_s: float | None) -> None:
    """Watchers settle what ends; where a run's role has none, reconciliation is driven from here."""
    until = None if within_s is None else time.monotonic() + within_s
    while runs := center.ledger.open_runs():
        if until is not None and time.monotonic() > until:
            raise Unavailable(f"cannot drain within {within_s:.0f} s: still open are {_listed(runs)}; nothing stopped")
        watched = {member.name for member in survivors(center.state)}
        if any(run.role not in watched for run in runs):
            clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        _wait_for_change(center, runs, until)


def _stop_fleet(state: StateDirectory, until: float) -> tuple[Member, list[Member]]:
    """Supervisor first, which would start its watchers again. Those that lived and have ended."""
    # A second TERM would mean `down --now` to the supervisor: of two `down` at once, one waits for the other.
    with lock_within(state.root / "down.lock", max(0.0, until - time.monotonic())) as alone:
        if not alone:
            raise Unavailable("cannot stop the fleet: another `operations-center down` is still at it; try again")
        alive = survivors(state)
        supervisor = look_at(state, SUPERVISOR)
        _stop_members([supervisor], SUPERVISOR_KILL_AFTER_S, until)
        while left := survivors(state):
            alive += [member for member in left if member.process not in {each.process for each in alive}]
            _stop_members(left, WATCHER_KILL_AFTER_S, until)
        return supervisor, alive


def _stop_members(members: Sequence[Member], kill_after_s: float, until: float) -> None:
    """Raises Unavailable when one of them lives on."""
    processes = [member.process for member in members if member.process is not None]
    left = end_processes(processes, kill_after_s, until)
    if left:
        names = ", ".join(f"{called(each.name)} (process {each.pid})" for each in members if each.process in left)
        raise Unavailable(f"cannot stop the fleet in time: {names} lives on; try again with a longer --timeout")


def _until(within_s: float | None) -> float:
    return time.monotonic() + (DOWN_WITHIN_S if within_s is None else within_s)


# Rolling restart


@dataclass(frozen=True, slots=True)
class Restarted:
    role: str
    old_pid: int | None
    pid: int


def restart_watchers(center: Center, names: Sequence[str], tell: Callable[[Restarted], None]) -> list[Restarted]:
    """One after the other: the next is stopped when the one before has a new process that is ready.

    Raises OperationsCenterError without a supervisor, or when a watcher does not come back within 30 s.
    """
    done = []
    for name in names:
        done.append(_restart(center.state, name))
        tell(done[-1])
    return done


def _restart(state: StateDirectory, name: str) -> Restarted:
    _refuse_without_supervisor(state, name)
    old = look_at(state, name)
    until = time.monotonic() + READY_WITHIN_S
    if old.process is not None:
        end_processes([old.process], WATCHER_KILL_AFTER_S, until)
    while (new := look_at(state, name)).process == old.process or new.pid is None or new.state != "ready":
        _refuse_without_supervisor(state, name)
        if time.monotonic() > until:
            raise OperationsCenterError(
                f"cannot restart {called(name)}: it is not ready again after {READY_WITHIN_S:.0f} s; "
                f"see {state.log(name)}"
            )
        time.sleep(LOOK_EVERY_S / 5)
    return Restarted(name, old.pid, new.pid)


def _refuse_without_supervisor(state: StateDirectory, name: str) -> None:
    if look_at(state, SUPERVISOR).process is None:
        raise OperationsCenterError(
            f"cannot restart {called(name)}: no supervisor runs; start one with `operations-center up`"
        )


# Processes and waiting


def end_processes(processes: Iterable[Process], kill_after_s: float, until: float) -> list[Process]:
    """TERM, then KILL; those that still live at the monotonic time ``until`` (seconds)."""
    left = list(processes)
    signal_processes(left, signal.SIGTERM)
    # A stopped process would take its TERM only when it goes on.
    signal_processes(left, signal.SIGCONT)
    left = _wait_for_end(left, min(until, time.monotonic() + kill_after_s))
    if left and time.monotonic() < until:
        signal_processes(left, signal.SIGKILL)
        left = _wait_for_end(left, until)
    return left


def _wait_for_end(processes: Iterable[Process], until: float) -> list[Process]:
    with _pidfds(processes) as left:
        while left and (seconds := until - time.monotonic()) > 0:
            for pidfd in select.select(list(left), [], [], seconds)[0]:
                del left[pidfd]
        return list(left.values())


def _wait_for_change(center: Center, runs: Sequence[Run], until: float | None) -> None:
    """Until a keeper ends, a KILL is due or it is time to look again; not at all without runs."""
    if not runs:
        return
    keepers = [keeper for run in runs if (keeper := _keeper(center, run)) is not None]
    now = center.clock.now().monotonic
    kills_s = [max((run.kill_mono - now) / 1000, LOOK_EVERY_S) for run in runs if run.kill_mono is not None]
    with _pidfds(keepers) as alive:
        longest = LONGEST_WAIT_S if len(alive) == len(runs) else LOOK_EVERY_S
        left_s = longest if until is None else max(until - time.monotonic(), 0.0)
        select.select(list(alive), [], [], min([longest, left_s, *kills_s]))


@contextmanager
def _pidfds(processes: Iterable[Process]) -> Iterator[dict[int, Process]]:
    """A descriptor for each of the processes that live, by which its end can be waited for."""
    with ExitStack() as held:
        found = {}
        for process in processes:
            pidfd = open_pidfd(process)
            if pidfd is not None:
                held.callback(close, pidfd)
                found[pidfd] = process
        yield found


def _keeper(center: Center, run: Run) -> Process | None:
    return run.keeper or read_gate(center.state.run(run.run_id)).keeper


def _listed(runs: Sequence[Run]) -> str:
    shown = ", ".join(run.run_id for run in runs[:5])
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    return f"{'run' if len(runs) == 1 else 'runs'} {shown}{more}"
