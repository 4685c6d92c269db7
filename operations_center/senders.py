"""Who has sent us a signal: somebody who may stop the fleet, or a run of it.

An executor that runs ``pkill`` to end its own programs must not end the fleet with them. The kernel says which process
sent a signal. Whether that one belongs to a run is decided as for any other process: by the run's tree.

A sender has often ended before it can be looked at, as ``pkill`` does at once. It then counts as a run's where a run
executes, or did a moment ago. A shell that runs ``kill`` by itself lives on, and so does ``operations-center down``.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operations_center import identity
from operations_center.errors import OperationsCenterError
from operations_center.identity import Process, Stat, read_stat
from operations_center.in_flight_reconcile import Surroundings
from operations_center.in_flight_reconcile.evidence import query_of
from operations_center.keeper.inspect import TreeQuery, read_gate, tree_of
from operations_center.locks import lock_holder
from operations_center.model import HOLDS_SLOT, Run
from operations_center.signals import REFUSED, Sent, Standing

_log = logging.getLogger(__name__)

JUST_ENDED_MS = 60_000
"""A run that ended no longer ago may have sent a signal that is read only now."""

RECENT_RUNS = 100

NOTE_EVERY_MS = 60_000
"""A run that signals us all the time must not fill log and ledger."""

INIT = 1
ROOT = 0

Note = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a sender.

    ``is_kin``: init, what has started this process, or the leader of its session. ``may_be_of_a_run``: a run executes,
    or has just ended. ``run_id`` names the run in whose tree the sender is.
    """

    is_from_outside: bool = False
    is_kin: bool = False
    is_of_another_user: bool = False
    takes_fleet_down: bool = False
    is_alive: bool = False
    run_id: str | None = None
    may_be_of_a_run: bool = False


def standing_of(facts: Facts) -> Standing:
    """Judge a sender. Pure; the first that holds counts.

    Who belongs to another user and may signal us all the same is root, and no executor.
    """
    if facts.is_from_outside or facts.is_kin:
        return Standing.OWNER
    if facts.run_id is not None:
        return Standing.RUN
    if facts.takes_fleet_down:
        return Standing.OWNER
    if facts.is_of_another_user or facts.is_alive or not facts.may_be_of_a_run:
        return Standing.STRANGER
    return Standing.UNKNOWN


class Senders:
    """Judges the sender of each signal; ``note`` writes into the event log what was refused.

    ``root`` is the state directory, whose lock ``down`` holds while it stops the fleet.
    """

    def __init__(self, surroundings: Surroundings, root: Path, note: Note) -> None:
        self._surroundings = surroundings
        self._root = root
        self._note = note
        self._noted_at: int | None = None

    def judge(self, sent: Sent) -> Standing:
        facts = self._look_at(sent)
        standing = standing_of(facts)
        if standing in REFUSED:
            self._tell(sent, facts, standing)
        return standing

    def _look_at(self, sent: Sent) -> Facts:
        if sent.is_from_outside:
            return Facts(is_from_outside=True)
        return self._look_at_process(sent) if sent.is_sender_known else self._look_at_nobody()

    def _look_at_nobody(self) -> Facts:
        """Of a signal that names its sender by itself, or none: as of a process that has ended."""
        try:
            return Facts(may_be_of_a_run=self._may_have_ended_with_a_run())
        except (OperationsCenterError, OSError) as error:
            _log.warning("cannot find out whether a run may have sent a signal: %s", error)
            return Facts()

    def _look_at_process(self, sent: Sent) -> Facts:
        # Before anything else: it may end at any moment.
        stat = read_stat(sent.pid)
        if sent.pid in _kin():
            return Facts(is_kin=True)
        # A process of root takes any user id for itself, so where the fleet is root's it says nothing.
        if sent.uid != os.getuid() != ROOT:
            return Facts(is_of_another_user=True)
        try:
            run_id = run_of(self._surroundings, sent.pid, stat) if stat is not None else None
            takes_fleet_down = lock_holder(self._root, likely=sent.pid) == sent.pid
            # After the look at the runs: a run is open as long as a process of it lives, and would have been seen.
            is_alive = stat is not None and identity.is_alive(Process(sent.pid, stat.start_ticks))
            return Facts(
                takes_fleet_down=takes_fleet_down,
                is_alive=is_alive,
                run_id=run_id,
                may_be_of_a_run=not is_alive and self._may_have_ended_with_a_run(),
            )
        except (OperationsCenterError, OSError) as error:
            _log.warning("cannot find out whether process %d is of a run: %s", sent.pid, error)
            return Facts(is_alive=stat is not None)

    def _may_have_ended_with_a_run(self) -> bool:
        """Whether there is a run that a process which is gone by now may have been of."""
        ledger, now = self._surroundings.ledger, self._surroundings.clock.now()
        recent = [*ledger.open_runs(), *ledger.recent_runs(task_id=None, backend=None, limit=RECENT_RUNS)]
        return any(
            run.state in HOLDS_SLOT or (run.settled_mono or 0) > now.monotonic - JUST_ENDED_MS
            for run in recent
            if _is_here(self._surroundings, run)
        )

    def _tell(self, sent: Sent, facts: Facts, standing: Standing) -> None:
        now = self._surroundings.clock.now().monotonic
        if self._noted_at is not None and now - self._noted_at < NOTE_EVERY_MS:
            return
        self._noted_at = now
        who = _described(sent, facts)
        _log.warning(
            "does not obey signal %d from %s: %s; `operations-center down` stops the fleet",
            sent.number,
            who,
            standing.value,
        )
        data = {"signal": sent.number, "pid": sent.pid, "uid": sent.uid, "run_id": facts.run_id}
        try:
            self._note("signal.refused", data)
        except OperationsCenterError as error:
            _log.warning("cannot note that a signal was refused: %s", error)


def _described(sent: Sent, facts: Facts) -> str:
    if not sent.is_sender_known:
        return "a sender that the kernel does not name"
    return f"process {sent.pid} of run {facts.run_id}" if facts.run_id else f"process {sent.pid}, which has ended"


def run_of(surroundings: Surroundings, pid: int, stat: Stat) -> str | None:
    """Find the open run in whose tree a process is. Of a zombie the kernel still knows session and group.

    Raises OperationsCenterError, OSError.
    """
    queries = [_query(surroundings, run) for run in surroundings.ledger.open_runs() if _is_here(surroundings, run)]
    for query in queries:
        if query.keeper is not None and query.keeper.pid in (pid, stat.session, stat.group):
            return query.run_id
    process = Process(pid, stat.start_ticks)
    table = surroundings.processes.scan() if queries else None
    for query in queries:
        if table is not None and process in tree_of(table, query).members:
            return query.run_id
    return None


def _query(surroundings: Surroundings, run: Run) -> TreeQuery:
    return query_of(run, read_gate(surroundings.directory_of(run.run_id)))


def _is_here(surroundings: Surroundings, run: Run) -> bool:
    host = surroundings.host
    there = (run.host_id, run.boot_id, run.pid_namespace)
    return not run.is_job and there == (host.host_id, host.boot_id, host.pid_namespace)


def _kin() -> set[int]:
    """Init, the leader of our session, and every process that we descend from."""
    return {INIT, os.getsid(0), *_ancestors(os.getppid())} - {os.getpid()}


def _ancestors(pid: int) -> Iterator[int]:
    while pid > INIT:
        yield pid
        stat = read_stat(pid)
        pid = stat.parent if stat is not None else 0
