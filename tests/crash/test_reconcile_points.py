"""A reconciliation, killed and stopped at every step: of dead runs, of a leftover, of stops, limits, cancelled tasks.

The points are those at which it changes something outside of itself, found by running (``tests.points``). It stands
still there and is killed, alone or with others; or a second one does the whole work first, and then the first goes on.
What happens rotates from point to point; everything at every point with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from operations_center.boards.local import NewTask
from operations_center.in_flight_reconcile.apply import HOLD_TASK_MS
from operations_center.keeper.inspect import read_exit
from operations_center.model import Outcome, Proof, TaskState
from operations_center.outcomes import Ending
from operations_center.stopping.runs import stop_run
from tests.crash.stage import CONFIG, EXECUTOR, LaterClock, Stage, Template, executors, keepers
from tests.fleet import wait_until
from tests.points import Stepped
from tests.runs import admit, dead_process, leave_run
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

RECONCILER, KEEPER, EXECUTORS, RIVAL = "reconciler", "keeper", "executor", "rival"

FATES: tuple[frozenset[str], ...] = (
    frozenset({RECONCILER}),
    frozenset({RIVAL}),
    frozenset({RECONCILER, KEEPER}),
    frozenset({RIVAL}),
    frozenset({RECONCILER, EXECUTORS}),
    frozenset({RECONCILER}),
    frozenset({RECONCILER, KEEPER, EXECUTORS}),
)
"""Who is killed at a point; or that a rival does the work while the reconciler stands still."""

FINISHER_OLD_MS = 60_000
"""So much later a run that somebody has settled, and not yet told the board about, is taken over."""

HOLD_OVER_MS = FINISHER_OLD_MS + HOLD_TASK_MS
"""So much later a task may run again whose hold was not released."""

PARTS = 2
SHARE = 1 if EVERY_POINT else 2
"""The suite takes every second point of what stops a living tree: these stories have most of their steps in common."""


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is stopped inside a transaction is ended by whoever waits for it; here after 40 ms."""
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)


def fates_at(number: int) -> Collection[frozenset[str]]:
    return set(FATES) if EVERY_POINT else [FATES[number % len(FATES)]]


class Point(NamedTuple):
    where: str | None
    fate: frozenset[str]


@dataclass(frozen=True)
class Case:
    """``prepare`` leaves what the reconciler finds, ``work`` is what it does until nothing is left to be stopped."""

    template: Template
    prepare: Callable[[Stage], object]
    work: Callable[[Stage], object]
    check: Callable[[Stage, Collection[str]], None]

    def story(self, root: Path, step: int, fate: Collection[str]) -> Point | None:
        """None if the reconciler came to its end before the step."""
        with self.template.staged(root, LaterClock()) as stage:
            self.prepare(stage)
            reconciler = stage.stepped(partial(self.work, stage), step)
            if reconciler.where is None:
                assert reconciler.wait() == 0
                self._check(stage, ())
                return None
            if RIVAL in fate:
                self._overtake(stage, reconciler)
            else:
                kill(stage, reconciler, fate)
            self._check(stage, fate)
            return Point(reconciler.where, frozenset(fate))

    def _overtake(self, stage: Stage, reconciler: Stepped) -> None:
        """Whoever comes back late loses every race, or was ended because it stood in the way."""
        stage.clock = LaterClock(FINISHER_OLD_MS)
        self.work(stage)
        with stage.center() as center:
            last = center.ledger.last_event()
        reconciler.go_on()
        status = reconciler.wait()
        ended_by_rival = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert status == 0 or (ended_by_rival and "store." in str(reconciler.where))
        with stage.center() as center:
            assert {event.kind for event in center.ledger.events(after=last)} <= {"run.lost_race"}

    def _check(self, stage: Stage, fate: Collection[str]) -> None:
        stage.assert_promises_are_kept()
        stage.clock = LaterClock(HOLD_OVER_MS)
        stage.go_on_to_the_end()
        assert stage.broken() == []
        assert not stage.living()
        self.check(stage, fate)


def kill(stage: Stage, reconciler: Stepped, victims: Collection[str]) -> None:
    reconciler.kill()
    assert os.WTERMSIG(reconciler.wait()) == signal.SIGKILL
    pids = {pid for pids in stage.living().values() for pid in pids}
    stage.kill([*(keepers(pids) if KEEPER in victims else ()), *(executors(pids) if EXECUTORS in victims else ())])


def at_every_point(case: Case, root: Path, part: int, share: int = 1) -> Iterator[Point]:
    for number, step in enumerate(itertools.count(1 + part, PARTS * share)):
        for fate in fates_at(number):
            point = case.story(root / f"{step} {' '.join(sorted(fate))}", step, fate)
            if point is None:
                return
            yield point


# Runs whose processes are gone


def leave_the_dead(stage: Stage) -> None:
    """One of each kind, everything of them gone, and a task that is shown as running without a run."""
    nobody = dead_process()
    with stage.fleet.center() as center:
        tasks = center.board.add([NewTask(name, "goal") for name in ("never begun", "settling", "stale")])
        leave_run(center, "t1", keeper=nobody, watcher=nobody)
        leave_run(center, "t2", keeper=nobody, watcher=nobody, record="exit 0 end")
        admit(center, tasks[0], nobody)
        settling = admit(center, tasks[1], nobody)
        done = Ending(Outcome.SUCCEEDED, Proof.EXIT_RECORDED, None, exit_code=0)
        assert center.settlement.settle(settling, done, nobody) is not None
        assert center.board.claim(tasks[2], "r999-abcdef") is not None


