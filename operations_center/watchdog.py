"""The watchdog: the same reconciliation on a timer, and the health rules.

reconcile    what the watchers' own starts would find, also where no watcher starts
clocks       count the time that passes, whatever the wall clock says: retention goes by that
stalled      a watcher that is alive but does not turn its loop: dump its stack, end it, never its runs
output       a run that prints more than it may, also where no watcher lives: drop the middle
drain        a pause that a killed `down --drain` has left is ended
disk         almost full: pause admission, with the reason; resume when there is room again
reserve      room that is given back to the ledger when the disk is full
retention    forget closed runs, their directories and events, and releases that nobody needs
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from operations_center.care.retention import prune_closed_runs
from operations_center.clock import Now
from operations_center.config import format_size
from operations_center.errors import LedgerReplaced, LedgerUnusable, OperationsCenterError
from operations_center.files import RemovalBudget
from operations_center.fleet import look_at
from operations_center.heart import BEAT_EVERY_MS
from operations_center.identity import Process, is_alive
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.keeper.output import OutputBounds
from operations_center.ledger import LEASE_MS, Pause
from operations_center.locks import is_still_there, lock_holder, lock_within, take_lock
from operations_center.logs import STACK_DUMP
from operations_center.model import HOLDS_SLOT
from operations_center.pidfds import open_pidfd
from operations_center.pulse import Pulse, read_pulse
from operations_center.releases.config_copies import prune_config_copies
from operations_center.releases.retention import config_copies_in_use, prune_releases
from operations_center.senders import Senders
from operations_center.state_directory import WATCHDOG
from operations_center.store.reserve import Reserve
from operations_center.titles import is_one_of_ours
from operations_center.waiting import Waiting, seconds_until
from operations_center.wiring import Center

_log = logging.getLogger(__name__)

DUMP_WITHIN_S = 0.5
PRUNE_EVERY_MS = 60 * 60_000
PRUNE_AFTER_MS = 60_000

REMOVED_AT_MOST = 50_000
REMOVE_WITHIN_S = 2.0
"""Entries and time of a prune's removals in one cycle."""


