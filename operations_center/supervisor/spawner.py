"""Get watchers forked, and keep the fork server alive that does it."""

import logging
import random
from pathlib import Path

from operations_center.clock import Clock
from operations_center.forking import Fork, Forked, ForkServer
from operations_center.identity import Process
from operations_center.state_directory import FORK_SERVER, StateDirectory
from operations_center.supervisor import child as machine
from operations_center.supervisor.child import Child, ChildState
from operations_center.supervisor.fork_server import live_anew
from operations_center.waiting import Waiting

_log = logging.getLogger(__name__)

ANSWER_WITHIN_MS = 2_000
START_WITHIN_MS = 30_000
"""A fork server that is slower than this hangs, and is replaced; one that starts anew has to import the program."""


class Spawner:
    """``ask`` for a watcher by name; sooner or later the name is in ``take_answers`` or in ``bury``."""

    def __init__(
        self, server: ForkServer, config_file: Path, state: StateDirectory, clock: Clock, waiting: Waiting
    ) -> None:
        self._config_file = config_file
        self._state = state
        self._clock = clock
        self._waiting = waiting
        self._child = machine.started(Child(FORK_SERVER))
        self._server: ForkServer | None = None
        self._asked: dict[str, int] = {}
        self._take(server)

    @property
    def is_there(self) -> bool:
        return self._server is not None

    def start_if_due(self) -> None:
        if not self._child.is_due(self._now()):
            return
        self._child = machine.started(self._child)
        try:
            server = ForkServer.start(live_anew, self._state.log(FORK_SERVER))
        except OSError as error:
            _log.error("cannot start the fork server: %s", error)
            self._child = self._ended(by_itself=True)
        else:
            self._take(server)

    def _take(self, server: ForkServer) -> None:
        self._server = server
        self._waiting.for_end_of(FORK_SERVER, server.process)
        self._waiting.for_readable(server)

    def ask(self, name: str) -> None:
        assert self._server is not None
        self._server.ask(Fork(name, str(self._config_file), str(self._state.log(name))))
        is_new = self._child.state is ChildState.STARTING
        self._asked[name] = self._now() + (START_WITHIN_MS if is_new else ANSWER_WITHIN_MS)

    def take_answers(self) -> list[Forked]:
        if self._server is None:
            return []
        answers = self._server.answers()
        for answer in answers:
            self._asked.pop(answer.name, None)
        if answers and self._child.state is ChildState.STARTING:
            self._child = machine.became_ready(self._child, self._now())
        if self._server and any(self._now() >= late for late in self._asked.values()):
            _log.error("the fork server %d does not answer; it is replaced", self._server.process.pid)
            self._server.kill()
        return answers

    def bury(self) -> list[str]:
        """The fork server has ended; those that were asked for in vain."""
        assert self._server is not None
        code = self._server.end()
        self._leave()
        self._child = self._ended(by_itself=code >= 0)
        _log.warning(
            "the fork server ended (%d); it is %s, see %s", code, self._child.state, self._state.log(FORK_SERVER)
        )
        in_vain = list(self._asked)
        self._asked.clear()
        return in_vain

    def exit_code_of(self, process: Process) -> int | None:
        return self._server.exit_code_of(process) if self._server else None

    def moments(self) -> list[int | None]:
        """When this needs the next look, in monotonic milliseconds."""
        return [self._child.start_at, *self._asked.values()]

    def end(self) -> list[Forked]:
        """No process is forked any more; the last answers. What was forked goes on."""
        if self._server is None:
            return []
        self._server.end()
        answers = self.take_answers()
        self._waiting.forget(FORK_SERVER)
        self._leave()
        self._child = Child(FORK_SERVER)
        return answers

    def _leave(self) -> None:
        assert self._server is not None
        self._waiting.forget_readable(self._server)
        self._server.close()
        self._server = None

    def _ended(self, *, by_itself: bool) -> Child:
        return machine.ended(self._child, self._now(), random.random(), by_itself=by_itself)

    def _now(self) -> int:
        return self._clock.now().monotonic
