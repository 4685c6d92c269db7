"""The supervisor: one per state directory; starts watchers and the watchdog, and starts them again.

It holds no run and writes nothing that a watcher needs: it may be killed at any moment. The next one finds
the watchers by their locks and goes on with them; so does the image that it replaces itself by when it is asked to.
"""

import logging
import random
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from operations_center.config import Config
from operations_center.errors import LedgerReplaced, OperationsCenterError
from operations_center.fleet import look_at
from operations_center.forking import Fork, Forked, ForkServer
from operations_center.heart import BEAT_EVERY_MS, Heart
from operations_center.identity import Process
from operations_center.keeper.stop import signal_processes
from operations_center.locks import is_still_there, take_lock
from operations_center.model import TaskState
from operations_center.pulse import Pulse, read_pulse
from operations_center.releases.deployment import Step, Version
from operations_center.state_directory import FORK_SERVER, PULL, SUPERVISOR, WATCHDOG
from operations_center.supervisor import child as machine
from operations_center.supervisor.child import Child, ChildState
from operations_center.supervisor.deploying import Deploying
from operations_center.supervisor.fork_server import live_anew
from operations_center.supervisor.image import INSTALLED_CODE, execute, why_not_start
from operations_center.supervisor.notify import notify, watchdog_interval_ms
from operations_center.supervisor.pulling import Pulling
from operations_center.supervisor.rollout import Become, Exchange, Fleet, Member, Wait
from operations_center.supervisor.spawner import Spawner, Spawners
from operations_center.waiting import Waiting, seconds_until
from operations_center.watchdog import dump_and_end, is_stalled
from operations_center.wiring import Center

_log = logging.getLogger(__name__)

STOP_WITHIN_MS = 5_000
"""A watcher that has not ended by then is killed; its runs go on."""

START_WITHIN_S = 0.5
"""As long as a note in the log or the end of a drain may keep the fleet from starting."""

TELL_AGAIN_MS = 2_000
UNTOLD_KEPT = 1_000
"""Notes that the ledger did not take are offered again, as many of the last ones as this."""

AGAIN_WITHIN_S = 2

DEPLOY_AGAIN_MS = 1_000
"""After a ledger that could not be written."""

EXIT_TEMPFAIL = 75


@dataclass(frozen=True, slots=True)
class Wishes:
    """How ``up`` was asked to behave; ``only`` names the roles, empty for all.

    ``lock`` is the descriptor of the supervisor's lock, where it is held already: by the image before this one.
    ``handed_back``: why an image that this one had executed ended.
    """

    only: Sequence[str] = ()
    exit_when_idle: bool = False
    lock: int | None = None
    handed_back: str | None = None


