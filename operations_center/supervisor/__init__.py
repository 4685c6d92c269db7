"""The supervisor: one per state directory; starts watchers and the watchdog, and starts them again.

It holds no run and writes nothing that a watcher needs: it may be killed at any moment. The next one finds
the watchers by their locks and goes on with them; so does the image that it replaces itself by when it is asked to.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from operations_center.config import load_config
from operations_center.errors import LedgerReplaced, OperationsCenterError
from operations_center.forking import ForkServer
from operations_center.heart import BEAT_EVERY_MS, Awake
from operations_center.in_flight_reconcile import look_for_executors
from operations_center.locks import is_still_there, take_lock
from operations_center.pidfds import reap_others
from operations_center.pulse import read_pulse
from operations_center.releases.config_copies import keep_copy, refuse_to_move
from operations_center.releases.deployment import Version
from operations_center.senders import Senders
from operations_center.state_directory import PULL, RELOAD, SUPERVISOR, WATCHDOG
from operations_center.supervisor.crew import Crew
from operations_center.supervisor.deploying import Deploying, Steady
from operations_center.supervisor.idle import is_idle
from operations_center.supervisor.image import INSTALLED_CODE, end_for_good, execute, loop_turned, why_not_start
from operations_center.supervisor.notes import LAST_WITHIN_S, START_WITHIN_S, Notes
from operations_center.supervisor.notify import notify, watchdog_interval_ms
from operations_center.supervisor.pulling import Pulling
from operations_center.supervisor.reloading import Reloading
from operations_center.supervisor.rollout import Become, Exchange, Fleet, Wait
from operations_center.waiting import Waiting, seconds_until
from operations_center.watchdog import dump_and_end, is_stalled
from operations_center.wiring import Center

_log = logging.getLogger(__name__)

AGAIN_WITHIN_S = 2

WATCHERS_SHARE = 4
"""A watcher that hangs may take this part of the time that a stop has for all."""

DEPLOY_AGAIN_MS = 1_000
"""After a ledger that could not be written."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How ``up`` was asked to behave; ``only`` names the roles, empty for all.

    ``lock`` is the descriptor of the supervisor's lock, where it is held already: by the image before this one.
    ``handed_back``: why an image that this one had executed ended. ``reload_on_hang_up``: no terminal that closes can
    be meant. ``stop_timeout_ms``: executors end with the fleet, in this time; None: they run on.
    """

    only: Sequence[str] = ()
    exit_when_idle: bool = False
    lock: int | None = None
    handed_back: str | None = None
    reload_on_hang_up: bool = False
    stop_timeout_ms: int | None = None


class Supervisor:
    """``end_executors`` ends every open run, in so many seconds if it is told: when a second stop is asked for, or when
    they cannot outlive us. ``on_ready`` is told once.

    ``fork_server`` was forked before anything was opened. ``words`` are those of the command line that runs such a
    supervisor, whatever its version.
    """

    def __init__(
        self,
        center: Center,
        wishes: Wishes,
        fork_server: ForkServer,
        words: Sequence[str],
        end_executors: Callable[[float | None], object],
        on_ready: Callable[[], object],
    ) -> None:
        self._center = center
        self._wishes = wishes
        self._fork_server = fork_server
        self._words = words
        self._end_executors = end_executors
        self._on_ready = on_ready
        self._roles = list(wishes.only) or list(center.config.roles)
        self._deploying: Deploying | Steady | None = None
        self._pulling: Pulling | None = None
        self._awake = Awake(center.clock)
        self._begun_at = self._awake.since
        self._deploy_at: int | None = None
        self._heart = center.heart(SUPERVISOR)
        self._announced = False
        self._is_systemd_told = False
        self._notify_at = 0
        self._notes = Notes(center)

    def run(self) -> int:
        """Until told to stop, or with ``exit_when_idle`` until nothing is left to do; 1 when the ledger is gone.

        Raises LockHeld.
        """
        lock_file = self._center.state.supervisor_lock
        self._lock = lock = take_lock(lock_file, "the supervisor", inherited=self._wishes.lock)
        senders = Senders(self._center.surroundings, self._center.state.root, self._notes.add)
        self._waiting = Waiting(
            self._center.state.wake, SUPERVISOR, senders.judge, reload_on_hang_up=self._wishes.reload_on_hang_up
        )
        self._reloading = Reloading(self._center, self._waiting)
        self._crew = Crew(self._center, self._roles, self._waiting, self._fork_server, self._awake, self._notes.add)
        try:
            self._end_old_drain()
            self._begin_to_deploy()
            self._notes.add("supervisor.started", {"roles": self._roles})
            self._crew.recognise_survivors(self._current)
            # A watcher whose role is gone learns that from the configuration which our heartbeat names.
            self._beat()
            self._center.wake_everybody()
            while not self._waiting.stop_requests and not self._is_idle():
                self._turn()
                if self._is_ledger_gone():
                    break
                if not is_still_there(lock, lock_file):
                    _log.error("the lock %s was removed: another supervisor may have taken this one's place", lock_file)
                    break
                if self._waiting.take_re_execution():
                    self._start_anew()
                if self._waiting.take_reload():
                    self._reloading.ask()
            self._stop()
        finally:
            self._waiting.close()
        return 1 if self._is_ledger_gone() else self._waiting.exit_code

    @property
    def _own_children(self) -> set[int | None]:
        return {*self._crew.pids, self._reloading.pid, self._pulling.pid if self._pulling is not None else None}

    def _start_anew(self) -> None:
        """Become what is installed now, with the configuration as it is now; then the others follow."""
        try:
            self._become(self._present_version())
        except (OperationsCenterError, OSError) as error:
            self._refuse_to_become(" ".join(str(error).split()))

    def _present_version(self) -> Version:
        """With the file as it is now. Raises ConfigError, OSError."""
        center = self._center
        if center.config.code_pull is not None:
            # It is rolled out by itself, with a trial.
            return center.version
        name = keep_copy(center.config.file, center.state)
        refuse_to_move(center.config, load_config(center.config.file, os.environ, center.state.config_copy(name)))
        return center.version._replace(config=name)

    def _turn(self) -> None:
        self._crew.start_due()
        self._notes.write_if_due()
        self._beat()
        ended = self._waiting.wait(self._sleep_s())
        self._waiting.take_wake_up()
        self._crew.take_answers()
        for name in ended:
            if name == PULL and self._pulling is not None:
                self._pulling.bury()
            elif name == RELOAD:
                self._reloading.bury()
            else:
                self._crew.bury(name)
        reap_others(self._own_children)
        self._crew.see_who_is_ready()
        self._announce()
        self._replace_stalled_watchdog()
        self._deploy()
        loop_turned(on_trial=self._is_deploying)

    # Starting

    def _end_old_drain(self) -> None:
        """To be started again ends a drain; where the ledger is busy, the watchdog ends it later.

        An image that goes on for another one was not started by anybody.
        """
        if self._wishes.lock is not None:
            return
        try:
            with self._center.ledger.within(START_WITHIN_S):
                self._center.ledger.resume(None, "drain")
        except OperationsCenterError as error:
            _log.warning("cannot end a drain: %s", error)

    # Watching

    def _announce(self) -> None:
        if self._crew.is_ready and not self._is_systemd_told:
            self._is_systemd_told = notify("READY=1", f"STATUS={len(self._roles)} watchers are ready")
        if self._crew.is_ready and not self._announced:
            self._announced = True
            self._on_ready()
            _log.info("up: %d watchers and the watchdog are ready", len(self._roles))

    def _replace_stalled_watchdog(self) -> None:
        """Nobody else looks after the one who looks after the others."""
        now, pulse = self._awake.look(), read_pulse(self._center.state.pulse(WATCHDOG))
        if pulse is None or pulse.process != self._crew.process_of(WATCHDOG):
            return
        stalled_after_ms = self._center.config.watchdog.stalled_after_ms
        silent = is_stalled(pulse, now, self._awake.since, self._center.host.boot_id, stalled_after_ms)
        if silent and self._heart.could_beat_for(stalled_after_ms):
            _log.error("the watchdog %d does not turn its loop; it is replaced", pulse.pid)
            self._notes.add("watcher.stalled", {"role": WATCHDOG, "pid": pulse.pid, "by": "supervisor"})
            dump_and_end(pulse.process)

    def _beat(self) -> None:
        state = "up" if self._crew.is_ready else "starting"
        problem = self._pulling.problem if self._pulling else None
        self._heart.beat(state, roles=self._roles, children=self._crew.as_json(), pull_problem=problem)
        interval = watchdog_interval_ms()
        if interval is not None and self._now() >= self._notify_at:
            self._notify_at = self._now() + interval
            notify("WATCHDOG=1")

    # Another version

    def _begin_to_deploy(self) -> None:
        """Where the ledger is busy or full, it is tried again."""
        if self._center.config.code_pull is None:
            self._deploying = Steady(self._center)
            if self._wishes.handed_back is not None:
                self._refuse_to_become(self._wishes.handed_back)
            return
        self._pulling = self._pulling or Pulling(self._center, self._waiting)
        try:
            with self._center.ledger.within(START_WITHIN_S):
                self._deploying = Deploying(
                    self._center, handed_over=self._wishes.lock is not None, handed_back=self._wishes.handed_back
                )
        except OperationsCenterError as error:
            _log.error("cannot tell what is to be rolled out: %s", error)
            self._deploy_at = self._now() + DEPLOY_AGAIN_MS

    @property
    def _current(self) -> Version:
        return self._deploying.deployment.current if self._deploying else self._center.version

    @property
    def _is_deploying(self) -> bool:
        return self._deploying is not None and self._deploying.deployment.step is not None

    def _deploy(self) -> None:
        """Make the moves that bring every process to what it is to run; see rollout.py."""
        if self._deploying is None:
            self._begin_to_deploy()
        if self._deploying is None:
            return
        try:
            if self._pulling is not None:
                self._pulling.start_if_due()
            self._crew.kill_who_does_not_leave()
            self._deploying.look_for_more()
            self._deploy_at = self._move(self._deploying)
            self._crew.keep_fork_servers(self._deploying.commits)
        except OperationsCenterError as error:
            _log.error("cannot go on with a rollout: %s", error)
            self._deploy_at = self._now() + DEPLOY_AGAIN_MS

    def _move(self, deploying: Deploying | Steady) -> int | None:
        """As far as it goes now; when to look again, in monotonic ms."""
        while True:
            self._crew.put_on_trial(deploying.on_trial)
            now = self._awake.look().monotonic
            move = deploying.next_move(self._seen(deploying), now)
            match move:
                case Wait(until):
                    return until
                case Become(version):
                    self._become(version)
                    deploying.refused = version
                case Exchange(name, version):
                    if not self._crew.exchange(name, version):
                        return None

    def _seen(self, deploying: Deploying | Steady) -> Fleet:
        # After the time was taken by which they are judged.
        self._crew.see_who_is_ready()
        current = deploying.deployment.current
        return Fleet(
            me=self._center.version,
            mine_since=self._begun_at,
            awake_since=self._awake.since,
            can_go_back=self._crew.can_start(current.commit),
            members=list(self._crew.members(deploying.roles)),
            deaths=self._crew.deaths,
            refused=deploying.refused,
        )

    def _become(self, version: Version) -> None:
        """Execute the supervisor of a version, in this same process; returns only when that cannot start.

        Raises Unavailable when that cannot be told.
        """
        runtime, file = self._center.runtime(version.commit), self._center.config.file
        copy = self._center.state.config_copy(version.config) if version.config else None
        refusal = why_not_start(runtime, file, copy)
        if refusal is None:
            self._notes.add("supervisor.re_executed", {"release": version.commit})
            self._notes.write(LAST_WITHIN_S)
            # The next image makes its own, of its own code.
            self._crew.end_fork_servers()
            if self._pulling is not None:
                self._pulling.end()
            before = self._center.runtime(self._center.version.commit).command(*self._words_of(self._center.version))
            failure = execute(runtime, self._words_of(version), self._lock, before)
            refusal = f"cannot execute {runtime.python}: {failure}"
        self._refuse_to_become(refusal)

    def _refuse_to_become(self, reason: str) -> None:
        _log.error("goes on as it is: %s", reason)
        self._notes.add("supervisor.re_execution_refused", {"reason": reason})

    def _words_of(self, version: Version) -> list[str]:
        copy = ["--config-copy", str(self._center.state.config_copy(version.config))] if version.config else []
        release = ["--release", version.commit or INSTALLED_CODE] if version.config else []
        return [*self._words, *release, *copy]

    # Ending

    def _is_idle(self) -> bool:
        """Nothing that this fleet could run is ready, waiting for a retry, or running."""
        if not self._wishes.exit_when_idle or not self._announced or self._is_deploying:
            return False
        try:
            return is_idle(self._center, self._roles)
        except OperationsCenterError as error:
            _log.warning("%s", error)
            return False

    def _is_ledger_gone(self) -> bool:
        """A fleet that went on would work on what nobody else sees; executors run on."""
        try:
            self._center.store.refuse_if_replaced()
        except LedgerReplaced as error:
            _log.error("%s", error)
            return True
        return False

    def _stop(self) -> None:
        """Watchers stop, executors run on and are adopted by the next ``up``; asked twice, they end as well."""
        began_at = self._now()
        end_for_good()
        notify("STOPPING=1")
        self._heart.beat("stopping", roles=self._roles, children=self._crew.as_json())
        self._suspend_rollout()
        if self._pulling is not None:
            self._pulling.end()
        if self._wishes.stop_timeout_ms is not None:
            self._stop_all(began_at, self._wishes.stop_timeout_ms)
        else:
            self._stop_crew()
        self._heart.beat("stopped", roles=self._roles, children=self._crew.as_json())
        self._say_what_is_left()

    def _stop_crew(self) -> None:
        self._crew.stop()
        self._wait_for_second_thoughts()
        if self._waiting.stop_requests > 1:
            self._end_executors(None)

    def _stop_all(self, began_at: int, within_ms: int) -> None:
        """Watchers first: they would start tasks again whose runs are ended. What is cut off costs no attempt."""
        self._crew.stop(within_ms // WATCHERS_SHARE)
        try:
            self._end_executors(max(began_at + within_ms - self._now(), 0) / 1000)
        except OperationsCenterError as error:
            _log.error("%s", error)

    def _suspend_rollout(self) -> None:
        if self._deploying is None or not self._waiting.stop_requests:
            return
        try:
            with self._center.ledger.within(START_WITHIN_S):
                self._deploying.suspend()
        except OperationsCenterError as error:
            _log.warning("cannot note that a rollout is suspended: %s", error)

    def _wait_for_second_thoughts(self) -> None:
        """A person at a terminal could not press Ctrl-C twice before we are gone."""
        running = self._executors_left()
        if not running or not self._waiting.interrupted or not sys.stdin.isatty():
            return
        _log.info("%s on; press Ctrl-C again within %d s to end them", running, AGAIN_WITHIN_S)
        deadline = self._now() + AGAIN_WITHIN_S * 1000
        while self._waiting.stop_requests < 2 and self._now() < deadline:
            self._waiting.wait((deadline - self._now()) / 1000)
            self._waiting.take_wake_up()

    def _say_what_is_left(self) -> None:
        running = self._executors_left()
        self._notes.add("supervisor.stopped", {})
        self._notes.write()
        _log.info("stopped" + (f"; {running} on, to be adopted by the next `up`" if running else ""))

    def _executors_left(self) -> str:
        """ "2 executors run", empty for none or where the ledger cannot tell."""
        try:
            count = look_for_executors(self._center.surroundings).count
        except OperationsCenterError as error:
            _log.warning("%s", error)
            return ""
        return "" if not count else "1 executor runs" if count == 1 else f"{count} executors run"

    # Time

    def _now(self) -> int:
        return self._center.clock.now().monotonic

    def _sleep_s(self) -> float:
        notify_at = self._notify_at if watchdog_interval_ms() is not None else None
        pull_at = self._pulling.due_at if self._pulling else None
        moments = [*self._crew.moments(), notify_at, pull_at, self._deploy_at]
        return seconds_until(moments, self._now(), BEAT_EVERY_MS / 1000)