class Watchdog:
    def __init__(self, center: Center, *, once: bool = False) -> None:
        self._center = center
        self._once = once
        self._heart = center.heart(WATCHDOG)
        self._awake = center.surroundings.silence.awake
        self._last_cycle: Now | None = None
        # Who has just begun is watched whether its loop turns, and to remove much takes long.
        self._prune_at = 0 if once else self._now().monotonic + PRUNE_AFTER_MS

    def run(self) -> int:
        """Until told to stop, or one cycle with ``once``. Raises LockHeld, LedgerReplaced, LedgerUnusable."""
        lock_file = self._center.state.watcher_lock(WATCHDOG)
        lock = take_lock(lock_file, "the watchdog")
        senders = Senders(self._center.surroundings, self._center.state.root, self._center.ledger.note)
        waiting = Waiting(self._center.state.wake, WATCHDOG, senders.judge)
        try:
            while not waiting.stop_requests:
                self._cycle()
                if self._once:
                    break
                self._sleep(waiting)
                if not is_still_there(lock, lock_file):
                    _log.error("the lock %s was removed: another watchdog may have taken this one's place", lock_file)
                    return 1
            self._beat("stopping")
        finally:
            waiting.close()
        return 0

    def _sleep(self, waiting: Waiting) -> None:
        next_cycle = self._now().monotonic + self._center.config.watchdog.every_ms
        while not waiting.stop_requests and self._now().monotonic < next_cycle:
            self._beat("ready")
            waiting.wait(seconds_until([next_cycle], self._now().monotonic, BEAT_EVERY_MS / 1000))
            waiting.take_wake_up()
            self._center.store.refuse_if_replaced()

    def _cycle(self) -> None:
        """Each rule on its own: one that fails is logged, and the others are still kept."""
        for rule in (
            self._reconcile,
            self._observe_clocks,
            self._replace_stalled,
            self._bound_output,
            self._watch_disk,
            self._keep_reserve,
            self._end_abandoned_drain,
            self._prune,
        ):
            self._beat("ready")
            self._guarded(rule)
        self._last_cycle = self._now()
        self._heart.progress()
        self._beat("ready")

    def _guarded(self, rule: Callable[[], None]) -> None:
        try:
            rule()
        except (LedgerReplaced, LedgerUnusable):
            raise
        except (OperationsCenterError, OSError) as error:
            _log.error("%s: %s", rule.__name__.strip("_"), error)

    def _reconcile(self) -> None:
        self._center.ledger.keep_lease(self._center.host, LEASE_MS)
        # A provider may take its time.
        surroundings = replace(self._center.surroundings, beat=lambda: self._beat("ready"))
        report = clear_orphaned_in_flight(surroundings, trigger=Trigger.WATCHDOG)
        if report.actions or report.unsure or report.violations or report.skipped:
            _log.info("reconciliation: %s", report.summary)
        for violation in report.violations:
            _log.error("promise broken: %s", violation)

    def _observe_clocks(self) -> None:
        seen = self._center.ledger.observe_clocks()
        if seen.jumped_at is not None and seen.steady_since == seen.boottime and seen.jumped_by:
            _log.warning(
                "the wall clock was set by %+d s; nothing is removed or counted by that", seen.jumped_by // 1000
            )

    def _replace_stalled(self) -> None:
        for role in self._center.config.roles:
            now, pulse = self._awake.look(), read_pulse(self._center.state.pulse(role))
            if pulse is not None and self._is_stalled(role, pulse, now):
                self._end_watcher(role, pulse)

    def _is_stalled(self, role: str, pulse: Pulse, now: Now) -> bool:
        stalled_after_ms = self._center.config.watchdog.stalled_after_ms
        # Who judges once was asked to, and cannot wait who is heard of again.
        awake_since = 0 if self._once else self._awake.since
        silent = is_stalled(pulse, now, awake_since, self._center.host.boot_id, stalled_after_ms)
        alive = silent and look_at(self._center.state, role).process == pulse.process
        return alive and self._heart.could_beat_for(stalled_after_ms)

    def _end_watcher(self, role: str, pulse: Pulse) -> None:
        """Its supervisor starts the next one, which adopts its runs."""
        silent_ms = self._now().monotonic - pulse.heartbeat_mono
        _log.warning("watcher %d of %s has not turned its loop for %d ms", pulse.pid, role, silent_ms)
        if dump_and_end(pulse.process):
            data = {"role": role, "pid": pulse.pid, "silent_ms": silent_ms, "by": "watchdog"}
            self._center.ledger.note("watcher.stalled", data)

    def _bound_output(self) -> None:
        bounds = OutputBounds()
        for run in self._center.ledger.open_runs():
            here = run.boot_id == self._center.host.boot_id and run.state in HOLDS_SLOT
            if here and run.max_output is not None and run.keeper is not None:
                bounds.watch(run.run_id, run.keeper, run.max_output)
        bounds.enforce()

    def _watch_disk(self) -> None:
        free = shutil.disk_usage(self._center.state.root).free
        least = self._center.config.watchdog.min_free_disk_bytes
        paused = any(pause.source == "watchdog" for pause in self._center.ledger.pauses())
        if free < least and not paused:
            reason = f"the disk is almost full: {free >> 20} MiB free, {format_size(least)} wanted"
            self._center.ledger.pause(Pause("*", "watchdog", reason, self._now().wall))
            _log.error("admission is paused: %s", reason)
        elif free >= least and paused:
            self._center.ledger.resume(None, "watchdog")
            self._center.wake_everybody()
            _log.info("admission goes on: %d MiB free", free >> 20)

    def _keep_reserve(self) -> None:
        """Made again when there is room: a stop on a full disk has given it back to the ledger."""
        Reserve(self._center.state.reserve).fill()

    def _end_abandoned_drain(self) -> None:
        """A `down --drain` that was killed has left its pause behind."""
        if not self._is_drain_abandoned():
            return
        with self._center.ledger.transaction():
            # Asked again: whoever begins to drain meanwhile has the lock, and pauses admission after this.
            if not self._is_drain_abandoned():
                return
            self._center.ledger.resume(None, "drain")
        self._center.wake_everybody()
        _log.warning("admission goes on: whoever drained the fleet is gone")

    def _is_drain_abandoned(self) -> bool:
        drains = any(pause.source == "drain" for pause in self._center.ledger.pauses())
        if not drains:
            return False
        holder = lock_holder(self._center.state.drain_lock)
        return holder is None or not is_one_of_ours(holder)

    def _prune(self) -> None:
        now = self._now()
        if now.monotonic < self._prune_at:
            return
        budget = None if self._once else RemovalBudget(REMOVED_AT_MOST, REMOVE_WITHIN_S)
        forgotten = prune_closed_runs(
            self._center.ledger,
            self._center.state.runs,
            older_than_ms=self._center.config.center.keep_ms,
            now_wall=now.wall,
            budget=budget,
        )
        # What is left is removed in the next cycles: to remove much takes long, and the loop has to turn.
        unfinished = budget is not None and budget.is_spent()
        self._prune_at = now.monotonic + (0 if unfinished else PRUNE_EVERY_MS)
        if forgotten:
            _log.info("forgot %d closed runs", forgotten)
        self._prune_releases()

    def _prune_releases(self) -> None:
        """Not while one is made: who makes it prunes as well."""
        center, settings = self._center, self._center.config.code_pull
        if settings is None:
            prune_config_copies(center.state, config_copies_in_use(center.state, center.deployments))
            return
        with lock_within(center.state.pull_lock, 0) as held:
            if held:
                gone = prune_releases(center.state, center.releases, center.ledger, center.deployments, settings.keep)
                for commit in gone:
                    _log.info("forgot release %s", commit)

    def _beat(self, state: str) -> None:
        self._awake.look()
        last = self._last_cycle
        self._heart.beat(state, last_cycle_at=last and last.wall, last_cycle_mono=last and last.monotonic)

    def _now(self) -> Now:
        return self._center.clock.now()


def is_stalled(pulse: Pulse, now: Now, awake_since: int, boot_id: str, stalled_after_ms: int) -> bool:
    """Alive, but silent for longer than a loop may take; of another boot nothing can be said.

    ``awake_since``: see Awake; ``now`` was taken before the pulse was read.
    """
    silent = now.monotonic - max(pulse.heartbeat_mono, awake_since)
    return pulse.boot_id == boot_id and silent > stalled_after_ms and is_alive(pulse.process)


def dump_and_end(process: Process) -> bool:
    """Let a process that hangs write its stack into its log, then KILL it; False if it had ended by itself."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, STACK_DUMP)
        # Nothing tells that the dump is written; a stopped process never writes one.
        time.sleep(DUMP_WITHIN_S)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
