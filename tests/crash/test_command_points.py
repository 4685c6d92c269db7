"""Commands that write, killed at each of their system calls: nothing is lost, and repeating them does it."""

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from operations_center import cli
from operations_center.boards.local import NewTask
from operations_center.config import load_config
from operations_center.errors import OperationsCenterError
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.ledger import Pause
from operations_center.model import Outcome, Proof, Run, RunState, Task, TaskState
from operations_center.outcomes import Ending
from tests.fleet import Fleet, wait_until
from tests.runs import admit, leave_run, run_of_a_dead_watcher
from tests.syscalls import (
    EVERY_POINT,
    AtPoint,
    Point,
    Strace,
    calls_of,
    forked_and_stopped,
    naming,
    needs_strace,
    some_of,
)

pytestmark = [needs_strace, pytest.mark.timeout(3600 if EVERY_POINT else 300)]

for module in cli.COMMANDS.values():
    import_module(f"operations_center.cli.{module}")  # a forked command must not be seen importing

CONFIG = """
[roles.goal]
backend = "agent"
retry_backoff = { initial = "0s" }
[backends.agent]
kind = "command"
argv = ["sh", "-c", 'echo "$OPERATIONS_CENTER_RUN_ID" >>"$HOME/begun"; until [ -e "$HOME/go" ]; do sleep 0.01; done']
stdin = "none"
max_concurrent = 10
grace = "200ms"
"""

GONE = Process(2**22 + 1, 1)
"""Nobody: pids are smaller (proc_sys_kernel(5), pid_max)."""

