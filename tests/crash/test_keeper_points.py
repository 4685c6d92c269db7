"""Keeper, timer and executor, killed and stopped at each of their system calls, whoever watches."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path

import pytest

from operations_center.boards.local import NewTask
from operations_center.clock import Now, SystemClock
from operations_center.config import load_config
from operations_center.identity import Process, is_alive
from operations_center.in_flight_reconcile import Surroundings, Trigger, clear_orphaned_in_flight
from operations_center.keeper import script
from operations_center.keeper.cgroup import usable_cgroup_parent
from operations_center.keeper.inspect import ExitRecord, ProcessTable, read_exit
from operations_center.model import HOLDS_SLOT, Outcome, Run, RunState, TaskState
from operations_center.pidfds import wait_for_end
from operations_center.wiring import Center
from tests.fleet import PATIENCE_S, Fleet, kill_if_there, wait_until
from tests.runs import process_of, run_of_a_dead_watcher, start_run
from tests.syscalls import (
    EVERY_POINT,
    AtPoint,
    Point,
    Strace,
    calls_of,
    naming,
    needs_strace,
    some_of,
    wait_until_stopped,
)

pytestmark = [needs_strace, pytest.mark.timeout(1800 if EVERY_POINT else 120)]

CONFIG = """
[center]
cgroup = "{cgroup}"
[roles.goal]
backend = "agent"
concurrency = 4
max_attempts = 100
retry_backoff = {{ initial = "0s" }}
[backends.agent]
kind = "command"
argv = ["sh", "-c", '''{script}''']
stdin = "none"
max_concurrent = 1
grace = "200ms"
{limits}
"""

EXITS_BEFORE_ITS_CHILD = """
echo "$OPERATIONS_CENTER_TASK_ID $OPERATIONS_CENTER_RUN_ID" >>"$HOME/begun"
until [ -e "$HOME/go" ]; do sleep 0.01; done
sleep 0.05 &
echo "$OPERATIONS_CENTER_TASK_ID $OPERATIONS_CENTER_RUN_ID" >>"$HOME/ended"
"""
"""Ends when it is let go, with 0, and before its own child."""

IGNORES_TERM = """
trap "" TERM
echo "$OPERATIONS_CENTER_TASK_ID $OPERATIONS_CENTER_RUN_ID" >>"$HOME/begun"
exec sleep 60
"""

FORKS = ("clone", "clone3", "fork", "vfork")
StopFirst = Callable[[str], None]


class Watching(Enum):
    ALIVE = "its watcher lives"
    DEAD = "its watcher is dead"
    UNRECORDED = "its watcher died before it could record the start"


@dataclass(frozen=True)
class Life:
    """A run whose keeper or timer is stopped before its first instruction."""

    task_id: str
    run_id: str
    keeper: Process
    timer: Process


@dataclass
class Lives:
    """Starts runs one after the other in one fleet, and looks after them until they have ended."""

    fleet: Fleet
    center: Center
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def begin(self, watching: Watching) -> Life:
        (task_id,) = self.center.board.add([NewTask("Do it", "goal")])
        if watching is Watching.ALIVE:
            started = start_run(self.fleet, self.center, task_id)
            self.children += started.children
            run_id, pids = started.run.run_id, [child.pid for child in started.children]
        else:
            recorded = watching is Watching.DEAD
            run_id, pids = run_of_a_dead_watcher(self.fleet, task_id, recorded=recorded)
        return Life(task_id, run_id, *map(process_of, pids))

    def run(self, life: Life) -> Run:
        run = self.center.ledger.run(life.run_id)
        assert run is not None
        return run

    def reopen(self) -> None:
        """With the configuration as it is now."""
        self.center = replace(self.center, config=load_config(self.fleet.root / "operations_center.toml", os.environ))

    def let_go(self) -> None:
        self.fleet.let_go()

    def hold(self) -> None:
        (self.fleet.root / "go").unlink(missing_ok=True)

    def reconcile(self, life: Life, surroundings: Surroundings | None = None) -> None:
        """One pass; the slot is never free while something of the run lives."""
        clear_orphaned_in_flight(surroundings or self.center.surroundings, trigger=Trigger.CLI)
        if self.run(life).state not in HOLDS_SLOT:
            assert not ProcessTable.scan().pids_of_run(life.run_id)
            assert not is_alive(life.keeper)

    def see_to_the_end(self, life: Life, surroundings: Surroundings | None = None) -> Run:
        """Reconcile until the run is closed, then once more, to no effect."""

        deadline = time.monotonic() + PATIENCE_S
        while self.run(life).state is not RunState.CLOSED:
            assert time.monotonic() < deadline, f"still waiting for the end of run {life.run_id}"
            self.reconcile(life, surroundings)
            wait_for_end([life.keeper], time.monotonic() + 0.05)
        wait_until(lambda: not is_alive(life.timer), "the end of the timer")
        before = self.center.ledger.last_event()
        report = clear_orphaned_in_flight(self.center.surroundings, trigger=Trigger.CLI)
        assert (report.actions, report.violations, report.scanned_count) == ((), (), 0)
        assert self.center.ledger.last_event() == before
        for child in self.children:
            child.wait(PATIENCE_S)
        self.children.clear()
        assert self.fleet.broken_promises() == []
        assert_its_end_is_what_it_recorded(self, life)
        return self.run(life)

    def count(self, name: str, life: Life) -> int:
        """How often executors of this run told that they have begun or ended."""
        path = self.fleet.root / name
        return path.read_text().splitlines().count(f"{life.task_id} {life.run_id}") if path.exists() else 0


def assert_its_end_is_what_it_recorded(lives: Lives, life: Life) -> None:
    run, recorded = lives.run(life), read_exit(lives.fleet.state.run(life.run_id))
    assert (run.outcome is Outcome.SUCCEEDED) is (recorded == ExitRecord(0))
    (task,) = [task for task in lives.center.board.tasks() if task.task_id == life.task_id]
    assert task.state is (TaskState.DONE if run.outcome is Outcome.SUCCEEDED else TaskState.READY)
    assert lives.count("begun", life) <= 1
    if run.outcome is Outcome.NEVER_STARTED:
        assert lives.count("begun", life) == 0


@pytest.fixture
def lives(fleet: Fleet) -> Iterator[Lives]:
    configure(fleet, EXITS_BEFORE_ITS_CHILD, 'timeout = "1h"')
    with fleet.center() as center:
        yield Lives(fleet, center)


def configure(fleet: Fleet, script: str, limits: str, cgroup: str = "auto") -> None:
    fleet.configure(CONFIG.format(script=script, limits=limits, cgroup=cgroup))


@pytest.fixture
def stop_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StopFirst:
    """Have keeper or timer stop before its first instruction, where strace can be attached to it."""

    def stop(who: str) -> None:
        shell = tmp_path / "sh"
        shell.write_text(f'#!/bin/sh\n[ "$2" != {who} ] || kill -STOP $$\nexec /bin/sh "$@"\n')
        shell.chmod(0o700)
        monkeypatch.setattr(script, "SHELL", str(shell))

    return stop


# What there is to die at


def trace(pid: int, *options: str) -> dict[int, list[Point]]:
    """The points of a process that is stopped, by process, until all that is traced has ended."""
    wait_until_stopped(pid)
    strace = Strace(pid, *options)
    os.kill(pid, signal.SIGCONT)
    points = calls_of(strace.lines())
    strace.let_go()
    return points


def points_of_keeper(lives: Lives) -> list[Point]:
    lives.let_go()
    life = lives.begin(Watching.ALIVE)
    (points,) = trace(life.keeper.pid).values()
    assert lives.see_to_the_end(life).outcome is Outcome.SUCCEEDED
    return points


def first(points: list[Point], *names: str) -> int:
    return next(at for at, point in enumerate(points) if point.name in names)


def begin_at(lives: Lives, points: list[Point], at: int, number: signal.Signals, watching: Watching) -> Life:
    """A run whose keeper has been killed or stopped at a point; its executor waits, if it runs by then."""
    lives.hold() if at <= first(points, "wait4") else lives.let_go()
    life = lives.begin(watching)
    wait_until_stopped(life.keeper.pid)
    hit = AtPoint(life.keeper.pid, points[at], number).wait()
    # How long it has children depends on the load: after its record it may end before it comes to the point.
    assert hit == life.keeper.pid or (hit is None and read_exit(lives.fleet.state.run(life.run_id)))
    return life


def assert_every_task_can_be_done(lives: Lives) -> None:
    lives.let_go()
    configure(lives.fleet, EXITS_BEFORE_ITS_CHILD, 'timeout = "1h"')
    lives.fleet.run("watch", "--role", "goal", "--once")
    assert {task.state for task in lives.center.board.tasks()} == {TaskState.DONE}
    runs = lives.center.ledger.recent_runs(task_id=None, backend=None, limit=10_000)
    succeeded = Counter(run.task_id for run in runs if run.outcome is Outcome.SUCCEEDED)
    assert set(succeeded.values()) == {1}
    assert lives.fleet.broken_promises() == []


BY_WATCHING = pytest.mark.parametrize("watching", Watching, ids=lambda each: each.name.lower())


def turn_of(watching: Watching) -> int:
    return list(Watching).index(watching)


# The keeper


def test_the_points_of_a_keeper_are_those_that_matter(lives: Lives, stop_first: StopFirst) -> None:
    stop_first("keeper")
    points = points_of_keeper(lives)
    for what in ("gate", "exit"):
        assert [point.name for point in points if f'"{what}"' in point.shown] == ["openat"]
    for call, least in (("execve", 1), ("write", 3), ("wait4", 3), ("exit_group", 1)):
        assert sum(point.name == call for point in points) >= least, call


@BY_WATCHING
@pytest.mark.parametrize("cgroup", ["auto", "off"])
def test_a_keeper_killed_at_any_call_leaves_a_run_that_is_ended_and_runs_again(
    lives: Lives, stop_first: StopFirst, watching: Watching, cgroup: str
) -> None:
    if cgroup == "auto" and usable_cgroup_parent() is None:
        pytest.skip("this machine offers no usable cgroup")
    configure(lives.fleet, EXITS_BEFORE_ITS_CHILD, 'timeout = "1h"', cgroup)
    lives.reopen()
    stop_first("keeper")
    points = points_of_keeper(lives)
    for at in some_of(list(range(len(points))), 6, 2 * turn_of(watching) + (cgroup == "off")):
        with naming(points[at]):
            lives.see_to_the_end(begin_at(lives, points, at, signal.SIGKILL, watching))
    assert_every_task_can_be_done(lives)


@BY_WATCHING
@pytest.mark.parametrize("dies", ["nobody", "executor", "timer"])
def test_a_keeper_stopped_at_any_call_keeps_the_slot_until_it_has_gone_on_to_its_end(
    lives: Lives, stop_first: StopFirst, watching: Watching, dies: str
) -> None:
    stop_first("keeper")
    points = points_of_keeper(lives)
    # There is nothing that it could be stopped in after its last call.
    for at in some_of(list(range(len(points) - 1)), 6, 2 * turn_of(watching) + len(dies)):
        with naming(points[at]):
            life = begin_at(lives, points, at, signal.SIGSTOP, watching)
            if dies == "executor":
                end_executor(life)
            elif dies == "timer":
                kill_if_there(life.timer.pid)
            # A second after the exit was recorded, or five without an executor, it is woken; until then it is let be.
            for _ in range(2):
                lives.reconcile(life)
            continue_if_there(life.keeper)
            lives.let_go()
            run = lives.see_to_the_end(life)
            if dies != "executor" and lives.count("begun", life):
                assert (run.outcome, lives.count("ended", life)) == (Outcome.SUCCEEDED, 1)
    assert_every_task_can_be_done(lives)


def end_executor(life: Life) -> None:
    for pid in executors(life):
        kill_if_there(pid)


def has_no_executor(life: Life) -> bool:
    return not executors(life)


def executors(life: Life) -> frozenset[int]:
    return ProcessTable.scan().pids_of_run(life.run_id) - {life.keeper.pid}


def continue_if_there(process: Process) -> None:
    """A reconciliation may have woken it already, and it may have ended."""
    if is_alive(process):
        kill_if_there(process.pid, signal.SIGCONT)


@BY_WATCHING
def test_a_keeper_that_stays_stopped_is_woken_and_nothing_of_its_run_is_done_twice(
    lives: Lives, stop_first: StopFirst, watching: Watching
) -> None:
    stop_first("keeper")
    points = points_of_keeper(lives)
    for at in some_of(list(range(len(points) - 1)), 6, turn_of(watching)):
        with naming(points[at]):
            life = begin_at(lives, points, at, signal.SIGSTOP, watching)
            lives.let_go()
            wait_until(partial(has_no_executor, life), "the executor's end")
            later = replace(lives.center.surroundings, clock=LaterClock())
            for surroundings in (lives.center.surroundings, later, later):
                lives.reconcile(life, surroundings)
            # One that has created its gate and not written it could be anything: it is adopted as it is.
            continue_if_there(life.keeper)
            lives.see_to_the_end(life, later)
    assert_every_task_can_be_done(lives)


class LaterClock(SystemClock):
    """Eleven seconds ahead: nothing is young any more."""

    def now(self) -> Now:
        now = super().now()
        return Now(now.wall + 11_000, now.monotonic + 11_000)


# The executor, before it is one


def begin_with_executor_ahead(lives: Lives, points: list[Point], watching: Watching) -> Life:
    """The keeper is stopped just before it forks what becomes the executor."""
    life = begin_at(lives, points, first(points, *FORKS) - 1, signal.SIGSTOP, watching)
    lives.let_go()
    return life


def points_of_executor(lives: Lives, points: list[Point]) -> list[Point]:
    life = begin_with_executor_ahead(lives, points, Watching.ALIVE)
    calls = trace(life.keeper.pid, "-f")
    child = next(pid for pid in calls if pid != life.keeper.pid)
    lives.see_to_the_end(life)
    into_session, into_program = (at for at, point in enumerate(calls[child]) if point.name == "execve")
    assert into_session < into_program
    return calls[child][: into_program + 1]


@BY_WATCHING
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_executor_that_dies_or_stops_at_any_call_before_its_first_has_its_end_recorded(
    lives: Lives, stop_first: StopFirst, number: signal.Signals, watching: Watching
) -> None:
    stop_first("keeper")
    of_keeper = points_of_keeper(lives)
    for point in some_of(points_of_executor(lives, of_keeper), 3, turn_of(watching)):
        with naming(point):
            life = begin_with_executor_ahead(lives, of_keeper, watching)
            hit = AtPoint(life.keeper.pid, point, number, of_child=True).wait()
            assert hit not in (None, life.keeper.pid)
            if number is signal.SIGSTOP:
                lives.reconcile(life)
                assert lives.run(life).state in HOLDS_SLOT
                os.kill(hit or 0, signal.SIGCONT)
            run = lives.see_to_the_end(life)
            assert run.outcome is (Outcome.KILLED if number is signal.SIGKILL else Outcome.SUCCEEDED)
    assert_every_task_can_be_done(lives)


# The timer


def begin_with_limits(lives: Lives, watching: Watching) -> Life:
    life = lives.begin(watching)
    wait_until_stopped(life.timer.pid)
    return life


@BY_WATCHING
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_limit_holds_though_the_timer_dies_or_stops_at_any_call(
    lives: Lives, stop_first: StopFirst, number: signal.Signals, watching: Watching
) -> None:
    configure(lives.fleet, IGNORES_TERM, 'timeout = "500ms"\nidle_timeout = "150ms"')
    stop_first("timer")
    lives.reopen()
    life = begin_with_limits(lives, Watching.ALIVE)
    (points,) = trace(life.timer.pid).values()
    assert lives.see_to_the_end(life).outcome is Outcome.TIMED_OUT
    chosen = some_of(points[:-1], 12, len(number.name) + turn_of(watching))
    hits = 0
    for point in chosen:
        with naming(point):
            life = begin_with_limits(lives, watching)
            hit = AtPoint(life.timer.pid, point, number).wait()
            hits += hit is not None
            lives.reconcile(life)
            if number is signal.SIGSTOP:
                continue_if_there(life.timer)
            assert lives.see_to_the_end(life).outcome is Outcome.TIMED_OUT
    # How often it looks before a limit has passed depends on the load.
    assert hits >= len(chosen) // 2
    assert_every_task_can_be_done(lives)
