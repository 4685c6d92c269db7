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
from typing import Any

from operations_center.config import Config
from operations_center.errors import LedgerReplaced, OperationsCenterError
from operations_center.fleet import look_at
from operations_center.forking import Forked, ForkServer
from operations_center.heart import BEAT_EVERY_MS, Heart
from operations_center.identity import Process
from operations_center.keeper.stop import signal_processes
from operations_center.locks import is_still_there, take_lock
from operations_center.model import TaskState
from operations_center.pulse import read_pulse
from operations_center.state_directory import FORK_SERVER, SUPERVISOR, WATCHDOG
from operations_center.supervisor import child as machine
from operations_center.supervisor.child import Child, ChildState
from operations_center.supervisor.image import execute, why_not_start
from operations_center.supervisor.notify import notify, watchdog_interval_ms
from operations_center.supervisor.spawner import Spawner
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

EXIT_TEMPFAIL = 75


@dataclass(frozen=True, slots=True)
class Wishes:
    """How ``up`` was asked to behave; ``only`` names the roles, empty for all.

    ``lock`` is the descriptor of the supervisor's lock, where it is held already: by the image before this one.
    """

    only: Sequence[str] = ()
    exit_when_idle: bool = False
    lock: int | None = None


class Supervisor:
    """``end_executors`` ends every open run, when a second stop is asked for; ``on_ready`` is told once.

    ``fork_server`` was forked before anything was opened. ``command`` starts this very supervisor again, with the
    descriptor of its lock appended.
    """

    def __init__(
        self,
        center: Center,
        wishes: Wishes,
        fork_server: ForkServer,
        command: Sequence[str],
        end_executors: Callable[[], object],
        on_ready: Callable[[], object],
    ) -> None:
        self._center = center
        self._wishes = wishes
        self._fork_server = fork_server
        self._command = command
        self._end_executors = end_executors
        self._on_ready = on_ready
        self._roles = list(wishes.only) or list(center.config.roles)
        self._children = {name: Child(name) for name in [*self._roles, WATCHDOG]}
        self._alive: dict[str, Process] = {}
        self._heart = Heart(center.state.pulse(SUPERVISOR), center.clock, center.host, center.me)
        self._announced = False
        self._notify_at = 0
        self._untold: list[tuple[str, dict[str, Any]]] = []
        self._tell_at = 0

    def run(self) -> int:
        """Until told to stop, or with ``exit_when_idle`` until nothing is left to do; 1 when the ledger is gone.

        Raises LockHeld.
        """
        lock_file = self._center.state.supervisor_lock
        lock = take_lock(lock_file, "the supervisor", inherited=self._wishes.lock)
        self._waiting = Waiting(self._center.state.wake, SUPERVISOR)
        self._spawner = Spawner(
            self._fork_server, self._center.config.file, self._center.state, self._center.clock, self._waiting
        )
        try:
            self._end_old_drain()
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
                    self._re_execute(lock)
            self._stop()
        finally:
            self._waiting.close()
        return 1 if self._is_ledger_gone() else 0

    def _turn(self) -> None:
        self._spawner.start_if_due()
        self._start_due()
        if self._now() >= self._tell_at:
            self._write_notes()
        self._beat()
        ended = self._waiting.wait(self._sleep_s())
        self._waiting.take_wake_up()
        for answer in self._spawner.take_answers():
            self._take(answer)
        for name in ended:
            if name == FORK_SERVER:
                self._bury_fork_server()
            else:
                self._bury(name)
        self._see_who_is_ready()
        self._replace_stalled_watchdog()

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
        self._attend(name, found)
        return True

    def _start_due(self) -> None:
        if not self._spawner.is_there:
            return
        for name, child in self._children.items():
            if child.is_due(self._now()):
                self._children[name] = machine.started(child)
                self._spawner.ask(name)

    def _take(self, answer: Forked) -> None:
        if answer.process is None:
            _log.error("cannot start %s: %s", answer.name, answer.error)
            self._children[answer.name] = self._ended(answer.name, by_itself=True)
            return
        _log.info("%s starts: process %d", answer.name, answer.process.pid)
        self._attend(answer.name, answer.process)

    def _bury_fork_server(self) -> None:
        """What it has forked goes on; whoever it was asked for is not to blame."""
        for name in self._spawner.bury():
            self._children[name] = machine.not_started(self._children[name], self._now())

    def _end_fork_server(self) -> None:
        for answer in self._spawner.end():
            self._take(answer)

    def _attend(self, name: str, process: Process) -> None:
        self._alive[name] = process
        self._waiting.for_end_of(name, process)

    # Watching

    def _see_who_is_ready(self) -> None:
        for name, process in self._alive.items():
            if self._children[name].state is ChildState.STARTING and self._is_ready(name, process):
                self._children[name] = machine.became_ready(self._children[name], self._now())
                self._note("watcher.ready", {"role": name, "pid": process.pid})
                _log.info("%s is ready: process %d", name, process.pid)
        self._announce()

    def _is_ready(self, name: str, process: Process) -> bool:
        pulse = read_pulse(self._center.state.pulse(name))
        return pulse is not None and pulse.process == process and pulse.state == "ready"

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
        code = self._spawner.exit_code_of(process)
        if code == EXIT_TEMPFAIL and self._take_over(name):
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

    # Another image

    def _re_execute(self, lock: int) -> None:
        """Become what is installed now, in this same process; returns only when that cannot start."""
        refusal = why_not_start(self._center.config.file)
        if refusal is None:
            self._note("supervisor.re_executed", {})
            self._write_notes()
            # The next image makes its own, of its own code.
            self._end_fork_server()
            refusal = f"cannot execute {self._command[0]}: {execute(self._command, lock)}"
        _log.error("goes on as it is: %s", refusal)
        self._note("supervisor.re_execution_refused", {"reason": refusal})

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
        self._end_fork_server()
        signal_processes(self._alive.values(), signal.SIGTERM)
        while self._alive:
            if self._now() >= kill_at:
                signal_processes(self._alive.values(), signal.SIGKILL)
            for name in self._waiting.wait(0.2):
                del self._alive[name]
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
        starts = [child.start_at for child in self._children.values() if self._spawner.is_there]
        notify_at = self._notify_at if watchdog_interval_ms() is not None else None
        return seconds_until([*starts, *self._spawner.moments(), notify_at], self._now(), BEAT_EVERY_MS / 1000)

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
