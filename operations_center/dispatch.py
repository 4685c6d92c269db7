"""One run, top to bottom: admit → claim → launch. Its end comes through ``settlement``.

Admitting first leaves no moment in which the board says "running" and the ledger knows nothing.
"""

import errno
import logging
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from operations_center.admission import Obstacle, Refusal
from operations_center.backends import Backend, ProgramBackend
from operations_center.boards import ReadyTask
from operations_center.config import Role
from operations_center.errors import BoardUnreachable, LedgerBusy, OperationsCenterError
from operations_center.identity import Process
from operations_center.in_flight_reconcile import (
    Scope,
    Surroundings,
    Trigger,
    clear_orphaned_in_flight,
    may_be_orphaned,
)
from operations_center.keeper.launch import LaunchedRun, RunDirectoryExists, prepare, prepare_for_job, revoke
from operations_center.ledger import Admission
from operations_center.model import Outcome, Proof, Run, RunState, Task
from operations_center.outcomes import Ending
from operations_center.presentation import task_as_json

_log = logging.getLogger(__name__)

CLEAR_AGAIN_MS = 1_000
"""Admission that found nothing to free for a full backend does not look again sooner."""

RECORD_TRIES = 3
LAUNCH_AGAIN_MS = 5_000
"""A machine that could not start a process or write a file is asked again after this."""


@dataclass(frozen=True, slots=True)
class Started:
    run: Run
    keeper: Process
    children: list[subprocess.Popen[bytes]]


@dataclass(frozen=True, slots=True)
class Reserved:
    """A provider run whose task is claimed: its poller submits it."""

    run: Run


