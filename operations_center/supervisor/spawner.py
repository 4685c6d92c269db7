"""Get watchers forked, and keep the fork servers alive that do it: one for each release that the fleet runs."""

import logging
import random
from collections.abc import Callable, Collection, Iterator
from functools import partial

from operations_center.clock import Clock
from operations_center.forking import Fork, Forked, ForkServer, Reap
from operations_center.heart import Awake, Patience
from operations_center.identity import Process, read_exit_code
from operations_center.state_directory import FORK_SERVER
from operations_center.supervisor import child as machine
from operations_center.supervisor.child import Child, ChildState
from operations_center.waiting import Waiting

_log = logging.getLogger(__name__)

ANSWER_WITHIN_MS = 2_000
START_WITHIN_MS = 30_000
"""A fork server that is slower than this hangs, and is replaced; one that starts anew has to import the program."""


class Spawner:
    """One fork server. ``ask`` for a watcher by name; sooner or later the name is in ``take_answers`` or in ``bury``.

    ``start_anew`` starts a fork server of this release; ``name`` is the one under which its end is waited for.
    ``awake``: whether the supervisor stood still.
    """

    def __init__(
        self, name: str, start_anew: Callable[[], ForkServer], clock: Clock, awake: Awake, waiting: Waiting
    ) -> None:
        self.name = name
        self._start_anew = start_anew
        self._clock = clock
        self._awake = awake
        self._waiting = waiting
        self._child = Child(name)
        self._server: ForkServer | None = None
        self._asked: dict[str, Patience] = {}

    @property
    def is_ready(self) -> bool:
        """It has imported the program, and answers."""
        return self._server is not None and self._child.state is ChildState.READY

    @property
    def deaths(self) -> int:
        """How often in a row it has ended without ever being ready."""
        return 0 if self.is_ready else self._child.deaths

    def take(self, server: ForkServer) -> None:
        """One that has been started already."""
        self._child = machine.started(self._child)
        self._take(server)

    def start_if_due(self) -> None:
        if not self._child.is_due(self._now()):
            return
        self._child = machine.started(self._child)
        try:
            server = self._start_anew()
        except OSError as error:
            _log.error("cannot start %s: %s", self.name, error)
            self._child = self._ended(by_itself=True)
        else:
            self._take(server)

    def _take(self, server: ForkServer) -> None:
        self._server = server
        self._waiting.for_end_of(self.name, server.process)
        self._waiting.for_readable(server)
        self._asked[self.name] = Patience(self._now(), START_WITHIN_MS)

    @property
    def pid(self) -> int | None:
        return self._server.process.pid if self._server is not None else None

    def ask(self, request: Fork) -> None:
        assert self._server is not None
        self._server.ask(request)
        self._asked[request.name] = Patience(self._now(), ANSWER_WITHIN_MS)

    def take_answers(self) -> list[Forked]:
        if self._server is None:
            return []
        now = self._awake.look().monotonic
        answers = self._answers_of(self._server)
        if any(now >= self._awake.end_of(patience) for patience in self._asked.values()):
            _log.error("%s %d does not answer; it is replaced", self.name, self._server.process.pid)
            self._server.kill()
        return answers

    def _answers_of(self, server: ForkServer) -> list[Forked]:
        answers = server.answers()
        for answer in answers:
            self._asked.pop(self.name if answer.name == FORK_SERVER else answer.name, None)
        if any(answer.name == FORK_SERVER for answer in answers):
            self._child = machine.became_ready(self._child, self._now())
        return [answer for answer in answers if answer.name != FORK_SERVER]

    def bury(self) -> list[str]:
        """It has ended; those that were asked for in vain."""
        assert self._server is not None
        code = self._server.end()
        self._leave()
        self._child = self._ended(by_itself=code >= 0)
        _log.warning("%s ended (%d); it is %s", self.name, code, self._child.state)
        in_vain = [name for name in self._asked if name != self.name]
        self._asked.clear()
        return in_vain

    def reap(self, process: Process) -> None:
        """If it is a child of this fork server, and has ended."""
        if self._server is not None:
            self._server.ask(Reap(process.pid))

    def moments(self) -> list[int | None]:
        """When this needs the next look, in monotonic milliseconds."""
        return [self._child.start_at, *map(self._awake.end_of, self._asked.values())]

    def end(self) -> list[Forked]:
        """No process is forked any more; the last answers. What was forked goes on."""
        if self._server is None:
            return []
        self._server.end()
        answers = self._answers_of(self._server)
        self._waiting.forget(self.name)
        self._leave()
        self._child = Child(self.name)
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


class Spawners:
    """By commit; None is the code that ``up`` was started with."""

    def __init__(
        self, start_anew: Callable[[str | None], ForkServer], clock: Clock, awake: Awake, waiting: Waiting
    ) -> None:
        self._start_anew = start_anew
        self._clock = clock
        self._awake = awake
        self._waiting = waiting
        self._by_commit: dict[str | None, Spawner] = {}

    def of(self, commit: str | None) -> Spawner:
        """Made when it is first asked for; it then starts by itself."""
        if commit not in self._by_commit:
            name = FORK_SERVER if commit is None else f"{FORK_SERVER} {commit}"
            start = partial(self._start_anew, commit)
            self._by_commit[commit] = Spawner(name, start, self._clock, self._awake, self._waiting)
        return self._by_commit[commit]

    def keep(self, commits: Collection[str | None]) -> Iterator[Forked]:
        """End all others; their last answers."""
        for commit in [commit for commit in self._by_commit if commit not in commits]:
            yield from self._by_commit.pop(commit).end()

    def named(self, name: str) -> Spawner | None:
        """The one whose end is waited for under this name."""
        return next((spawner for spawner in self if spawner.name == name), None)

    def start_due(self) -> None:
        for spawner in self:
            spawner.start_if_due()

    def take_answers(self) -> list[Forked]:
        return [answer for spawner in self for answer in spawner.take_answers()]

    def exit_code_of(self, process: Process) -> int | None:
        """Of one that has ended (negative: by that signal); None when it was forked by a fork server that is gone."""
        code = read_exit_code(process)
        for spawner in self:
            spawner.reap(process)
        return code

    def moments(self) -> list[int | None]:
        return [moment for spawner in self for moment in spawner.moments()]

    def end(self) -> list[Forked]:
        return list(self.keep(()))

    @property
    def pids(self) -> set[int]:
        return {spawner.pid for spawner in self if spawner.pid is not None}

    def __iter__(self) -> Iterator[Spawner]:
        return iter(list(self._by_commit.values()))
