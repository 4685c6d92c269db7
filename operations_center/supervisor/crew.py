"""The watchers and the watchdog as processes: recognised, started, exchanged, buried."""

import logging
import random
import signal
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from operations_center.fleet import called, look_at
from operations_center.forking import Fork, Forked, ForkServer
from operations_center.heart import Awake, Patience
from operations_center.identity import Process
from operations_center.keeper.stop import signal_processes
from operations_center.logs import STACK_DUMP
from operations_center.pulse import Pulse, read_pulse
from operations_center.releases.deployment import Version
from operations_center.releases.steps import last_words
from operations_center.state_directory import FORK_SERVER, WATCHDOG
from operations_center.supervisor import child as machine
from operations_center.supervisor.child import Child, ChildState
from operations_center.supervisor.fork_server import live_anew
from operations_center.supervisor.rollout import DEATHS, SILENT_MS, Member
from operations_center.supervisor.spawner import Spawner, Spawners
from operations_center.waiting import Waiting
from operations_center.wiring import Center

_log = logging.getLogger(__name__)

STOP_WITHIN_MS = 5_000
"""A watcher that has not ended by then is killed; its runs go on."""

DUMP_WITHIN_MS = 200
"""A watcher that hangs is killed when it has had this long to write where."""

EXIT_TEMPFAIL = 75

Note = Callable[[str, dict[str, Any]], None]