@dataclass(slots=True)
class Dispatcher:
    """Starts runs of one role, under the release of which it is a part."""

    surroundings: Surroundings
    role: Role
    backends: Mapping[str, Backend]
    release: str | None = None
    _clear_at: dict[str, int] = field(init=False, default_factory=dict)

    def backend_of(self, task: Task | ReadyTask) -> str:
        return task.backend or self.role.backend

    def dispatch(self, task: Task | ReadyTask) -> Started | Reserved | list[Refusal] | None:
        """Start a run of the task. The refusals if it may not run now; None if it came to nothing.

        Raises LedgerBusy and BoardUnreachable; what was begun then is taken back or is found by reconciliation.
        """
        run = self._admit(task)
        if isinstance(run, list):
            return run
        claimed = self._claim(run)
        if claimed is None:
            return None
        backend = self.backends[run.backend]
        if not isinstance(backend, ProgramBackend):
            return Reserved(run) if self._make_ready(run, claimed) else None
        launched = self._launch(run, claimed, backend)
        if launched is None:
            return None
        return Started(self._record_start(run, launched), launched.keeper, launched.children)

    def _admit(self, task: Task | ReadyTask) -> Run | list[Refusal]:
        name = self.backend_of(task)
        backend = self.backends.get(name)
        if backend is None:
            return [Refusal(Obstacle.NO_BACKEND, f"there is no backend {name}")]
        of_program = backend if isinstance(backend, ProgramBackend) else None
        admission = Admission(
            task_id=task.task_id,
            role=self.role.name,
            backend=name,
            limits=backend.limits,
            host=self.surroundings.host,
            watcher=self.surroundings.me,
            grace_ms=backend.grace_ms,
            timeout_ms=backend.timeout_ms,
            release=self.release,
            kind=backend.kind,
            idle_timeout_ms=of_program.idle_timeout_ms if of_program else None,
            max_output=of_program.max_output if of_program else None,
            urgency=task.urgency,
        )
        answer = self.surroundings.ledger.admit(admission)
        if not isinstance(answer, Run) and _only_full(answer) and self._clear(name):
            answer = self.surroundings.ledger.admit(admission)
        if not isinstance(answer, Run):
            self._wake_those_ahead(answer)
        return answer

    def _wake_those_ahead(self, refusals: Sequence[Refusal]) -> None:
        """A slot may be free for a reason that nobody was told of, such as a budget that is a new one."""
        if all(refusal.obstacle is Obstacle.PRIORITY for refusal in refusals):
            for refusal in refusals:
                # What stands in the ledger names no file before it is known to be a role.
                if refusal.role is not None and refusal.role in self.surroundings.roles:
                    self.surroundings.wake(refusal.role)

    def _clear(self, backend: str) -> bool:
        """No dead run may block a live task, even where watchdog and supervisor are gone."""
        now = self.surroundings.clock.now().monotonic
        if now < self._clear_at.get(backend, 0):
            return False
        runs = self.surroundings.ledger.open_runs(backend=backend)
        if not any(may_be_orphaned(self.surroundings, run) for run in runs):
            return False
        scope = Scope(backend=backend)
        freed = clear_orphaned_in_flight(self.surroundings, trigger=Trigger.ADMISSION, scope=scope).applied
        if not freed:
            self._clear_at[backend] = now + CLEAR_AGAIN_MS
        return freed > 0

    def _claim(self, run: Run) -> Task | None:
        """The task as it is now: it may have been edited since it was read."""
        try:
            task = self.surroundings.board.claim(run.task_id, run.run_id)
        except BoardUnreachable:
            self._take_back(run, "the board did not answer the claim")
            raise
        if task is None:
            self._take_back(run, "the task was not ready any more")
        elif self.backend_of(task) != run.backend or task.kind not in self.role.task_kinds:
            self._take_back(run, "the task was edited meanwhile")
        else:
            return task
        return None

    def _make_ready(self, run: Run, task: Task) -> bool:
        """The directory of a provider run, with its task as it is submitted."""
        try:
            prepare_for_job(Path(self.surroundings.directory_of(run.run_id)), msgspec.json.encode(task_as_json(task)))
        except OSError as error:
            _log.error("cannot begin run %s: %s", run.run_id, error)
            self._take_back(run, f"cannot begin: {error}", again_after_ms=LAUNCH_AGAIN_MS)
            return False
        return True

    def _launch(self, run: Run, task: Task, backend: ProgramBackend) -> LaunchedRun | None:
        directory = Path(self.surroundings.directory_of(run.run_id))
        plan = backend.launch_plan(run, task, directory)
        try:
            prepare(plan)
        except RunDirectoryExists:
            _log.warning("run %s was revoked before it was launched", run.run_id)
            return None
        except OSError as error:
            # Nothing was forked: it needs no gate, for which there may be no room either.
            self._tell_failed_launch(run, error)
            return None
        try:
            if not self._is_still_ours(run):
                # Freed, closed and pruned while this process was stopped: the gate went with the directory.
                revoke(directory)
                return None
            return self.surroundings.processes.start(plan)
        except (OSError, ValueError, OperationsCenterError) as error:
            self._give_up(run, error)
            return None

    def _is_still_ours(self, run: Run) -> bool:
        """Asked with the directory made: whoever frees the run from now on has to create the gate in it."""
        present = self.surroundings.ledger.run(run.run_id)
        return present is not None and _is_reserved_by(present, self.surroundings.me)

    def _give_up(self, run: Run, error: Exception) -> None:
        """Without a gate of ours something may still start: then the run is left to the next reconciliation."""
        if revoke(Path(self.surroundings.directory_of(run.run_id))):
            self._tell_failed_launch(run, error)

    def _tell_failed_launch(self, run: Run, error: Exception) -> None:
        _log.error("cannot launch run %s: %s", run.run_id, error)
        if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno == errno.E2BIG):
            ending = Ending(Outcome.FAILED, Proof.NEVER_STARTED, f"cannot launch: {error}")
            self.surroundings.settlement.end(run, ending, self.surroundings.me)
        else:
            self._take_back(run, f"cannot launch: {error}", again_after_ms=LAUNCH_AGAIN_MS)

    def _record_start(self, run: Run, launched: LaunchedRun) -> Run:
        """Best effort: what cannot be recorded now is read from the gate by whoever looks next."""
        for _ in range(RECORD_TRIES):
            try:
                started = self._change_to_running(run, launched)
            except LedgerBusy as error:
                _log.warning("cannot record the start of run %s: %s", run.run_id, error)
                break
            if started is not None:
                return started
            # Somebody has written meanwhile: a stop leaves the run ours, a revocation does not.
            run = self.surroundings.ledger.run(run.run_id) or run
            if not _is_reserved_by(run, self.surroundings.me):
                break
        return run

    def _change_to_running(self, run: Run, launched: LaunchedRun) -> Run | None:
        now = self.surroundings.clock.now()
        timeout = self.backends[run.backend].timeout_ms
        return self.surroundings.ledger.change_run(
            run,
            "run.started",
            state=RunState.RUNNING,
            keeper_pid=launched.keeper.pid,
            keeper_ticks=launched.keeper.start_ticks,
            cgroup=str(launched.cgroup) if launched.cgroup else None,
            executor_pid=launched.executor.pid if launched.executor else None,
            executor_ticks=launched.executor.start_ticks if launched.executor else None,
            started_at=now.wall,
            deadline_at=now.wall + timeout if timeout is not None else None,
            deadline_mono=now.monotonic + timeout if timeout is not None else None,
        )

    def _take_back(self, run: Run, reason: str, again_after_ms: int | None = None) -> None:
        proof = Proof.NEVER_SUBMITTED if run.is_job else Proof.NEVER_STARTED
        ending = Ending(Outcome.NEVER_STARTED, proof, reason, retry_after_ms=again_after_ms)
        # A stop that was stored meanwhile leaves the reservation ours.
        present = self.surroundings.ledger.run(run.run_id) or run
        if _is_reserved_by(present, self.surroundings.me):
            self.surroundings.settlement.end(present, ending, self.surroundings.me)


def _is_reserved_by(run: Run, watcher: Process) -> bool:
    return run.state is RunState.RESERVED and run.watcher == watcher


def _only_full(refusals: Sequence[Refusal]) -> bool:
    obstacles = {refusal.obstacle for refusal in refusals}
    return obstacles <= {Obstacle.CAP, Obstacle.ANOTHER_RUN, Obstacle.PRIORITY} and obstacles != {Obstacle.PRIORITY}