class Supervisor:
    """``end_executors`` ends every open run, when a second stop is asked for; ``on_ready`` is told once.

    ``fork_server`` was forked before anything was opened. ``words`` are those of the command line that runs such a
    supervisor, whatever its version.
    """

    def __init__(
        self,
        center: Center,
        wishes: Wishes,
        fork_server: ForkServer,
        words: Sequence[str],
        end_executors: Callable[[], object],
        on_ready: Callable[[], object],
    ) -> None:
        self._center = center
        self._wishes = wishes
        self._fork_server = fork_server
        self._words = words
        self._end_executors = end_executors
        self._on_ready = on_ready
        self._roles = list(wishes.only) or list(center.config.roles)
        self._children = {name: Child(name) for name in [*self._roles, WATCHDOG]}
        self._alive: dict[str, Process] = {}
        self._versions: dict[str, Version | None] = dict.fromkeys(self._children, center.version)
        self._started_at: dict[str, int] = {}
        self._ready_at: dict[str, int] = {}
        self._leaving: dict[str, int] = {}
        self._deaths = 0
        self._deploying: Deploying | None = None
        self._pulling: Pulling | None = None
        self._is_stuck = wishes.handed_back is not None
        self._begun_at = center.clock.now().monotonic
        self._deploy_at: int | None = 0
        self._heart = Heart(center.state.pulse(SUPERVISOR), center.clock, center.host, center.me, *center.version)
        self._announced = False
        self._notify_at = 0
        self._untold: list[tuple[str, dict[str, Any]]] = []
        self._tell_at = 0

    def run(self) -> int:
        """Until told to stop, or with ``exit_when_idle`` until nothing is left to do; 1 when the ledger is gone.

        Raises LockHeld.
        """
        lock_file = self._center.state.supervisor_lock
        self._lock = lock = take_lock(lock_file, "the supervisor", inherited=self._wishes.lock)
        self._waiting = Waiting(self._center.state.wake, SUPERVISOR)
        self._spawners = Spawners(self._start_fork_server, self._center.clock, self._waiting)
        self._spawners.of(self._center.version.commit).take(self._fork_server)
        try:
            self._end_old_drain()
            self._begin_to_deploy()
            self._note("supervisor.started", {"roles": self._roles})
            self._recognise_survivors()
            while not self._waiting.stop_requests and not self._is_idle():
                self._turn()
                if self._is_ledger_gone():
                    break
                if not is_still_there(lock, lock_file):
                    _log.error("the lock %s was removed: another supervisor may have taken this one's place", lock_file)
                    break
                if self._waiting.take_re_execution():
                    self._become(self._center.version)
            self._stop()
        finally:
            self._waiting.close()
        return 1 if self._is_ledger_gone() else 0

    def _turn(self) -> None:
        self._spawners.start_due()
        self._start_due()
        if self._now() >= self._tell_at:
            self._write_notes()
        self._beat()
        ended = self._waiting.wait(self._sleep_s())
        self._waiting.take_wake_up()
        for answer in self._spawners.take_answers():
            self._take(answer)
        for name in ended:
            self._bury_any(name)
        self._see_who_is_ready()
        self._replace_stalled_watchdog()
        self._deploy()

    def _bury_any(self, name: str) -> None:
        spawner = self._spawners.named(name)
        if spawner is not None:
            self._bury_fork_server(spawner)
        elif name == PULL:
            self._bury_pull()
        else:
            self._bury(name)

    # Starting

    def _end_old_drain(self) -> None:
        """To be started again ends a drain; where the ledger is busy, the watchdog ends it later."""
        try:
            with self._center.ledger.within(START_WITHIN_S):
                self._center.ledger.resume(None, "drain")
        except OperationsCenterError as error:
            _log.warning("cannot end a drain: %s", error)

    def _recognise_survivors(self) -> None:
        for name in self._children:
            self._take_over(name)

    def _take_over(self, name: str) -> bool:
        found = look_at(self._center.state, name).process
        if found is None:
            return False
        _log.info("%s goes on: process %d was there already", name, found.pid)
        self._note("watcher.recognised", {"role": name, "pid": found.pid})
        self._children[name] = machine.found_alive(self._children[name])
        pulse = read_pulse(self._center.state.pulse(name))
        if pulse is not None and pulse.process == found:
            self._versions[name] = Version(pulse.release, pulse.config)
        self._attend(name, found)
        return True

    def _start_due(self) -> None:
        for name, child in self._children.items():
            version = self._versions[name]
            if child.is_due(self._now()) and version and (spawner := self._spawners.of(version.commit)).is_ready:
                self._children[name] = machine.started(child)
                spawner.ask(self._request(name, version))

    def _request(self, name: str, version: Version) -> Fork:
        state = self._center.state
        copy = str(state.config_copy(version.config)) if version.config else ""
        return Fork(name, str(self._center.config.file), str(state.log(name)), version.commit, copy)

    def _start_fork_server(self, commit: str | None) -> ForkServer:
        runtime = self._center.runtime(commit)
        return ForkServer.start(partial(live_anew, runtime), self._center.state.log(FORK_SERVER))

    def _take(self, answer: Forked) -> None:
        if answer.process is None:
            _log.error("cannot start %s: %s", answer.name, answer.error)
            self._children[answer.name] = self._ended(answer.name, by_itself=True)
            return
        _log.info("%s starts: process %d", answer.name, answer.process.pid)
        self._attend(answer.name, answer.process)

    def _bury_fork_server(self, spawner: Spawner) -> None:
        """What it has forked goes on; whoever it was asked for is not to blame."""
        for name in spawner.bury():
            self._children[name] = machine.not_started(self._children[name], self._now())

    def _end_fork_servers(self) -> None:
        for answer in self._spawners.end():
            self._take(answer)

    def _attend(self, name: str, process: Process) -> None:
        self._alive[name] = process
        self._started_at[name] = self._now()
        self._ready_at.pop(name, None)
        self._waiting.for_end_of(name, process)

    # Watching

    def _see_who_is_ready(self) -> None:
        for name, process in self._alive.items():
            if self._children[name].state is ChildState.STARTING and (pulse := self._pulse_of(name, process)):
                if pulse.state != "ready":
                    continue
                self._children[name] = machine.became_ready(self._children[name], self._now())
                self._ready_at[name] = pulse.heartbeat_mono
                self._note("watcher.ready", {"role": name, "pid": process.pid, "release": pulse.release})
                _log.info("%s is ready: process %d", name, process.pid)
        self._announce()

    def _pulse_of(self, name: str, process: Process | None) -> Pulse | None:
        pulse = read_pulse(self._center.state.pulse(name))
        return pulse if pulse is not None and pulse.process == process else None

    def _announce(self) -> None:
        all_ready = all(child.state is ChildState.READY for child in self._children.values())
        if all_ready and not self._announced:
            self._announced = True
            self._on_ready()
            notify("READY=1", f"STATUS={len(self._roles)} watchers are ready")
            _log.info("up: %d watchers and the watchdog are ready", len(self._roles))

    def _bury(self, name: str) -> None:
        """A child has ended: when it comes back depends on whether it had been ready."""
        process = self._alive.pop(name)
        code = self._spawners.exit_code_of(process)
        if self._leaving.pop(name, None) is not None:
            self._exchange_now(name)
            return
        if code == EXIT_TEMPFAIL and self._take_over(name):
            return
        if self._is_on_trial(name):
            self._deaths += 1
            self._note("watcher.ended", {"role": name, "pid": process.pid, "exit_code": code, "state": "on trial"})
            self._exchange_now(name)
            return
        self._children[name] = child = self._ended(name, by_itself=code is not None and code >= 0)
        _log.warning("%s ended (%s); it is %s", name, _how(code), child.state)
        self._note("watcher.ended", {"role": name, "pid": process.pid, "exit_code": code, "state": child.state})

    def _ended(self, name: str, *, by_itself: bool) -> Child:
        return machine.ended(self._children[name], self._now(), random.random(), by_itself=by_itself)

    def _replace_stalled_watchdog(self) -> None:
        """Nobody else looks after the one who looks after the others."""
        pulse = read_pulse(self._center.state.pulse(WATCHDOG))
        if pulse is None or pulse.process != self._alive.get(WATCHDOG):
            return
        settings = self._center.config.watchdog
        silent = is_stalled(pulse, self._center.clock.now(), self._center.host.boot_id, settings.stalled_after_ms)
        if silent and self._heart.could_beat_for(settings.stalled_after_ms):
            _log.error("the watchdog %d does not turn its loop; it is replaced", pulse.pid)
            self._note("watcher.stalled", {"role": WATCHDOG, "pid": pulse.pid, "by": "supervisor"})
            dump_and_end(pulse.process)

    def _beat(self) -> None:
        up = all(child.state is ChildState.READY for child in self._children.values())
        self._heart.beat("up" if up else "starting", roles=self._roles, children=self._children_as_json())
        interval = watchdog_interval_ms()
        if interval is not None and self._now() >= self._notify_at:
            self._notify_at = self._now() + interval
            notify("WATCHDOG=1")

    def _children_as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "pid": self._alive[name].pid if name in self._alive else None,
                "state": child.state,
                "restarts": max(child.restarts, 0),
            }
            for name, child in self._children.items()
        ]

    # Another version

    def _begin_to_deploy(self) -> None:
        if self._center.config.code_pull is None:
            return
        self._pulling = Pulling(self._center, self._waiting)
        self._deploying = Deploying(
            self._center, handed_over=self._wishes.lock is not None, handed_back=self._wishes.handed_back
        )
        self._versions = dict.fromkeys(self._versions, self._deploying.deployment.current)

    def _deploy(self) -> None:
        """Make the moves that bring every process to what it is to run; see rollout.py."""
        if self._deploying is None or self._pulling is None:
            return
        try:
            self._pulling.start_if_due()
            self._kill_who_does_not_leave()
            if self._deploying.look_for_more():
                self._deaths = 0
            while not isinstance(move := self._deploying.next_move(self._seen(), self._now()), Wait):
                if not self._make(move):
                    return
            self._deploy_at = move.until
            self._end_unused_fork_servers()
        except OperationsCenterError as error:
            _log.error("cannot go on with a rollout: %s", error)
            self._deploy_at = self._now() + DEPLOY_AGAIN_MS

    def _make(self, move: Exchange | Become) -> bool:
        """False when there is something to be waited for first."""
        if isinstance(move, Become):
            self._become(move.version)
            self._is_stuck = True
            return True
        if move.version is not None and not self._spawners.of(move.version.commit).is_ready:
            return False
        self._note("watcher.exchanged", {"role": move.name, "release": move.version.commit if move.version else None})
        self._versions[move.name] = move.version
        if move.name in self._alive:
            self._leaving[move.name] = self._now() + STOP_WITHIN_MS
            signal_processes([self._alive[move.name]], signal.SIGTERM)
        else:
            self._exchange_now(move.name)
        return True

    def _exchange_now(self, name: str) -> None:
        child = self._children[name]
        is_wanted = self._versions[name] is not None
        self._children[name] = machine.exchanged(child, self._now()) if is_wanted else machine.stopped(child)
        self._ready_at.pop(name, None)

    def _kill_who_does_not_leave(self) -> None:
        late = [self._alive[name] for name, kill_at in self._leaving.items() if self._now() >= kill_at]
        signal_processes(late, signal.SIGKILL)

    def _is_on_trial(self, name: str) -> bool:
        if self._deploying is None:
            return False
        deployment = self._deploying.deployment
        return deployment.step not in (None, Step.BACK) and self._versions[name] == deployment.target

    def _seen(self) -> Fleet:
        assert self._deploying is not None
        target = self._deploying.deployment.target
        spawner_deaths = self._spawners.of(target.commit).deaths if target is not None else 0
        return Fleet(
            me=self._center.version,
            mine_since=self._begun_at,
            members=[self._member(name) for name in self._children],
            deaths=self._deaths + spawner_deaths,
            stuck=self._is_stuck,
        )

    def _member(self, name: str) -> Member:
        assert self._deploying is not None
        pulse = self._pulse_of(name, self._alive.get(name))
        return Member(
            name,
            self._versions[name],
            wanted=name == WATCHDOG or name in self._deploying.roles,
            started_at=self._started_at.get(name, self._now()),
            ready_at=self._ready_at.get(name) if name in self._alive and name not in self._leaving else None,
            beat_at=pulse.heartbeat_mono if pulse else 0,
        )

    def _end_unused_fork_servers(self) -> None:
        assert self._deploying is not None
        deployment = self._deploying.deployment
        used = {version.commit for version in self._versions.values() if version}
        wanted = {version.commit for version in (deployment.current, deployment.target) if version}
        for answer in self._spawners.keep(used | wanted):
            self._take(answer)

    def _bury_pull(self) -> None:
        assert self._pulling is not None
        self._pulling.bury()

    def _become(self, version: Version) -> None:
        """Execute the supervisor of a version, in this same process; returns only when that cannot start."""
        runtime, file = self._center.runtime(version.commit), self._center.config.file
        copy = self._center.state.config_copy(version.config) if version.config else None
        refusal = why_not_start(runtime, file, copy)
        if refusal is None:
            self._note("supervisor.re_executed", {"release": version.commit})
            self._write_notes()
            # The next image makes its own, of its own code.
            self._end_fork_servers()
            before = self._center.runtime(self._center.version.commit).command(*self._words_of(self._center.version))
            failure = execute(runtime, self._words_of(version), self._lock, before)
            refusal = f"cannot execute {runtime.python}: {failure}"
        _log.error("goes on as it is: %s", refusal)
        self._note("supervisor.re_execution_refused", {"reason": refusal})

    def _words_of(self, version: Version) -> list[str]:
        copy = ["--config-copy", str(self._center.state.config_copy(version.config))] if version.config else []
        release = ["--release", version.commit or INSTALLED_CODE] if self._deploying else []
        return [*self._words, *release, *copy]

    # Ending

    def _is_idle(self) -> bool:
        """Nothing that this fleet could run is ready, waiting for a retry, or running."""
        if not self._wishes.exit_when_idle or not self._announced:
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
        notify("STOPPING=1")
        self._heart.beat("stopping", roles=self._roles, children=self._children_as_json())
        kill_at = self._now() + STOP_WITHIN_MS
        self._end_fork_servers()
        if self._pulling is not None:
            self._pulling.end()
        signal_processes(self._alive.values(), signal.SIGTERM)
        while self._alive:
            if self._now() >= kill_at:
                signal_processes(self._alive.values(), signal.SIGKILL)
            for name in self._waiting.wait(0.2):
                if self._alive.pop(name, None) is not None:
                    self._children[name] = machine.stopped(self._children[name])
            self._waiting.take_wake_up()
        self._wait_for_second_thoughts()
        if self._waiting.stop_requests > 1:
            self._end_executors()
        self._heart.beat("stopped", roles=self._roles, children=self._children_as_json())
        self._say_what_is_left()

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
        self._note("supervisor.stopped", {})
        self._write_notes()
        _log.info("stopped" + (f"; {running} on, to be adopted by the next `up`" if running else ""))

    def _executors_left(self) -> str:
        """ "2 executors run", empty for none or where the ledger cannot tell."""
        try:
            count = len(self._center.ledger.open_runs())
        except OperationsCenterError as error:
            _log.warning("%s", error)
            return ""
        return "" if not count else "1 executor runs" if count == 1 else f"{count} executors run"

    # Time and notes

    def _now(self) -> int:
        return self._center.clock.now().monotonic

    def _sleep_s(self) -> float:
        notify_at = self._notify_at if watchdog_interval_ms() is not None else None
        pull_at = self._pulling.due_at if self._pulling else None
        deploy_at = self._deploy_at if self._deploying else None
        moments = [*self._starts(), *self._spawners.moments(), *self._leaving.values(), notify_at, pull_at, deploy_at]
        return seconds_until(moments, self._now(), BEAT_EVERY_MS / 1000)

    def _starts(self) -> list[int | None]:
        """When children are due; one whose fork server is not there yet waits for that."""
        return [
            child.start_at
            for name, child in self._children.items()
            if (version := self._versions[name]) and self._spawners.of(version.commit).is_ready
        ]

    def _note(self, kind: str, data: dict[str, Any]) -> None:
        """The log explains every moment; it is written when whoever is due has been started."""
        self._untold.append((kind, {"supervisor": self._center.me.pid, **data}))

    def _write_notes(self) -> None:
        """A ledger that is busy must not keep the fleet from starting; one that is full takes them later."""
        if not self._untold:
            return
        try:
            with self._center.ledger.within(START_WITHIN_S), self._center.ledger.transaction():
                for kind, data in self._untold:
                    self._center.ledger.note(kind, data)
        except OperationsCenterError as error:
            _log.warning("cannot note %d events: %s", len(self._untold), error)
            self._tell_at = self._now() + TELL_AGAIN_MS
            del self._untold[:-UNTOLD_KEPT]
        else:
            self._untold.clear()


def is_idle(center: Center, roles: Sequence[str]) -> bool:
    """Whether these roles have nothing to run now and nothing that they will retry by themselves."""
    kinds = [kind for role in roles for kind in center.config.roles[role].task_kinds]
    with center.ledger.snapshot():
        runnable = [task for task in center.board.ready(kinds) if _could_run(center.config, task.backend)]
        open_runs = [run for run in center.ledger.open_runs() if run.role in roles]
        running = [task for task in center.board.tasks(TaskState.RUNNING) if task.kind in kinds]
    return not runnable and not open_runs and not running


def _could_run(config: Config, backend: str | None) -> bool:
    return backend is None or backend in config.backends


def _how(code: int | None) -> str:
    if code is None:
        return "not our child: no exit code"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