DONE, DEAD, UNTOLD, READY = range(3), range(3, 5), range(5, 6), range(6, 8)
"""What became of the template's tasks, by number: run and closed, left by dead processes, settled, untouched."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fleet = Fleet(tmp_path_factory.mktemp("template"))
    fleet.configure(CONFIG)
    with fleet.center() as center:
        ids = center.board.add([NewTask(f"task {number}", "goal") for number in range(READY.stop)])
        for number in DONE:
            run_id = leave_run(center, ids[number], keeper=GONE, watcher=GONE)
            (fleet.state.run(run_id) / "exit").write_text("exit 0 end".ljust(63) + "\n")
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        for number in DEAD:
            leave_run(center, ids[number], keeper=GONE, watcher=GONE)
        for number in UNTOLD:
            run = admit(center, ids[number], GONE)
            assert center.settlement.settle(run, Ending(Outcome.FAILED, Proof.PROCESS_GONE, "for a test"), GONE)
    fleet.run("ledger", "backup", str(fleet.root / "backup.db"))
    (fleet.root / "backups").mkdir()
    (fleet.root / "tasks.jsonl").write_text('{"title": "imported"}\n' * 3)
    return fleet.root


# What commands find


def anew(template: Path, fleet: Fleet) -> None:
    fleet.clean_up()
    shutil.rmtree(fleet.root)
    shutil.copytree(template, fleet.root)


def without_state(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    shutil.rmtree(fleet.state.root)


def with_a_damaged_ledger(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    fleet.state.ledger.write_bytes(b"rubbish" * 1000)


def with_a_pause(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    with fleet.center() as center:
        center.ledger.pause(Pause("*", "person", "for a test", 0))


def with_executors(template: Path, fleet: Fleet) -> None:
    """The ready tasks run, and their watcher is dead."""
    anew(template, fleet)
    for number in READY:
        run_of_a_dead_watcher(fleet, task(fleet, number).task_id)
    wait_until((fleet.root / "begun").exists, "an executor")


def with_executors_let_go(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    fleet.let_go()


def task(fleet: Fleet, number: int) -> Task:
    (found,) = [each for each in tasks(fleet) if each.title == f"task {number}"]
    return found


def tasks(fleet: Fleet) -> list[Task]:
    with fleet.center() as center:
        return center.board.tasks()


def runs(fleet: Fleet) -> list[Run]:
    with fleet.center() as center:
        return center.ledger.recent_runs(task_id=None, backend=None, limit=1000)


def run_of(fleet: Fleet, number: int) -> Run:
    task_id = task(fleet, number).task_id
    return next(run for run in runs(fleet) if run.task_id == task_id)


# What must hold after the kill, and after the command was repeated


def the_ledger_is_whole(fleet: Fleet) -> None:
    with fleet.center() as center:
        assert center.ledger.verify() == []


def imported(fleet: Fleet) -> int:
    return sum(each.title == "imported" for each in tasks(fleet))


def all_or_none_are_imported(fleet: Fleet) -> None:
    assert imported(fleet) % 3 == 0


def backups_are_whole(fleet: Fleet) -> None:
    for path in (fleet.root / "backups").glob("*.db"):
        with closing(sqlite3.connect(path)) as backup:
            assert backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert backup.execute("SELECT count(*) FROM runs").fetchone()[0] == len(runs(fleet))


def the_ledger_is_whole_or_refused(fleet: Fleet) -> None:
    try:
        with fleet.center() as center:
            assert center.ledger.verify() == []
    except OperationsCenterError as error:
        assert "ledger restore" in str(error)


def its_configuration_is_whole_or_empty(fleet: Fleet) -> None:
    path = fleet.root / "new" / "operations_center.toml"
    assert not path.exists() or not path.read_text() or load_config(path, {}).roles


def is_open(run: Run) -> bool:
    return run.state is not RunState.CLOSED


def is_paused(fleet: Fleet) -> bool:
    with fleet.center() as center:
        return bool(center.ledger.pauses())


def directories(fleet: Fleet) -> set[str]:
    return {path.name for path in fleet.state.runs.iterdir()}


def nothing_is_open(fleet: Fleet) -> bool:
    return not any(map(is_open, runs(fleet)))


def only_open_runs_are_left(fleet: Fleet) -> bool:
    return all(map(is_open, runs(fleet))) and directories(fleet) <= {run.run_id for run in runs(fleet)}


def there_is_no_task(fleet: Fleet) -> bool:
    return not tasks(fleet)


@dataclass(frozen=True)
class Case:
    """A command, what it finds, what holds after its kill, and what after it was ``repeated`` with one of the codes."""

    words: Callable[[Fleet], list[str]]
    found: Callable[[Path, Fleet], None] = anew
    killed: Callable[[Fleet], None] = the_ledger_is_whole
    repeated: Callable[[Fleet], object] = tasks
    codes: tuple[int, ...] = (0,)


def say(*words: str) -> Callable[[Fleet], list[str]]:
    return lambda _fleet: list(words)


def of_task(number: int, *words: str) -> Callable[[Fleet], list[str]]:
    return lambda fleet: ["task", *words, task(fleet, number).task_id]


CASES = {
    "add": Case(say("task", "add", "imported"), repeated=lambda fleet: imported(fleet) in (1, 2)),
    "add, for the first time": Case(say("task", "add", "imported"), without_state, repeated=imported),
    "import": Case(say("task", "import", "tasks.jsonl"), killed=all_or_none_are_imported, repeated=imported),
    "edit": Case(
        of_task(READY[0], "edit", "--state", "backlog"),
        repeated=lambda fleet: task(fleet, READY[0]).state is TaskState.BACKLOG,
    ),
    "retry": Case(
        of_task(DONE[0], "retry"),
        # Once ready it may not be retried: it is as it was wanted.
        repeated=lambda fleet: task(fleet, DONE[0]).state is TaskState.READY,
    ),
    "cancel": Case(
        of_task(READY[0], "cancel"), repeated=lambda fleet: task(fleet, READY[0]).state is TaskState.CANCELLED
    ),
    "cancel, with an executor": Case(
        of_task(READY[0], "cancel"),
        with_executors,
        repeated=lambda fleet: (
            (task(fleet, READY[0]).state, run_of(fleet, READY[0]).outcome) == (TaskState.CANCELLED, Outcome.CANCELLED)
        ),
    ),
    "stop": Case(
        lambda fleet: ["stop", run_of(fleet, READY[0]).run_id],
        with_executors,
        repeated=lambda fleet: (
            (task(fleet, READY[0]).state, run_of(fleet, READY[0]).outcome) == (TaskState.BLOCKED, Outcome.STOPPED)
        ),
    ),
    "down --now": Case(say("down", "--now"), with_executors, repeated=nothing_is_open),
    "down": Case(say("down"), with_executors, repeated=lambda fleet: is_open(run_of(fleet, READY[0]))),
    "pause": Case(say("pause"), repeated=is_paused),
    "resume": Case(say("resume"), with_a_pause, repeated=lambda fleet: not is_paused(fleet)),
    "reconcile": Case(say("reconcile"), repeated=nothing_is_open),
    "watchdog": Case(say("watchdog", "--once"), repeated=nothing_is_open),
    "watch": Case(
        say("watch", "--role", "goal", "--once"),
        with_executors_let_go,
        repeated=lambda fleet: {task(fleet, number).state for number in READY} == {TaskState.DONE},
    ),
    "backup": Case(
        say("ledger", "backup", "backups"),
        killed=backups_are_whole,
        repeated=lambda fleet: any((fleet.root / "backups").glob("*.db")),
    ),
    "restore": Case(say("ledger", "restore", "backup.db"), repeated=runs),
    "restore, of a damaged ledger": Case(
        say("ledger", "restore", "backup.db"),
        with_a_damaged_ledger,
        killed=the_ledger_is_whole_or_refused,
        repeated=runs,
    ),
    "prune": Case(
        say("ledger", "prune", "--older-than", "1ms"),
        repeated=only_open_runs_are_left,
    ),
    "init": Case(
        say("init", "new"),
        killed=its_configuration_is_whole_or_empty,
        repeated=lambda fleet: load_config(fleet.root / "new" / "operations_center.toml", {}).roles,
        # It overwrites nothing.
        codes=(0, 1),
    ),
    "status, for the first time": Case(say("status"), without_state, repeated=there_is_no_task, codes=(3,)),
}


# Killed at each point


def command(fleet: Fleet, words: list[str]) -> int:
    """A process that is stopped before it runs the command; its pid."""

    def run() -> None:
        os.environ.update(fleet.environment)
        os.chdir(fleet.root)
        sys.stdout = sys.stderr = (fleet.root / "output").open("a")
        code = cli.run(words)
        sys.stdout.flush()
        os._exit(code)

    return forked_and_stopped(run)


def run_to_its_end(fleet: Fleet, words: list[str]) -> int:
    pid = command(fleet, words)
    os.kill(pid, signal.SIGCONT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def points_of(fleet: Fleet, words: list[str]) -> list[Point]:
    pid = command(fleet, words)
    strace = Strace(pid)
    os.kill(pid, signal.SIGCONT)
    points = calls_of(strace.lines(), within=fleet.root)
    strace.let_go()
    os.waitpid(pid, 0)
    return points[0]


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_is_killed_at_any_call_loses_nothing_and_is_done_by_repeating_it(
    fleet: Fleet, template: Path, name: str
) -> None:
    case = CASES[name]
    case.found(template, fleet)
    points = points_of(fleet, case.words(fleet))
    chosen = some_of(list(range(len(points))), max(1, len(points) // 3), list(CASES).index(name))
    for wanted in chosen:
        at = wanted
        # How often it looks for the end of something depends on the load: it may end before it comes to a late point.
        while not is_killed_at(points[at], template, fleet, case):
            assert at > 0, "it came to no point at all"
            at //= 2
    print(f" [{name}: {len(chosen)} of {len(points)} points]", end="")


def is_killed_at(point: Point, template: Path, fleet: Fleet, case: Case) -> bool:
    """Live through it; whether the command came to the point."""
    with naming(point):
        case.found(template, fleet)
        words = case.words(fleet)
        pid = command(fleet, words)
        hit = AtPoint(pid, point, signal.SIGKILL).wait()
        os.waitpid(pid, 0)
        case.killed(fleet)
        assert run_to_its_end(fleet, words) in case.codes, (fleet.root / "output").read_text()
        assert case.repeated(fleet)
        assert_the_rest_comes_to_its_end(fleet)
        return hit == pid


def assert_the_rest_comes_to_its_end(fleet: Fleet) -> None:
    fleet.let_go()
    with fleet.center() as center:

        def is_at_its_end() -> bool:
            clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
            return not center.ledger.open_runs()

        wait_until(is_at_its_end, "the end of every run")
        before = center.ledger.last_event()
        report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        assert (report.actions, report.violations) == ((), ())
        assert center.ledger.last_event() == before
        assert center.ledger.verify() == []
        assert all(each.state is not TaskState.RUNNING for each in center.board.tasks())
    assert fleet.broken_promises() == []