def check_the_dead(stage: Stage, _fate: Collection[str]) -> None:
    with stage.fleet.center() as center:
        runs = center.ledger.recent_runs(task_id=None, backend=None, limit=100)
        tasks = center.board.tasks()
    swept = {run.task_id: run.outcome for run in runs if run.watcher_pid and run.fence <= 4}
    assert swept == dict(
        zip(
            ("t1", "t2", "t3", "t4"),
            (Outcome.LOST, Outcome.SUCCEEDED, Outcome.NEVER_STARTED, Outcome.SUCCEEDED),
            strict=True,
        )
    )
    assert Counter((task.kind, task.state) for task in tasks) == {
        ("goal", TaskState.DONE): 5,
        ("after", TaskState.READY): 5,
    }
    assert [(task.attempts, task.interruptions) for task in tasks[:5]] == [(1, 0)] * 5
    begun = Counter(line.split()[1] for line in stage.witness if line.startswith("begin "))
    assert begun == {"t1": 1, "t3": 1, "t5": 1}


@pytest.fixture(scope="module")
def dead_runs(tmp_path_factory: pytest.TempPathFactory) -> Case:
    template = Template.make(tmp_path_factory.mktemp("dead"), tasks=2, config=CONFIG.replace("= 1", "= 9"))
    leave_the_dead(Stage(template.fleet))
    return Case(template, lambda stage: None, Stage.reconcile_until_no_stop_is_in_progress, check_the_dead)


@pytest.mark.parametrize("part", range(PARTS))
def test_dead_runs_are_freed_whatever_becomes_of_the_reconciler(dead_runs: Case, tmp_path: Path, part: int) -> None:
    points = list(at_every_point(dead_runs, tmp_path, part))
    assert len(points) >= 60 // PARTS
    assert len({point.fate for point in points}) > 1


# Runs that are to be ended

STUBBORN = EXECUTOR.replace("say begin", "trap '' TERM\nsay begin")

LEAVING_SOMETHING = EXECUTOR[: EXECUTOR.index("read -r _")] + "(trap '' TERM; exec sleep 300) &\n"


def leave_something(stage: Stage) -> None:
    run_id = stage.leave_a_run()
    wait_until(lambda: read_exit(stage.fleet.state.run(run_id)), "the exit record")


def cancel(stage: Stage) -> None:
    stage.leave_a_run()
    with stage.fleet.center() as center:
        center.board.cancel("t1")


def stop(stage: Stage) -> None:
    with stage.center() as center:
        (run,) = center.ledger.recent_runs(task_id="t1", backend=None, limit=1)
        stop_run(center, run.run_id, "enough")


@dataclass(frozen=True)
class End:
    """How the first run ends and where its task: for the rules there is no other way, whoever dies."""

    outcomes: frozenset[Outcome]
    states: frozenset[TaskState]

    def check(self, stage: Stage, fate: Collection[str]) -> None:
        with stage.fleet.center() as center:
            *_, first = center.ledger.recent_runs(task_id="t1", backend=None, limit=100)
            task = center.board.task("t1")
        assert task is not None
        by_death = {Outcome.KILLED, Outcome.LOST} if {KEEPER, EXECUTORS} & set(fate) else set()
        if self.outcomes == {Outcome.SUCCEEDED}:
            # Its exit was recorded before anybody died.
            by_death = set()
        assert first.outcome in self.outcomes | by_death
        assert task.state in self.states | ({TaskState.DONE} if first.outcome in by_death - self.outcomes else set())


ENDED: dict[str, tuple[str, str, Callable[[Stage], object], Callable[[Stage], object], End]] = {
    "what an executor has left": (
        LEAVING_SOMETHING,
        "",
        leave_something,
        Stage.reconcile_until_no_stop_is_in_progress,
        End(frozenset({Outcome.SUCCEEDED}), frozenset({TaskState.DONE})),
    ),
    "a run that a person stops": (
        STUBBORN,
        "",
        Stage.leave_a_run,
        stop,
        # Without a stop that is stored it goes on to its own end.
        End(frozenset({Outcome.STOPPED, Outcome.SUCCEEDED}), frozenset({TaskState.BLOCKED, TaskState.DONE})),
    ),
    "a run past its limit": (
        STUBBORN,
        'timeout = "10s"',
        Stage.leave_a_run,
        Stage.reconcile_until_no_stop_is_in_progress,
        End(frozenset({Outcome.TIMED_OUT}), frozenset({TaskState.DONE})),
    ),
    "a run whose task is cancelled": (
        STUBBORN,
        "",
        cancel,
        Stage.reconcile_until_no_stop_is_in_progress,
        End(frozenset({Outcome.CANCELLED}), frozenset({TaskState.CANCELLED})),
    ),
}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("what", ENDED)
def test_whatever_is_to_be_ended_is_ended_whatever_becomes_of_the_reconciler(
    tmp_path: Path, what: str, part: int
) -> None:
    executor, limit, prepare, work, end = ENDED[what]
    (tmp_path / "template").mkdir()
    template = Template.make(tmp_path / "template", config=f"{CONFIG}{limit}\n", executor=executor)
    points = list(at_every_point(Case(template, prepare, work, end.check), tmp_path, part, SHARE))
    assert len(points) >= 80 // PARTS // SHARE
    assert len({point.fate for point in points}) > 3
