"""Take the fleet down: supervisor, watchers, watchdog, and executors if asked."""

import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum

from operations_center.config import Config
from operations_center.errors import LedgerUnusable, LedgerUnwritable, OperationsCenterError, Unavailable
from operations_center.fleet import Member, called, look_at, survivors
from operations_center.identity import read_stat
from operations_center.in_flight_reconcile import Executing, Scope, look_for_executors
from operations_center.keeper.forgotten import living_runs_below
from operations_center.keeper.inspect import ProcessTable, TreeQuery, tree_of
from operations_center.keeper.stop import kill, signal_processes
from operations_center.ledger import Pause
from operations_center.locks import lock_holder, lock_within
from operations_center.model import Run
from operations_center.pidfds import wait_for_end
from operations_center.senders import run_of
from operations_center.state_directory import SUPERVISOR, StateDirectory
from operations_center.stopping.ends import Passes, end_processes, listed, wait_for_change
from operations_center.stopping.hindrances import Hindered
from operations_center.stopping.runs import DOWN_WITHIN_S, end_open_runs, undoubted
from operations_center.store import Access
from operations_center.titles import described, holding, is_one_of_ours
from operations_center.wiring import Center, open_center

_log = logging.getLogger(__name__)

WATCHER_KILL_AFTER_S = 5.0
"""A watcher ends within a second when it is told to; one that does not is hung, and its runs outlive it."""

LOCK_WITHIN_S = 2.0
"""For another `down` to end, before it is looked at who holds its lock."""

SUPERVISOR_KILL_AFTER_S = 20.0
"""A supervisor gives its own watchers some seconds first."""


class Down(Enum):
    """What happens to executors."""

    LEAVE = "they run on"
    DRAIN = "they are waited for"
    NOW = "they are ended"


@dataclass(frozen=True, slots=True)
class Ended:
    """What ``take_down`` ended, and the open runs that are left. ``watchers`` has the watchdog, too.

    ``hindered`` are those of them that were to end, and cannot be ended from here. ``unrecorded``: what could not be
    written into the ledger, and why; None where nothing had to be, or all was. ``forgotten``: processes by run of a
    state directory that is gone; ``forgotten_ended``: those of them that were ended.
    """

    supervisor: Member
    watchers: Sequence[Member]
    runs_left: Sequence[Run] = ()
    executing: Executing = field(default_factory=Executing)
    hindered: Sequence[Hindered] = ()
    unrecorded: str | None = None
    forgotten: Mapping[str, Sequence[int]] = field(default_factory=dict)
    forgotten_ended: Sequence[str] = ()


def take_down(config: Config, how: Down, within_s: float | None) -> Ended:
    """Stop supervisor, watchers and watchdog. Works on what ledger and kernel know, with or without a fleet.

    Raises Unavailable when something is left after ``within_s``; for DRAIN, None is no limit.
    """
    state = StateDirectory(config.center.state_dir)
    if not state.root.is_dir():
        gone = _end_forgotten(state, until_after(within_s)) if how is Down.NOW else ()
        return Ended(Member(SUPERVISOR), (), forgotten=living_runs_below(state.runs), forgotten_ended=gone)
    if how is Down.DRAIN:
        return _drain_and_stop(config, within_s)
    # Before the ledger is opened: a fleet can be stopped also where the ledger is broken.
    supervisor, watchers = _stop_fleet(config, until_after(within_s))
    try:
        with closing(open_center(config, Access.END)) as center:
            if how is Down.NOW:
                return _end_now(center, supervisor, watchers, within_s)
            if center.obstacle is None and any(pause.source == "drain" for pause in center.ledger.pauses()):
                with suppress(LedgerUnwritable):
                    # The watchdog of the next fleet does it as well.
                    center.ledger.resume(None, "drain")
            return _ended(center, supervisor, watchers)
    except LedgerUnusable as error:
        if how is Down.NOW and (gone := _end_forgotten(state, until_after(within_s))):
            raise LedgerUnusable(f"{', '.join(gone)} was ended, and that cannot be recorded: {error}") from error
        what = "end executors" if how is Down.NOW else "tell which executors run on"
        raise LedgerUnusable(f"cannot {what}, though no watcher is left: {error}") from error


def _end_forgotten(state: StateDirectory, until: float) -> list[str]:
    """KILL what runs without a ledger that could tell of it, as the kernel alone does; those that have ended.

    Without a TERM, and with their keepers, which are stopped first: should the ledger come back, no record says that
    they ended by themselves.
    """
    found = living_runs_below(state.runs)
    for run_id in found:
        tree = tree_of(ProcessTable.scan(), TreeQuery(run_id))
        signal_processes(tree.members, signal.SIGSTOP)
        kill(tree)
        wait_for_end(tree.members, until)
    return sorted(found.keys() - living_runs_below(state.runs)) if found else []