class Crew:
    """``fork_server`` is that of the version which the supervisor itself runs; ``note`` writes into the event log.

    ``awake``: whether the supervisor stood still.
    """

    def __init__(
        self,
        center: Center,
        roles: Collection[str],
        waiting: Waiting,
        fork_server: ForkServer,
        awake: Awake,
        note: Note,
    ) -> None:
        self._center = center
        self._waiting = waiting
        self._awake = awake
        self._note = note
        self._children = {name: Child(name) for name in [*roles, WATCHDOG]}
        self._versions: dict[str, Version | None] = dict.fromkeys(self._children, center.version)
        self._alive: dict[str, Process] = {}
        self._started_at: dict[str, int] = {}
        self._ready_at: dict[str, int] = {}
        self._leaving: dict[str, Patience] = {}
        self._trial: Version | None = None
        self._deaths: list[str] = []
        self._logged: dict[str, int] = {}
        self._spawners = Spawners(self._start_fork_server, center.clock, awake, waiting)
        self._spawners.of(center.version.commit).take(fork_server)

    @property
    def is_ready(self) -> bool:
        """Every one of them."""
        return all(child.state is ChildState.READY for child in self._children.values())

    def process_of(self, name: str) -> Process | None:
        return self._alive.get(name)

    @property
    def pids(self) -> set[int]:
        """Of all of them, and of their fork servers."""
        return {process.pid for process in self._alive.values()} | self._spawners.pids

    def as_json(self) -> list[dict[str, Any]]:
        """For ``status``."""
        return [
            {
                "name": name,
                "pid": self._alive[name].pid if name in self._alive else None,
                "state": child.state,
                "restarts": max(child.restarts, 0),
            }
            for name, child in self._children.items()
        ]

    def moments(self) -> list[int | None]:
        """When there is something to do, in monotonic ms."""
        # One whose fork server is not there yet waits for that.
        starts = [child.start_at for name, child in self._children.items() if self._spawner_of(name)]
        return [*starts, *self._spawners.moments(), *map(self._awake.end_of, self._leaving.values())]

    # Starting

    def recognise_survivors(self, version: Version) -> None:
        """All others will be started as this version."""
        self._versions = dict.fromkeys(self._children, version)
        for name in self._children:
            self._take_over(name)

    def _take_over(self, name: str) -> bool:
        found = look_at(self._center.state, name)
        if found.process is None:
            return False
        _log.info("%s goes on: process %d was there already", name, found.process.pid)
        self._note("watcher.recognised", {"role": name, "pid": found.process.pid})
        self._children[name] = machine.found_alive(self._children[name])
        if found.pulse is not None:
            self._versions[name] = self._version_in(found.pulse)
        self._attend(name, found.process)
        return True

    def _version_in(self, pulse: Pulse) -> Version:
        """Where no code is pulled there are no releases, whatever a heartbeat says."""
        commit = pulse.release if self._center.config.code_pull is not None else None
        return Version(commit, pulse.config)

    def start_due(self) -> None:
        self._spawners.start_due()
        for name, child in self._children.items():
            version = self._versions[name]
            if version is not None and child.is_due(self._now()) and (spawner := self._spawner_of(name)):
                self._children[name] = machine.started(child)
                self._logged[name] = self._log_size(name)
                spawner.ask(self._request(name, version))

    def _log_size(self, name: str) -> int:
        try:
            return self._center.state.log(name).stat().st_size
        except OSError:
            return 0

    def _spawner_of(self, name: str) -> Spawner | None:
        """The one that is ready to fork it."""
        version = self._versions[name]
        spawner = self._spawners.of(version.commit) if version is not None else None
        return spawner if spawner is not None and spawner.is_ready else None

    def _request(self, name: str, version: Version) -> Fork:
        state = self._center.state
        copy = str(state.config_copy(version.config)) if version.config else ""
        return Fork(name, str(self._center.config.file), str(state.log(name)), version.commit, copy)

    def take_answers(self) -> None:
        for answer in self._spawners.take_answers():
            self._take(answer)

    def _take(self, answer: Forked) -> None:
        if answer.process is None:
            _log.error("cannot start %s: %s", answer.name, answer.error)
            self._children[answer.name] = self._ended(answer.name, by_itself=True)
            return
        _log.info("%s starts: process %d", answer.name, answer.process.pid)
        self._attend(answer.name, answer.process)

    def _attend(self, name: str, process: Process) -> None:
        self._alive[name] = process
        self._started_at[name] = self._now()
        self._ready_at.pop(name, None)
        self._waiting.for_end_of(name, process)

    def see_who_is_ready(self) -> None:
        for name in [name for name in self._alive if self._children[name].state is ChildState.STARTING]:
            pulse = self._pulse_of(name)
            if pulse is not None and pulse.state == "ready":
                if name not in self._leaving:
                    # Of one that was recognised before it could tell, it was only supposed.
                    self._versions[name] = self._version_in(pulse)
                self._children[name] = machine.became_ready(self._children[name], self._now())
                self._ready_at[name] = pulse.heartbeat_mono
                self._note("watcher.ready", {"role": name, "pid": pulse.pid, "release": pulse.release})
                _log.info("%s is ready: process %d", name, pulse.pid)

    def _pulse_of(self, name: str) -> Pulse | None:
        pulse = read_pulse(self._center.state.pulse(name))
        return pulse if pulse is not None and pulse.process == self._alive.get(name) else None

    # Ending

    def bury(self, name: str) -> None:
        """One of them, or a fork server, has ended."""
        spawner = self._spawners.named(name)
        if spawner is not None:
            self._bury_fork_server(spawner)
        elif name in self._alive:
            self._bury(name, self._alive.pop(name))

    def _bury_fork_server(self, spawner: Spawner) -> None:
        """What it has forked goes on; whoever it was asked for is not to blame."""
        for name in spawner.bury():
            self._children[name] = machine.not_started(self._children[name], self._now())

    def _bury(self, name: str, process: Process) -> None:
        """When it comes back depends on whether it was told to go, is on trial, or had been ready."""
        code = self._spawners.exit_code_of(process)
        if self._leaving.pop(name, None) is not None:
            self._begin_exchanged(name)
            return
        if code == EXIT_TEMPFAIL and self._take_over(name):
            return
        if self._trial is not None and self._versions[name] == self._trial:
            self._deaths.append(self._with_last_words(f"{called(name)} ended ({_how(code)})", name))
            self._begin_exchanged(name)
        else:
            self._children[name] = self._ended(name, by_itself=code is not None and code >= 0)
        state = self._children[name].state
        # Whoever was told to end has ended well: by `restart`, for one.
        _log.log(logging.INFO if code == 0 else logging.WARNING, "%s ended (%s); it is %s", name, _how(code), state)
        self._note("watcher.ended", {"role": name, "pid": process.pid, "exit_code": code, "state": state})

    def _ended(self, name: str, *, by_itself: bool) -> Child:
        return machine.ended(self._children[name], self._now(), random.random(), by_itself=by_itself)

    def stop(self, within_ms: int | None = None) -> None:
        """Until none of them is left; those that are late are killed."""
        patience = Patience(self._now(), self._stop_within_ms if within_ms is None else within_ms)
        self.end_fork_servers()
        signal_processes(self._alive.values(), signal.SIGTERM)
        while self._alive:
            now = self._awake.look().monotonic
            if now >= self._awake.end_of(patience):
                signal_processes(self._alive.values(), signal.SIGKILL)
            for name in self._waiting.wait(0.2):
                if self._alive.pop(name, None) is not None:
                    self._children[name] = machine.stopped(self._children[name])
            self._waiting.take_wake_up()

    # Exchanging

    def members(self, roles: Collection[str]) -> Iterator[Member]:
        """As a rollout sees them; ``roles`` are those of the configuration that all are to have in the end."""
        for name in self._children:
            pulse = self._pulse_of(name) if name in self._alive else None
            is_settled = name in self._alive and name not in self._leaving
            yield Member(
                name,
                self._versions[name],
                wanted=name == WATCHDOG or name in roles,
                started_at=self._started_at.get(name, self._now()),
                ready_at=self._ready_at.get(name) if is_settled else None,
                beat_at=pulse.heartbeat_mono if pulse else 0,
            )

    def put_on_trial(self, version: Version | None) -> None:
        """From now on who dies as this version is counted, and starts again at once."""
        if version != self._trial:
            self._trial, self._deaths = version, []

    @property
    def deaths(self) -> list[str]:
        """Of what is on trial: who ended, how, and with which words."""
        if self._trial is None:
            return []
        in_vain = self._spawners.of(self._trial.commit).deaths
        return [*self._deaths, *(in_vain * [self._with_last_words("its fork server ended", FORK_SERVER)])]

    def _with_last_words(self, how: str, name: str) -> str:
        """As the log has them since it was started."""
        try:
            said = last_words(self._center.state.log(name), self._logged.get(name, 0))
        except OSError:
            said = ""
        # What it noted in passing explains nothing.
        return f"{how}, its log with: {said}" if said and " INFO " not in said else how

    def can_start(self, commit: str | None) -> bool:
        """Whether its fork server lives, or has not failed to often enough."""
        return self._spawners.of(commit).deaths < DEATHS

    def exchange(self, name: str, version: Version | None) -> bool:
        """End the process, and start one of that version as soon as it has ended; None starts none.

        False when its fork server is not there yet: so that a role is not for long without a watcher.
        """
        if version is not None and not self._spawners.of(version.commit).is_ready:
            return False
        self._note("watcher.exchanged", {"role": name, "release": version.commit if version else None})
        self._versions[name] = version
        # How old the one before became says nothing of how long the next one takes.
        self._started_at[name] = self._now()
        if name in self._alive:
            self._ask_to_leave(name)
        else:
            self._begin_exchanged(name)
        return True

    def _ask_to_leave(self, name: str) -> None:
        """One that hangs hears nothing; it writes into its log where it is."""
        now, pulse = self._awake.look().monotonic, self._pulse_of(name)
        hangs = pulse is not None and now - max(pulse.heartbeat_mono, self._awake.since) > SILENT_MS
        self._leaving[name] = Patience(now, DUMP_WITHIN_MS if hangs else self._stop_within_ms)
        if hangs:
            self._note("watcher.stalled", {"role": name, "pid": self._alive[name].pid, "by": "supervisor"})
        signal_processes([self._alive[name]], STACK_DUMP if hangs else signal.SIGTERM)

    def _begin_exchanged(self, name: str) -> None:
        self._started_at[name] = self._now()
        child = self._children[name]
        is_wanted = self._versions[name] is not None
        self._children[name] = machine.exchanged(child, self._now()) if is_wanted else machine.stopped(child)

    @property
    def _stop_within_ms(self) -> int:
        """Killed while it submits a job, a watcher would leave a doubt behind that only a person can end."""
        return STOP_WITHIN_MS + self._center.config.submissions_within_ms

    def kill_who_does_not_leave(self) -> None:
        now = self._awake.look().monotonic
        late = [self._alive[name] for name, patience in self._leaving.items() if now >= self._awake.end_of(patience)]
        signal_processes(late, signal.SIGKILL)

    # Fork servers

    def _start_fork_server(self, commit: str | None) -> ForkServer:
        return ForkServer.start(partial(live_anew, self._center.runtime(commit)), self._center.state.log(FORK_SERVER))

    def keep_fork_servers(self, commits: Collection[str | None]) -> None:
        """Those, and the ones of versions that somebody runs; all others end."""
        used = {version.commit for version in self._versions.values() if version is not None}
        for answer in self._spawners.keep(used.union(commits)):
            self._take(answer)

    def end_fork_servers(self) -> None:
        for answer in self._spawners.end():
            self._take(answer)

    def _now(self) -> int:
        return self._center.clock.now().monotonic


def _how(code: int | None) -> str:
    if code is None:
        return "not our child: no exit code"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
