"""Processes of our own, on virtual hosts: real code, stopped before any of its steps, killed there, or gone on with.

An actor has a stack and a connection of its own. A step is whatever leaves the process: a read or a
transaction of the database, a call of the board, a look at or a signal to processes, a path in a run directory.
Nothing else switches between actors, so everything is decided by whoever chooses the next step.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenlet import greenlet

from operations_center.boards.local import LocalBoard
from operations_center.clock import Clock
from operations_center.config import Config
from operations_center.errors import BoardUnreachable, LedgerBusy, OperationsCenterError
from operations_center.identity import Process
from operations_center.keeper.inspect import ProcessTable
from operations_center.keeper.launch import LaunchedRun, LaunchPlan
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.releases.deployment import Deployments
from operations_center.releases.records import ReleaseRecords
from operations_center.settlement import Settlement
from operations_center.state_directory import StateDirectory
from operations_center.store import Store
from operations_center.wiring import Center
from tests.model.executions import Execution
from tests.model.kernel import Namespace, VirtualProcess

BOARD_METHODS = frozenset({"ready", "states", "running", "claim", "finish", "requeue"})


@dataclass
class Stage:
    """What all actors share: runs, what goes wrong for whoever acts, who acted last, and what is
    checked whenever somebody has acted.

    ``board_is_deaf``: it does what it was asked, and its answer is lost; ``ledger_is_busy`` for so many writes;
    ``forks_and_fails``: the keeper is started, and whoever starts it is told that it is not.
    """

    executions: dict[str, Execution] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    board_is_away: bool = False
    board_is_deaf: bool = False
    ledger_is_busy: int = 0
    cannot_fork: bool = False
    forks_and_fails: bool = False
    acted_last: "Actor | None" = None
    check: Callable[[], None] = lambda: None


class Died(BaseException):
    """Unwinds the stack of a process that is killed: what it would still do on its way out is not done."""


Operation = Callable[[Center], object]


class Actor:
    """A watcher, called by its role; the watchdog; a command."""

    def __init__(self, namespace: Namespace, name: str, config: Config, ledger: Path, stage: Stage) -> None:
        self.namespace = namespace
        self.name = name
        self.stage = stage
        self.process = namespace.spawn(leads_session=True)
        self.is_ready = False
        self.clock_was_set = False
        self.answer: object = None
        self._config = config
        self._ledger = ledger
        self._operation: Operation | None = None
        self._left: int | None = None
        self._depth = 0
        self._doomed = False
        self._life = greenlet(self._live)
        self._life.switch()

    @property
    def lives(self) -> bool:
        return not self._doomed

    @property
    def is_busy(self) -> bool:
        return self._operation is not None

    def begin(self, operation: Operation, steps: int | None = None) -> bool:
        """Let it work until it has taken so many steps, or to the end; True if that was reached."""
        assert not self.is_busy
        self.clock_was_set = False
        self._operation = operation
        return self.go_on(steps)

    def go_on(self, steps: int | None = None) -> bool:
        self._left = steps
        self.stage.acted_last = self
        self._life.switch()
        self.namespace.obey_cgroups()
        self.stage.check()
        return not self.is_busy

    def die(self) -> None:
        """Between two of its steps. Its processes live on, and are no longer waited for by anybody."""
        if self._doomed:
            return
        self._doomed = True
        self._life.switch()
        self.namespace.kill(self.process)

    def step(self) -> None:
        """The process is about to do something that others can see, or to look at what others did."""
        if self._doomed:
            raise Died
        if self._depth:
            return
        if self._left == 0:
            self._wait()
            if self._doomed:
                raise Died
        if self._left is not None:
            self._left -= 1

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """A transaction: to others it has happened or it has not."""
        self.step()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _wait(self) -> None:
        """For whoever chooses the next step."""
        assert self._life.parent is not None
        self._life.parent.switch()

    def _live(self) -> None:
        center = self._center()
        try:
            self._wait()
            while not self._doomed:
                self._work(center)
                self._operation = None
                self._wait()
        except Died:
            pass
        finally:
            center.store.close()

    def _work(self, center: Center) -> None:
        assert self._operation is not None
        try:
            self.answer = self._operation(center)
        except (OperationsCenterError, OSError) as error:
            # As a watcher's loop and the command line do: the step ends, the process goes on.
            self.answer = error

    def _center(self) -> Center:
        clock = self.namespace.machine
        state = SteppedState(self.namespace.runs.parent, self)
        store = SteppedStore(self._ledger, clock, self)
        ledger, board = SqliteLedger(store), SteppedBoard(store, self)
        return Center(
            config=self._config,
            state=state,
            clock=clock,
            host=self.namespace.host,
            me=self.process.identity,
            processes=SteppedProcesses(self),
            store=store,
            ledger=ledger,
            board=board,
            releases=ReleaseRecords(store),
            deployments=Deployments(store),
            settlement=Settlement(
                ledger=ledger,
                board=board,
                clock=clock,
                policy_of=self._config.roles.__getitem__,
                breaker_of=lambda backend: None,
            ),
        )


class SteppedStore(Store):
    def __init__(self, path: Path, clock: Clock, actor: Actor) -> None:
        self._actor = actor
        super().__init__(path, clock)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        stage = self._actor.stage
        with self._actor.undivided():
            if stage.ledger_is_busy and not self._depth:
                stage.ledger_is_busy -= 1
                raise LedgerBusy("cannot write the ledger: another program holds it; try again")
            with super().transaction():
                yield

    def rows(self, statement: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None) -> list[Any]:
        self._actor.step()
        return super().rows(statement, parameters)


class SteppedBoard(LocalBoard):
    def __init__(self, store: Store, actor: Actor) -> None:
        super().__init__(store)
        self._stage = actor.stage

    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__(name)
        return self._by_mishap(attribute) if name in BOARD_METHODS else attribute

    def _by_mishap(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if self._stage.board_is_away:
                raise BoardUnreachable("cannot reach the board: it does not answer; try again")
            answer = method(*arguments)
            if self._stage.board_is_deaf:
                raise BoardUnreachable("cannot reach the board: its answer was lost; try again")
            return answer

        return call


@dataclass(frozen=True, slots=True)
class SteppedState(StateDirectory):
    actor: Actor

    def path_of_run(self, run_id: str) -> str:
        self.actor.step()
        return StateDirectory.path_of_run(self, run_id)


class SteppedProcesses:
    """See ``Processes`` for what each method promises."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._namespace = actor.namespace
        self._missed: set[Process] = set()

    def scan(self) -> ProcessTable:
        self._actor.step()
        self._namespace.obey_cgroups()
        return self._namespace.table(self._missed)

    def is_alive(self, process: Process) -> bool:
        self._actor.step()
        return self._namespace.is_alive(process)

    def is_of_run(self, process: Process, run_id: str) -> bool:
        self._actor.step()
        found = self._namespace.find(process)
        return found is not None and found.run_id == run_id and found.shows_run

    def signal(self, process: Process, number: signal.Signals) -> bool:
        self._actor.step()
        target = self._namespace.find(process)
        if target is not None and target.is_keeper and number is signal.SIGKILL:
            self._note_children_of(target)
        return self._namespace.send(process, number)

    def _note_children_of(self, keeper: VirtualProcess) -> None:
        """What only a keeper ties to its run has to end before it."""
        for each in self._namespace.processes.values():
            if each.parent == keeper.pid and not each.shows_run and not each.cgroup:
                self._actor.stage.breaches.append(f"the keeper of {keeper.run_id} is killed before what only it ties")

    def start(self, plan: LaunchPlan) -> LaunchedRun:
        self._actor.step()
        if self._actor.stage.cannot_fork:
            raise BlockingIOError("cannot fork: too many processes")
        execution = Execution.launch(plan, self._namespace, self._actor.process.pid)
        self._actor.stage.executions[plan.run_id] = execution
        if self._actor.stage.forks_and_fails:
            raise OSError("cannot start the keeper: out of memory")
        self._actor.step()
        return LaunchedRun(execution.keeper.identity, [], execution.keeper.cgroup)