def _drain_and_stop(config: Config, within_s: float | None) -> Ended:
    with closing(open_center(config)) as center, _admitting_nothing(center):
        _wait_for_open_runs(center, within_s)
        supervisor, watchers = _stop_fleet(config, until_after(DOWN_WITHIN_S))
        return _ended(center, supervisor, watchers)


def _ended(center: Center, supervisor: Member, watchers: Sequence[Member]) -> Ended:
    left = center.ledger.open_runs()
    return Ended(supervisor, watchers, left, look_for_executors(center.surroundings))


def _end_now(center: Center, supervisor: Member, watchers: Sequence[Member], within_s: float | None) -> Ended:
    hindered, unrecorded = end_open_runs(center, within_s)
    left = center.ledger.open_runs()
    return Ended(supervisor, watchers, left, look_for_executors(center.surroundings), hindered, unrecorded)


@contextmanager
def _admitting_nothing(center: Center) -> Iterator[None]:
    # Killed, we leave the pause behind, and the watchdog ends it as soon as nobody holds the lock.
    with lock_within(center.state.drain_lock, 0.0) as alone:
        if not alone:
            holder = lock_holder(center.state.drain_lock)
            if holder is not None and not is_one_of_ours(holder):
                raise Unavailable(f"cannot drain the fleet: {holding(holder, center.state.drain_lock)}")
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
    passes, is_late = Passes(center, Scope()), False
    while runs := undoubted(center.ledger.open_runs()):
        if is_late:
            raise Unavailable(f"cannot drain within {within_s:.0f} s: still open are {listed(runs)}; nothing stopped")
        watched = {member.name for member in survivors(center.state)}
        if any(run.role not in watched for run in runs):
            passes.reconcile()
        wait_for_change(center, runs, until)
        is_late = until is not None and time.monotonic() > until


def _stop_fleet(config: Config, until: float) -> tuple[Member, list[Member]]:
    """Supervisor first, which would start its watchers again. Those that lived and have ended."""
    state, submissions_s = StateDirectory(config.center.state_dir), config.submissions_within_ms / 1000
    with _one_after_the_other(config, state, until):
        alive = survivors(state)
        supervisor = look_at(state, SUPERVISOR)
        _stop_members([supervisor], SUPERVISOR_KILL_AFTER_S + submissions_s, until)
        while left := survivors(state):
            alive += [member for member in left if member.process not in {each.process for each in alive}]
            _stop_members(left, WATCHER_KILL_AFTER_S + submissions_s, until)
        return supervisor, alive


@contextmanager
def _one_after_the_other(config: Config, state: StateDirectory, until: float) -> Iterator[None]:
    """A second TERM would mean `down --now` to the supervisor: of two `down` at once, one waits for the other.

    Who holds the lock and is no process of ours, or of a run, is not waited for. Raises Unavailable.
    """
    while True:
        left_s = max(0.0, until - time.monotonic())
        # The directory itself: a lock file could not be made on a file system that is full or read-only.
        with lock_within(state.root, min(left_s, LOCK_WITHIN_S)) as alone:
            holder = None if alone else lock_holder(state.root)
            foreign = holder is not None and (not is_one_of_ours(holder) or _is_of_a_run(config, holder))
            if foreign:
                _log.warning("%s; goes on without it", holding(holder, state.root))
            if alone or foreign:
                yield
                return
        if not left_s:
            who = described(holder)
            raise Unavailable(
                f"cannot stop the fleet: another `operations-center down` is still at it: {who} holds the lock "
                f"{state.root}; try again, or end that process"
            )


def _is_of_a_run(config: Config, pid: int) -> bool:
    stat = read_stat(pid)
    try:
        with closing(open_center(config, Access.READ)) as center:
            return stat is not None and run_of(center.surroundings, pid, stat) is not None
    except (OperationsCenterError, OSError):
        return False


def _stop_members(members: Sequence[Member], kill_after_s: float, until: float) -> None:
    """Raises Unavailable when one of them lives on."""
    processes = [member.process for member in members if member.process is not None]
    left = end_processes(processes, kill_after_s, until)
    if left:
        names = ", ".join(f"{called(each.name)} (process {each.pid})" for each in members if each.process in left)
        raise Unavailable(f"cannot stop the fleet in time: {names} lives on; try again with a longer --timeout")


def until_after(within_s: float | None) -> float:
    return time.monotonic() + (DOWN_WITHIN_S if within_s is None else within_s)
