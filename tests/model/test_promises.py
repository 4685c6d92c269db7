"""The promises I1–I6 and I8 in a virtual world, whatever dies, stops, wakes up or goes wrong, in whatever order.

Hypothesis chooses what happens next; ledger, board, dispatch, reconciliation and settlement are the real ones.
The run in the suite is always the same. A deeper one, with other steps each time:

    OPERATIONS_CENTER_MODEL=2000 scripts/test tests/model -s

where the number is how many examples are tried.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from operations_center.boards.local import NewTask
from operations_center.dispatch import Started
from operations_center.errors import OperationsCenterError
from operations_center.in_flight_reconcile import Report
from operations_center.ledger import Pause
from operations_center.model import Priority, TaskState
from operations_center.wiring import Center
from tests.model import operations
from tests.model.actors import Actor
from tests.model.executions import Daemon, Execution
from tests.model.kernel import Namespace
from tests.model.world import DAY_MS, HOUR_MS, LONG_ENOUGH, World

STEPS = st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34, LONG_ENOUGH])
"""How far an operation goes before something else happens; the last is to its end."""

TIMES = st.sampled_from([0, 1, 2, 3, 3, 3])
"""Steps of a keeper that is just being started; after three its executor runs."""

ANY = st.sampled_from(range(12))
"""One of those that there are, whatever their number."""

ROLES = ("goal", "test")
COMMANDS = ["reconcile", "reconcile", "reconcile", "stop", "stop", "cancel", "down", "prune"]
DURATIONS = [100, 900, 5_500, 5_500, 11_000, 11_000, 31_000, 62_000, 82_000, HOUR_MS]
MISHAPS = ["nothing", "nothing", "board away", "board deaf", "ledger busy", "cannot fork", "forks and fails"]
JUMPS = [-DAY_MS, DAY_MS, -40_000, 40_000]
TERM_CODES = [0, 1]
COMMAND_NAMES = ("a command", "another command")
RESULTS = ['{"outcome": "succeeded"}', '{"outcome": "failed"}', '{"outcome": "retry", "retry_after": "10m"}', "{"]


ROWS: Counter[int] = Counter()
"""How often each row of the verdict table was seen."""


class Promises(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.steps = 0

    @initialize(cgroups=st.booleans(), alone=st.sampled_from([True, True, False]), tasks=st.integers(1, 3))
    def begin(self, cgroups: bool, alone: bool, tasks: int) -> None:
        self.alone = alone
        self.cgroups = self.world.cgroups if cgroups else None
        self.world.board.add([NewTask(f"task {number}", "goal") for number in range(tasks)])

    def teardown(self) -> None:
        try:
            # What has failed already must not be hidden by what follows from it.
            if sys.exc_info()[0] is None:
                self.world.end_everything_here()
                self.world.come_to_rest()
        finally:
            self.world.close()

    @invariant()
    def the_promises_hold(self) -> None:
        self.world.check()
        self.steps += 1
        if self.steps % 10 == 0:
            self.world.check_whole()

    # Our processes

    @rule(where=ANY, role=st.sampled_from(ROLES), renders=st.booleans(), times=TIMES)
    def watcher_starts_a_run(self, where: int, role: str, renders: bool, times: int, steps: int | None = None) -> None:
        """As it should be, so that the rest has something to go wrong with."""
        self.world.nothing_goes_wrong()
        self.world.ledger.resume(None, "person")
        if not self.world.board.ready([role], [None]):
            self.world.board.add([NewTask("wanted", role, backend="render" if renders else None)])
        actor = self.idle(where, role)
        if self.is_up(actor):
            actor.begin(self.operation(role, 0), steps)
        if isinstance(actor.answer, Started):
            for _ in range(times):
                self.world.executions[actor.answer.run.run_id].go_on()

    watcher_starts_another_run = watcher_starts_a_run

    @rule(where=ANY, role=st.sampled_from(ROLES), steps=st.integers(2, 16), dies=st.booleans())
    def watcher_is_interrupted_while_it_starts_a_run(self, where: int, role: str, steps: int, dies: bool) -> None:
        self.watcher_starts_a_run(where, role, False, 0, steps)
        actor = self.world.actor(self.namespace(where), role)
        if actor.is_busy and dies:
            actor.die()

    @rule(where=ANY, role=st.sampled_from(ROLES), polls=st.booleans(), steps=STEPS, dies=st.booleans())
    def watcher_is_interrupted(self, where: int, role: str, polls: bool, steps: int, dies: bool) -> None:
        """At one of its steps, for ever or for a while."""
        actor = self.world.actor(self.namespace(where), role)
        if actor.is_busy:
            actor.go_on(steps)
        elif not actor.is_ready:
            actor.begin(self.come_up(actor, role), steps)
        elif polls:
            actor.begin(lambda center: operations.poll(center, role, self.cgroups), steps)
        else:
            actor.begin(lambda center: operations.tend(center, role), steps)
        if actor.is_busy and dies:
            actor.die()

    def is_up(self, actor: Actor) -> bool:
        """A watcher has come up before it does anything else; nobody else needs to."""
        if actor.name in ROLES and not actor.is_ready:
            actor.begin(self.come_up(actor, actor.name))
        return actor.name not in ROLES or actor.is_ready

    def come_up(self, actor: Actor, role: str) -> operations.Operation:
        def operation(center: Center) -> object:
            report = operations.come_up(center, role)
            actor.is_ready = True
            return report

        return operation

    @rule(where=ANY, command=st.sampled_from(COMMANDS), which=ANY, steps=STEPS)
    def command_works(self, where: int, command: str, which: int, steps: int) -> None:
        actor = self.world.actor(self.namespace(where), "a command")
        if actor.is_busy:
            actor.go_on(steps)
        else:
            actor.begin(self.operation(command, which), steps)

    @rule(
        where=st.tuples(ANY, ANY),
        doings=st.tuples(*[st.sampled_from([*COMMANDS, *ROLES, *ROLES])] * 2),
        which=ANY,
        steps=st.tuples(*[st.integers(1, 40)] * 2),
        pause=st.sampled_from([0, 0, 11_000, 82_000]),
    )
    def two_of_us_interleave(
        self, where: tuple[int, int], doings: tuple[str, str], which: int, steps: tuple[int, int], pause: int
    ) -> None:
        """Both are stopped at a step, and both go on with what they knew, the first one first."""
        names = [doing if doing in ROLES else name for doing, name in zip(doings, COMMAND_NAMES, strict=True)]
        first, second = (self.idle(place, name) for place, name in zip(where, names, strict=True))
        if first is second or not all(self.is_up(actor) for actor in (first, second)):
            return
        first.begin(self.operation(doings[0], which), steps[0])
        self.world.advance(pause)
        second.begin(self.operation(doings[1], which), steps[1])
        self.world.finish(first)
        self.world.finish(second)

    def operation(self, command: str, which: int) -> operations.Operation:
        runs, tasks = self.world.ledger.open_runs(), self.world.board.tasks()
        match command:
            case "goal" | "test":
                return lambda center: operations.poll(center, command, self.cgroups)
            case "stop" if runs:
                return operations.stop(runs[which % len(runs)].run_id)
            case "cancel":
                return operations.cancel(tasks[which % len(tasks)].task_id)
            case "down":
                return operations.down_now
            case "prune":
                return lambda center: operations.prune(center, HOUR_MS)
        return operations.watch_over

    @rule(where=ANY)
    def whole_reconciliation(self, where: int) -> None:
        actor = self.idle(where, "the watchdog")
        actor.begin(operations.look)
        if isinstance(actor.answer, list):
            ROWS.update(actor.answer)
        actor.begin(operations.watch_over)
        if isinstance(actor.answer, Report):
            self.world.check_after_whole_pass(actor.namespace, actor.answer)

    @precondition(lambda self: self.world.living_actors)
    @rule(which=ANY)
    def one_of_us_dies(self, which: int) -> None:
        actors = self.world.living_actors
        actors[which % len(actors)].die()

    @precondition(lambda self: any(actor.is_busy for actor in self.world.living_actors))
    @rule(which=ANY, steps=STEPS)
    def one_of_us_goes_on(self, which: int, steps: int) -> None:
        actors = [actor for actor in self.world.living_actors if actor.is_busy]
        actors[which % len(actors)].go_on(steps)

    # Runs

    @precondition(lambda self: self.executions())
    @rule(which=ANY, times=st.integers(1, 4))
    def keeper_goes_on(self, which: int, times: int) -> None:
        execution = self.execution(which)
        for _ in range(times):
            execution.go_on()

    @precondition(lambda self: self.executions())
    @rule(
        which=ANY,
        code=st.sampled_from([0, 0, 1, 75, 137]),
        leaves=st.sampled_from([None, None, *Daemon]),
        times=st.integers(0, 6),
        dies=st.booleans(),
    )
    def executor_ends(self, which: int, code: int, leaves: Daemon | None, times: int, dies: bool) -> None:
        """And its keeper gets so far, and perhaps no further."""
        execution = self.execution(which)
        if leaves is not None:
            execution.leave_daemon(leaves)
        execution.end_executor(code)
        for _ in range(times):
            execution.go_on()
        if dies:
            execution.namespace.kill(execution.keeper)

    @precondition(lambda self: self.executions())
    @rule(
        which=ANY,
        act=st.sampled_from(
            [
                *Daemon,
                *RESULTS,
                *TERM_CODES,
                *["ignores TERM", "deletes its directory", "deletes its gate"] * 2,
                "its keeper hangs",
            ]
        ),
    )
    def executor_acts(self, which: int, act: Daemon | str | int) -> None:
        execution = self.execution(which)
        match act:
            case Daemon():
                execution.leave_daemon(act)
            case int() if execution.executor is not None:
                execution.executor.exit_code_on_term = act
            case "ignores TERM" if execution.executor is not None:
                execution.executor.ignores_term = True
            case "its keeper hangs":
                execution.hangs = True
            case "deletes its gate" if execution.executor_lives:
                (execution.directory / "gate").unlink(missing_ok=True)
            case "deletes its directory":
                execution.delete_directory()
            case str() if act in RESULTS:
                execution.write_result(act)

    @precondition(lambda self: self.executions())
    @rule(which=ANY, whom=ANY, stops=st.booleans())
    def process_of_a_run_is_killed_or_stopped(self, which: int, whom: int, stops: bool) -> None:
        execution = self.execution(which)
        process = execution.processes[whom % len(execution.processes)]
        if stops:
            process.stopped = not process.stopped
        else:
            execution.namespace.kill(process)

    @precondition(lambda self: self.executions())
    @rule(which=ANY, kills=st.booleans())
    def timer_looks(self, which: int, kills: bool) -> None:
        self.execution(which).enforce_timeout(kills=kills)

    # Hosts

    @rule(duration=st.sampled_from(DURATIONS))
    def time_passes(self, duration: int) -> None:
        self.world.advance(duration)

    @rule(machine=st.booleans(), event=st.sampled_from([*JUMPS, *JUMPS, "reboots"]))
    def something_happens_to_a_machine(self, machine: bool, event: int | str) -> None:
        subject = self.world.here if machine else self.world.there
        if isinstance(event, int):
            self.world.jump(subject, event)
        else:
            self.world.reboot(subject)

    @rule(where=ANY, whose=ANY, which=ANY, ends=st.sampled_from([False, False, True]))
    def something_happens_to_a_container(self, where: int, whose: int, which: int, ends: bool) -> None:
        """It is started anew; or a stranger takes the pid of a process that has ended there, or the whole identity
        of one of another boot or namespace."""
        here, there = self.namespace(where), self.namespace(whose)
        if ends:
            self.world.end_namespace(here)
        elif there.gone:
            dead = there.gone[which % len(there.gone)]
            if here.is_free(dead.pid):
                here.reuse(dead.pid, dead.start_ticks if here is not there else None)

    # What goes wrong, and people

    @rule(mishap=st.sampled_from(MISHAPS))
    def a_mishap_begins_or_ends(self, mishap: str) -> None:
        self.world.nothing_goes_wrong()
        match mishap:
            case "board away":
                self.world.stage.board_is_away = True
            case "board deaf":
                self.world.stage.board_is_deaf = True
            case "ledger busy":
                self.world.stage.ledger_is_busy = 2
            case "cannot fork":
                self.world.stage.cannot_fork = True
            case "forks and fails":
                self.world.stage.forks_and_fails = True

    @rule(kind=st.sampled_from(ROLES), render=st.booleans(), priority=st.sampled_from(Priority))
    def person_adds_a_task(self, kind: str, render: bool, priority: Priority) -> None:
        new = NewTask("added", kind, priority=priority, backend="render" if render else None)
        self.world.board.add([new])

    @rule(which=ANY, change=st.integers(0, 4))
    def person_changes_a_task(self, which: int, change: int) -> None:
        """Rather one that runs."""
        board = self.world.board
        task_ids = [run.task_id for run in self.world.ledger.open_runs()] or [task.task_id for task in board.tasks()]
        task_id = task_ids[which % len(task_ids)]
        changes: list[Callable[[], None]] = [
            lambda: board.edit(task_id, backend="render"),
            lambda: board.edit(task_id, kind="test"),
            lambda: board.edit(task_id, state=TaskState.READY),
            lambda: board.cancel(task_id),
            lambda: self.cancel_and_retry(task_id),
        ]
        try:
            changes[change]()
        except OperationsCenterError:
            return

    def cancel_and_retry(self, task_id: str) -> None:
        self.world.board.cancel(task_id)
        self.world.board.retry(task_id)

    @rule(act=st.sampled_from(["resume", "pause *", "pause goal", "pause agent", "back up", "back up", "restore"]))
    def person_looks_after_the_fleet(self, act: str) -> None:
        word, _, name = act.partition(" ")
        match word:
            case "pause":
                self.world.ledger.pause(Pause(name, "person", "asked for", self.world.here.wall))
            case "resume":
                self.world.ledger.resume(None, "person")
            case "back" if len(self.world.backups) < 3:
                self.world.back_up()
            case "restore" if self.world.backups:
                self.world.restore(self.world.backups[-1])

    # Choosing

    def namespace(self, number: int) -> Namespace:
        """Mostly the first: what happens in one place is what meets."""
        return self.world.namespaces[0 if self.alone else (0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2)[number]]

    def idle(self, where: int, name: str) -> Actor:
        """A process of ours that has ended what it was at; one that goes on and on is interrupted and begun anew."""
        actor = self.world.actor(self.namespace(where), name)
        self.world.finish(actor)
        return self.world.actor(self.namespace(where), name)

    def executions(self) -> list[Execution]:
        return [each for each in self.world.executions.values() if each.processes]

    def execution(self, number: int) -> Execution:
        executions = self.executions()
        return executions[number % len(executions)]


def test_the_promises_hold_in_whatever_order_things_happen() -> None:
    deep = int(os.environ.get("OPERATIONS_CENTER_MODEL", "0"))
    run_state_machine_as_test(
        Promises,
        settings=settings(
            max_examples=deep or 200,
            stateful_step_count=100,
            derandomize=not deep,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=False,
            report_multiple_bugs=False,
        ),
    )
    assert len(ROWS) >= 8, f"it got nowhere; rows of the verdict table that were seen: {sorted(ROWS.items())}"
