"""A watcher: start-up reconciliation → poll loop → drain.

It starts runs of one role and follows them to their end. When it dies its runs go on, and the next watcher of
the role adopts them; so it never has to hurry, and ends within a second when it is told to.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from operations_center.admission import Obstacle, Refusal
from operations_center.boards import PAGE, ReadyTask
from operations_center.config import Role
from operations_center.dispatch import Dispatcher, Reserved, Started
from operations_center.errors import LedgerReplaced, LedgerUnusable, OperationsCenterError
from operations_center.heart import BEAT_EVERY_MS
from operations_center.identity import Process
from operations_center.in_flight_reconcile import (
    Scope,
    Trigger,
    adopt_own_runs,
    clear_orphaned_in_flight,
    needs_attention,
    reconcile_in_flight_on_startup,
)
from operations_center.keeper.executor import executor_of
from operations_center.keeper.output import OutputBounds
from operations_center.keeper.processes import proven_keeper
from operations_center.keeper.timer import Limits, replace_timer
from operations_center.ledger import LEASE_MS, Wish
from operations_center.locks import is_still_there, take_lock
from operations_center.model import OPEN, Run, RunState
from operations_center.running import is_role_removed
from operations_center.senders import Senders
from operations_center.state_directory import SUPERVISOR
from operations_center.waiting import Waiting, seconds_until
from operations_center.wakeups import wake
from operations_center.wiring import Center

if TYPE_CHECKING:
    from operations_center.polling import Poller

_log = logging.getLogger(__name__)

T = TypeVar("T")

TEND_EVERY_MS = 500
"""How often the runs are looked at beside the events that tell of them: a stop, a limit, a daemon left behind."""

TEND_AGAIN_MS = 10
"""After the end of a keeper, whose executor may be dying at this moment; then more and more rarely."""

TIMER_AGAIN_MS = 10_000
"""A run whose timer has died gets no other sooner: something may end each of them."""

BOUND_EVERY_MS = 200
BOUND_AGAIN_MS = 50
"""After a run was found to print more than it may, and at its start: what prints without end fills a disk fast."""

TAKE_OVER_WITHIN_S = 0.5
"""At the start; what it did not suffice for is done in the first turns of the loop."""

AGAIN_AFTER_S = 1.0
"""After a board or a ledger that did not answer."""


OF_A_BACKEND = frozenset(
    {
        Obstacle.CAP,
        Obstacle.BUDGET,
        Obstacle.MEMORY,
        Obstacle.PAUSE,
        Obstacle.COOLDOWN,
        Obstacle.BREAKER,
        Obstacle.PRIORITY,
        Obstacle.NO_BACKEND,
    }
)
"""What meets every task of a backend, or every one that is less urgent."""


class Watcher:
    def __init__(self, center: Center, role: Role, *, once: bool = False) -> None:
        self._center = center
        self._role = role
        self._once = once
        self._surroundings = center.surroundings
        self._dispatcher = Dispatcher(self._surroundings, role, center.backends(os.environ), center.version.commit)
        self._heart = center.heart(role.name)
        self._children: list[subprocess.Popen[bytes]] = []
        self._followed: set[str] = set()
        self._poller: Poller | None = None
        self._poll_at = 0
        self._tend_at = 0
        self._tend_pause_ms = TEND_EVERY_MS
        self._bounds = OutputBounds()
        self._bound_at = 0
        self._bound_pause_ms = BOUND_EVERY_MS
        self._timers_at: dict[str, int] = {}
        self._wake_at: int | None = None
        self._was_hindered = False
        self._is_one_ending = False
        self._is_removed = False

    def run(self) -> int:
        """Until told to stop, or with ``once`` until what could start has ended.

        Raises LockHeld; LedgerReplaced and LedgerUnusable where going on would be on hope. Its runs go on.
        """
        lock_file = self._center.state.watcher_lock(self._role.name)
        lock = take_lock(lock_file, f"a watcher of role {self._role.name}")
        senders = Senders(self._surroundings, self._center.state.root, self._center.ledger.note)
        self._waiting = Waiting(self._center.state.wake, self._role.name, senders.judge)
        try:
            self._start()
            while not self._waiting.stop_requests and not self._is_done():
                self._turn()
                self._center.store.refuse_if_replaced()
                if not is_still_there(lock, lock_file):
                    _log.error("the lock %s was removed: another watcher may have taken this one's place", lock_file)
                    return 1
            self._end_submissions()
            with self._center.ledger.within(TAKE_OVER_WITHIN_S):
                self._guarded(partial(self._announce, ()))
            self._heart.beat("stopping")
        finally:
            self._waiting.close()
        _log.info("watcher of %s stops; %d of its runs go on", self._role.name, len(self._followed))
        return 0

    def _start(self) -> None:
        self._heart.beat("starting")
        report = reconcile_in_flight_on_startup(self._surroundings, role=self._role.name)
        _log.info("start-up reconciliation: %s", report.summary)
        with self._center.ledger.within(TAKE_OVER_WITHIN_S):
            self._guarded(self._take_over)
        self._heart.beat("ready")
        wake(self._center.state.wake, SUPERVISOR)
        _log.info("watcher of %s is ready", self._role.name)

    def _turn(self) -> None:
        """One turn of the loop: what ended, what needs care, what can start; then sleep."""
        self._was_hindered = False
        ended = self._waiting.wait(self._sleep_s())
        self._reap_children()
        self._surroundings.silence.awake.look()
        woken = self._waiting.take_wake_up()
        for run_id in ended:
            self._guarded(partial(self._settle, run_id))
            self._tend_pause_ms = TEND_AGAIN_MS
        job_ended = self._poller is not None and self._guarded(self._poller.turn)
        if woken or ended or job_ended or self._is_due(self._tend_at):
            self._guarded(self._tend)
        if self._is_due(self._bound_at):
            self._guarded(self._bound_output)
        if any((woken, ended, job_ended, self._is_idle_once, self._is_due(self._poll_at), self._is_due(self._wake_at))):
            self._guarded(self._poll)
        self._heart.beat("draining" if self._is_removed else "ready")

    def _guarded(self, step: Callable[[], T]) -> T | None:
        """A board that does not answer or a disk that is full ends a step, not the watcher."""
        try:
            return step()
        except (LedgerReplaced, LedgerUnusable):
            raise
        except (OperationsCenterError, OSError) as error:
            _log.warning("%s", error)
            self._was_hindered = True
            self._wake_at = self._now() + round(AGAIN_AFTER_S * 1000)
            return None

    # What is running

    def _take_over(self) -> None:
        """Adopt live runs of the role whose watcher is dead, and follow every run that is ours."""
        self._center.ledger.keep_lease(self._center.host, LEASE_MS)
        # Before the look: a keeper that ends in between is seen by the next.
        ending = self._ending_runs() if self._once else ()
        for report in adopt_own_runs(self._surroundings, self._role.name):
            _log.info("looked after a run of a dead watcher: %s", report.summary)
        runs = self._center.ledger.open_runs(role=self._role.name)
        self._is_one_ending = any(run.run_id in ending and run.watcher != self._center.me for run in runs)
        # One in doubt waits for a person, and not for us.
        ours = {run.run_id: run for run in runs if run.watcher == self._center.me and run.doubt is None}
        for run_id in self._followed - set(ours):
            self._forget(run_id)
        for run_id in set(ours) - self._followed:
            if not ours[run_id].is_job:
                self._follow(ours[run_id])
        for run in ours.values():
            if run.is_job:
                self._follow_job(run.run_id)
            elif run.state is RunState.RESERVED:
                self._record_late_start(run)

    def _ending_runs(self) -> set[str]:
        """Of dead watchers, with a keeper that lives. One that is not adopted is about to end, and then settled."""
        is_alive = self._surroundings.processes.is_alive
        left = [run for run in self._center.ledger.open_runs(role=self._role.name) if not is_alive(run.watcher)]
        return {run.run_id for run in left if (keeper := self._keeper_of(run)) is not None and is_alive(keeper)}

    def _keeper_of(self, run: Run) -> Process | None:
        return run.keeper or self._proven_keeper(run)

    def _proven_keeper(self, run: Run) -> Process | None:
        return proven_keeper(self._center.processes, run.run_id, self._center.state.path_of_run(run.run_id))

    def _record_late_start(self, run: Run) -> None:
        """A start that could not be recorded when it happened: the gate tells of it, as long as it is there."""
        keeper = self._proven_keeper(run)
        if keeper is not None:
            self._center.ledger.change_run(
                run,
                "run.adopted",
                state=RunState.RUNNING,
                keeper_pid=keeper.pid,
                keeper_ticks=keeper.start_ticks,
                started_at=self._center.clock.now().wall,
            )

    def _follow(self, run: Run) -> None:
        keeper = self._keeper_of(run)
        self._followed.add(run.run_id)
        if keeper is not None:
            self._waiting.for_end_of(run.run_id, keeper)
            self._bound(run.run_id, keeper, run.max_output)

    def _follow_job(self, run_id: str) -> None:
        """The first one makes the poller: a watcher without provider runs does not pay for it."""
        if self._poller is None:
            from operations_center.polling import Poller  # noqa: PLC0415

            self._poller = Poller(self._surroundings)
            self._waiting.for_readable(self._poller)
        self._followed.add(run_id)
        self._poller.follow(run_id)

    def _end_submissions(self) -> None:
        """Who left now would leave a doubt behind. A submission has an answer within its timeout."""
        poller = self._poller
        while poller is not None and poller.is_submitting:
            self._waiting.wait(BEAT_EVERY_MS / 1000)
            self._guarded(partial(poller.turn, begin=False))
            self._heart.beat("submitting")

    def _settle(self, run_id: str) -> None:
        """The keeper of a run has ended: the one reconciliation says what that means, and does it."""
        report = clear_orphaned_in_flight(self._surroundings, trigger=Trigger.WATCHER, scope=Scope(run_id=run_id))
        _log.info("run %s: %s", run_id, report.summary)
        self._heart.progress()
        run = self._center.ledger.run(run_id)
        if run is None or run.state not in OPEN or run.watcher != self._center.me:
            self._forget(run_id)

    def _forget(self, run_id: str) -> None:
        if self._poller is not None:
            self._poller.forget(run_id)
        self._followed.discard(run_id)
        self._waiting.forget(run_id)
        self._bounds.forget(run_id)
        self._surroundings.silence.forget(run_id)
        self._timers_at.pop(run_id, None)

    def _tend(self) -> None:
        """Stops, limits, cancelled tasks, leftovers, unfinished finishes; and runs without a watcher."""
        self._tend_at = self._now() + self._tend_pause_ms
        self._tend_pause_ms = min(2 * self._tend_pause_ms, TEND_EVERY_MS)
        self._take_over()
        runs = [run for run in self._center.ledger.open_runs(role=self._role.name) if run.run_id in self._followed]
        untold = [run for run in runs if run.state is RunState.SETTLING]
        if untold:
            self._center.settlement.finish_and_close(untold)
        for run_id in needs_attention(self._surroundings, [run for run in runs if run not in untold]):
            self._settle(run_id)
        for run in runs:
            if run.provider_job_id is not None and run.stop_outcome is not None and self._poller is not None:
                self._poller.look_soon(run.run_id)
            if run.state is RunState.RUNNING and run.keeper is not None:
                self._note_executor(run, run.keeper)
                self._replace_timer(run, run.keeper)

    def _note_executor(self, run: Run, keeper: Process) -> None:
        """Note it once, where the start could not: that finds its session when somebody has killed its keeper."""
        executor = executor_of(keeper) if run.executor is None else None
        if executor is not None:
            self._center.ledger.change_run(
                run, "run.executor_seen", executor_pid=executor.pid, executor_ticks=executor.start_ticks
            )

    def _replace_timer(self, run: Run, keeper: Process) -> None:
        """Its limits hold without it as long as we live; with another one they hold longer than we do."""
        now = self._now()
        if now < self._timers_at.get(run.run_id, 0):
            return
        left = run.deadline_mono - now if run.deadline_mono is not None else None
        limits = Limits(left, run.idle_timeout_ms, run.grace_ms, run.max_output)
        try:
            timer = replace_timer(self._center.state.run(run.run_id), limits, keeper)
        except OSError as error:
            _log.warning("cannot replace the timer of run %s: %s", run.run_id, error)
        else:
            if timer is None:
                return
            _log.warning("the timer of run %s has died: another one is started", run.run_id)
            self._children.append(timer)
        self._timers_at[run.run_id] = now + TIMER_AGAIN_MS

    def _bound(self, run_id: str, keeper: Process, limit: int | None) -> None:
        if limit is not None:
            self._bounds.watch(run_id, keeper, limit)
            self._bound_at, self._bound_pause_ms = self._now(), BOUND_AGAIN_MS

    def _bound_output(self) -> None:
        """Look more and more rarely while no run prints more than it may."""
        self._bound_at = self._now() + self._bound_pause_ms
        self._bound_pause_ms = min(2 * self._bound_pause_ms, BOUND_EVERY_MS)
        if self._bounds.enforce():
            self._bound_at, self._bound_pause_ms = self._now() + BOUND_AGAIN_MS, BOUND_AGAIN_MS

    # What can start

    def _poll(self) -> None:
        self._poll_at = self._now() + self._role.poll_interval_ms
        self._wake_at = None
        self._see_if_removed()
        if self._is_removed:
            self._announce(())
            return
        left = self._start_what_can()
        if not self._waiting.stop_requests:
            self._announce(left)
        self._wake_no_later_than(self._center.board.next_ready_at(self._role.task_kinds))

    def _see_if_removed(self) -> None:
        """The runs of a role that the configuration has no more are followed to their end, and nothing is begun."""
        center, was_removed = self._center, self._is_removed
        self._is_removed = is_role_removed(self._role.name, center.version.config, center.config, os.environ)
        if self._is_removed and not was_removed:
            _log.info("the configuration has the role %s no more: its runs are followed to their end", self._role.name)

    def _start_what_can(self) -> list[ReadyTask]:
        """Start ready tasks in their order; those that wait for a slot, as far as they were read."""
        open_backends, left = set(self._dispatcher.backends), list[ReadyTask]()
        for task in self._ready_tasks(open_backends):
            backend = self._dispatcher.backend_of(task)
            if backend in open_backends and self._has_room:
                if not _concern_backend(self._start_run(task)):
                    continue
                open_backends.discard(backend)
            left.append(task)
        return left

    def _ready_tasks(self, open_backends: Collection[str]) -> Iterator[ReadyTask]:
        """Page by page, and no further than something can start."""
        last = None
        while True:
            named = {*open_backends, None} if self._role.backend in open_backends else set[str | None](open_backends)
            page = self._center.board.ready(self._role.task_kinds, named, last)
            yield from page
            if len(page) < PAGE or not open_backends or not self._has_room:
                return
            last = page[-1]

    @property
    def _has_room(self) -> bool:
        return not self._waiting.stop_requests and len(self._followed) < self._role.concurrency

    def _announce(self, left: Sequence[ReadyTask]) -> None:
        """What waits goes before less urgent tasks of other roles, and not before these have heard of it."""
        wishes = [Wish(self._dispatcher.backend_of(task), task.task_id, task.urgency) for task in left]
        self._center.ledger.announce(self._role.name, self._role.concurrency, wishes)

    def _start_run(self, task: ReadyTask) -> Sequence[Refusal]:
        """Start a run of a task; why it may not run now, if it may not."""
        answer = self._dispatcher.dispatch(task)
        if isinstance(answer, Started):
            self._begin_to_follow(answer)
        elif isinstance(answer, Reserved):
            self._follow_job(answer.run.run_id)
            self._heart.progress()
        elif answer is not None:
            for refusal in answer:
                self._wake_no_later_than(refusal.until)
            return answer
        return ()

    def _begin_to_follow(self, started: Started) -> None:
        _log.info("run %s of task %s started, keeper %d", started.run.run_id, started.run.task_id, started.keeper.pid)
        self._children += started.children
        self._followed.add(started.run.run_id)
        self._waiting.for_end_of(started.run.run_id, started.keeper)
        self._bound(started.run.run_id, started.keeper, started.run.max_output)
        self._heart.progress()

    # Time

    def _now(self) -> int:
        return self._center.clock.now().monotonic

    def _is_due(self, moment: int | None) -> bool:
        return moment is not None and self._now() >= moment

    def _wake_no_later_than(self, wall: int | None) -> None:
        """Poll when that moment has come, in wall-clock ms."""
        if wall is not None:
            now = self._center.clock.now()
            moment = now.monotonic + max(0, wall - now.wall)
            self._wake_at = moment if self._wake_at is None else min(self._wake_at, moment)

    def _sleep_s(self) -> float:
        tend_at = self._tend_at if self._followed or self._is_one_ending else None
        job_at = self._poller.due_at if self._poller is not None else None
        bound_at = None if self._bounds.is_empty else self._bound_at
        moments = (self._poll_at, self._wake_at, tend_at, job_at, bound_at)
        return seconds_until(moments, self._now(), BEAT_EVERY_MS / 1000)

    @property
    def _is_idle_once(self) -> bool:
        """To end for want of work one has to have looked for it after the last end, whatever told of that."""
        return self._once and not self._followed

    def _is_done(self) -> bool:
        """Nothing is left to do only if everything that there is could be asked for."""
        if self._is_removed and not self._followed:
            return True
        return self._is_idle_once and self._poll_at > 0 and not self._was_hindered and not self._is_one_ending

    def _reap_children(self) -> None:
        """Keepers and timers that we started are our children: a zombie would hold its pid."""
        self._children = [child for child in self._children if child.poll() is None]


def _concern_backend(refusals: Sequence[Refusal]) -> bool:
    """Whether the refusal would meet every task of the backend, and not this one only."""
    return any(refusal.obstacle in OF_A_BACKEND for refusal in refusals)
