"""The sweep at a watcher's start: of many dead runs, killed at its steps, and by several that start at once."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from operations_center.boards import Claim, ReadyTask
from operations_center.boards.local import NewTask
from operations_center.errors import BoardUnreachable
from operations_center.in_flight_reconcile import (
    LOCK_WITHIN_S,
    STARTUP_BUDGET_S,
    Mode,
    Report,
    Surroundings,
    Trigger,
    freeing,
    reconcile_in_flight_on_startup,
)
from operations_center.locks import lock_within
from operations_center.model import Finish, Outcome, Proof, Run, RunState, Task, TaskState
from operations_center.settlement import Settlement
from operations_center.wiring import Center
from tests.fleet import Fleet
from tests.points import Stepped, calls_of, steps_of
from tests.runs import dead_process, leave_run, process_of

RUNS = 300
BATCH = 100
AMPLE_S = 60.0
"""The budget of a sweep that is not about its budget: the machine may have much else to do."""
KILLS = 25
STEPS = calls_of(
    "in_flight_reconcile.apply", "in_flight_reconcile.freeing", "settlement", "ledger.sqlite", "boards.local"
)

CONFIG = """
[roles.goal]
backend = "agent"
retry_backoff = { initial = "0s" }
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 2
"""


@pytest.fixture(scope="module", autouse=True)
def batches_of_a_hundred() -> Iterator[None]:
    """So that a few hundred runs are several batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freeing, "BATCH", BATCH)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory in which everything was killed at once."""
    fleet = Fleet(tmp_path_factory.mktemp("template"))
    fleet.configure(CONFIG)
    nobody = dead_process()
    with fleet.center() as center, center.store.transaction():
        for task_id in center.board.add([NewTask(f"task {number}", "goal") for number in range(RUNS)]):
            leave_run(center, task_id, keeper=nobody, watcher=nobody)
    return fleet.root


def copy_of(template: Path, fleet: Fleet) -> Fleet:
    shutil.rmtree(fleet.root)
    shutil.copytree(template, fleet.root)
    return fleet


@pytest.fixture
def fleet(fleet: Fleet, template: Path) -> Fleet:
    return copy_of(template, fleet)


def sweep(fleet: Fleet) -> Report:
    with fleet.center() as center:
        return reconcile_in_flight_on_startup(center.surroundings, role="goal", budget_s=AMPLE_S)


def in_a_process(body: Callable[[], Report]) -> Callable[[], dict[str, Any]]:
    """Begin to run it in a process of its own; what is returned waits for its report."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(write_end, "w") as pipe:
                pipe.write(json.dumps(body().as_json()))
        finally:
            os._exit(0)
    os.close(write_end)

    def answer() -> dict[str, Any]:
        with os.fdopen(read_end) as pipe:
            told = pipe.read()
        os.waitpid(pid, 0)
        report: dict[str, Any] = json.loads(told)
        return report

    return answer


def tasks(fleet: Fleet) -> list[Task]:
    with fleet.center() as center:
        return center.board.tasks()


def runs(fleet: Fleet) -> list[Run]:
    with fleet.center() as center:
        return center.ledger.recent_runs(task_id=None, backend=None, limit=2 * RUNS)


def assert_everything_is_swept(fleet: Fleet) -> None:
    assert Counter((run.state, run.outcome, run.proof) for run in runs(fleet)) == {
        (RunState.CLOSED, Outcome.LOST, Proof.PROCESS_GONE): RUNS
    }
    interrupted = (TaskState.READY, 0, 1)
    assert Counter((task.state, task.attempts, task.interruptions) for task in tasks(fleet)) == {interrupted: RUNS}
    with fleet.center() as center:
        assert center.ledger.slots_held() == {}
        told = Counter((event.kind, event.run_id) for event in center.ledger.events())
        assert [told["run.settled", run.run_id] for run in runs(fleet)] == [1] * RUNS
        assert [told["run.closed", run.run_id] for run in runs(fleet)] == [1] * RUNS
        assert center.ledger.verify() == []


def assert_a_further_sweep_does_nothing(fleet: Fleet) -> None:
    with fleet.center() as center:
        before = center.ledger.last_event()
        report = reconcile_in_flight_on_startup(center.surroundings, role="goal", budget_s=AMPLE_S)
        assert (report.actions, report.scanned_count, report.error, report.skipped) == ((), 0, None, None)
        assert center.ledger.last_event() == before


def test_300_dead_runs_are_freed_with_proof_within_the_budget(fleet: Fleet) -> None:
    before = time.process_time()
    report = sweep(fleet)
    # The processor's time: what else the machine does at the moment is not the program's doing.
    assert time.process_time() - before < STARTUP_BUDGET_S

    assert (report.verdicts, report.skipped, report.error) == ((("orphan", RUNS),), None, None)
    assert report.applied == report.scanned_count == RUNS
    assert {each.action.proof for each in report.actions} == {Proof.PROCESS_GONE}
    assert_everything_is_swept(fleet)
    assert_a_further_sweep_does_nothing(fleet)


# Killed at its steps


@pytest.fixture(scope="module")
def steps(template: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    fleet = copy_of(template, Fleet(tmp_path_factory.mktemp("counted")))
    return len(steps_of(partial(sweep, fleet), STEPS))


@pytest.mark.parametrize("part", range(KILLS))
def test_a_sweep_that_is_killed_at_any_step_is_completed_by_the_next(fleet: Fleet, steps: int, part: int) -> None:
    # Spread over the whole sweep, and never twice at the same place of a batch.
    step = max(1, (steps - 1) * part // (KILLS - 1) - part * 7 % 31)
    killed = Stepped(partial(sweep, fleet), step, signal.SIGKILL, STEPS)
    assert killed.where is not None
    assert os.WTERMSIG(killed.wait()) == signal.SIGKILL

    report = sweep(fleet)

    assert (report.skipped, report.error) == (None, None)
    assert {each.done for each in report.actions} <= {"applied"}
    assert_everything_is_swept(fleet)
    assert_a_further_sweep_does_nothing(fleet)


def test_a_sweep_that_is_killed_again_and_again_comes_to_its_end(fleet: Fleet, steps: int) -> None:
    for part in (2, 3, 5, 7, 11):
        Stepped(partial(sweep, fleet), steps // part, signal.SIGKILL, STEPS).wait()
    sweep(fleet)
    assert_everything_is_swept(fleet)
    assert_a_further_sweep_does_nothing(fleet)


# Several at once, and in each other's way


def test_of_four_that_start_at_once_one_sweeps_and_none_raises(fleet: Fleet) -> None:
    answers = [in_a_process(partial(sweep, fleet)) for _ in range(4)]
    reports = [answer() for answer in answers]

    assert [report["error"] for report in reports] == [None] * 4
    assert sorted(report["count"] for report in reports) == [0, 0, 0, RUNS]
    for report in reports:
        assert report["skipped"] in (None, "lock_held")
        assert {action["action"] for action in report["actions"]} <= {"applied"}
    assert_everything_is_swept(fleet)


def test_whoever_finds_the_start_up_lock_held_skips_the_sweep_in_time(fleet: Fleet) -> None:
    with lock_within(fleet.state.startup_lock, 0.0) as held:
        assert held
        report = in_a_process(partial(sweep, fleet))()
    assert (report["skipped"], report["error"], report["count"]) == ("lock_held", None, 0)
    assert LOCK_WITHIN_S <= report["wall_ms"] / 1000 < LOCK_WITHIN_S + 5.0
    assert {run.state for run in runs(fleet)} == {RunState.RUNNING}
    skipped = fleet.json("status", expect=3)["reconcile"]["startup"]
    assert (skipped["skipped"], skipped["verdicts"], skipped["wall_ms"]) == ("lock_held", {}, report["wall_ms"])
    sweep(fleet)
    assert_everything_is_swept(fleet)
    swept = fleet.json("status", expect=3)["reconcile"]["startup"]
    assert (swept["skipped"], swept["verdicts"]) == (None, {"orphan": RUNS})


def test_a_sweep_that_ends_just_before_another_is_skipped_is_the_one_that_is_remembered(fleet: Fleet) -> None:
    with fleet.center() as center, lock_within(fleet.state.startup_lock, 0.0):
        now = center.clock.now().wall
        swept = Report(Trigger.STARTUP, Mode.APPLY, "here", now, verdicts=(("orphan", RUNS),))
        center.ledger.record_reconcile(swept.as_json(), now + 60_000)
        report = reconcile_in_flight_on_startup(center.surroundings, role="goal", budget_s=0.0)
        assert report.skipped == "lock_held"
        assert center.ledger.reconciles()["startup"]["verdicts"] == {"orphan": RUNS}


def test_a_skip_that_cannot_be_remembered_keeps_nobody_from_coming_up(fleet: Fleet) -> None:
    with fleet.center() as center, fleet.center() as other, lock_within(fleet.state.startup_lock, 0.0):
        with other.store.transaction():
            report = reconcile_in_flight_on_startup(center.surroundings, role="goal", budget_s=0.1)
        assert (report.skipped, report.error) == ("lock_held", None)
        assert "startup" not in center.ledger.reconciles()


def test_a_sweep_stops_when_its_budget_is_used_up_and_the_next_goes_on(fleet: Fleet) -> None:
    with fleet.center() as center:
        report = reconcile_in_flight_on_startup(center.surroundings, role="goal", budget_s=0.0)
    assert (report.skipped, report.error) == ("budget", None)
    sweep(fleet)
    assert_everything_is_swept(fleet)


# Without a board


class DeadBoard:
    """A board that does not answer; ``answers`` is how many calls go through to the real one before that."""

    def __init__(self, real: Any, answers: int = 0) -> None:
        self._real = real
        self._answers = answers

    def _ask(self) -> Any:
        self._answers -= 1
        if self._answers < 0:
            raise BoardUnreachable("cannot reach the board: it does not answer; look whether it is up")
        return self._real

    def ready(
        self, kinds: Collection[str], backends: Collection[str | None], after: ReadyTask | None = None
    ) -> Sequence[ReadyTask]:
        answer: Sequence[ReadyTask] = self._ask().ready(kinds, backends, after)
        return answer

    def next_ready_at(self, kinds: Collection[str]) -> int | None:
        answer: int | None = self._ask().next_ready_at(kinds)
        return answer

    def states(self, task_ids: Collection[str]) -> Mapping[str, TaskState | None]:
        answer: Mapping[str, TaskState | None] = self._ask().states(task_ids)
        return answer

    def task(self, task_id: str) -> Task | None:
        task: Task | None = self._ask().task(task_id)
        return task

    def running(self) -> Sequence[Claim]:
        answer: Sequence[Claim] = self._ask().running()
        return answer

    def claim(self, task_id: str, run_id: str) -> Task | None:
        task: Task | None = self._ask().claim(task_id, run_id)
        return task

    def finish(self, finishes: Mapping[str, tuple[str, Finish]]) -> Mapping[str, str]:
        answer: Mapping[str, str] = self._ask().finish(finishes)
        return answer

    def hold(self, task_id: str, run_id: str) -> bool:
        return bool(self._ask().hold(task_id, run_id))

    def requeue(self, claim: Claim) -> bool:
        return bool(self._ask().requeue(claim))

    def block(self, task_id: str, run_id: str, finish: Finish) -> None:
        self._ask().block(task_id, run_id, finish)


def with_board(center: Center, board: DeadBoard) -> Surroundings:
    settlement: Settlement = replace(center.settlement, board=board)
    return replace(center.surroundings, board=board, settlement=settlement)


def sweep_without_board(fleet: Fleet, answers: int) -> Report:
    with fleet.center() as center:
        surroundings = with_board(center, DeadBoard(center.board, answers))
        return reconcile_in_flight_on_startup(surroundings, role="goal", budget_s=AMPLE_S)


@pytest.mark.parametrize(
    ("answers", "skipped"),
    [(0, "board_unreachable"), (1, None), (2, None)],
    ids=["never", "after all reading", "after one batch"],
)
def test_without_a_board_slots_are_freed_and_the_board_is_told_by_the_next_sweep(
    fleet: Fleet, answers: int, skipped: str | None
) -> None:
    report = in_a_process(partial(sweep_without_board, fleet, answers))()

    told = BATCH * max(0, answers - 1)
    assert (report["skipped"], report["error"], report["verdicts"]) == (skipped, None, {"orphan": RUNS})
    assert Counter(action["action"] for action in report["actions"]) == {"applied": RUNS}
    assert sum("does not answer" in (action["error"] or "") for action in report["actions"]) == RUNS - told
    states = Counter(run.state for run in runs(fleet))
    assert (states[RunState.SETTLING], states[RunState.CLOSED]) == (RUNS - told, told)
    assert Counter(task.state for task in tasks(fleet))[TaskState.RUNNING] == RUNS - told

    replayed = sweep(fleet)

    assert dict(replayed.verdicts) == {"replay": RUNS - told}
    assert_everything_is_swept(fleet)
    assert_a_further_sweep_does_nothing(fleet)


def test_without_a_board_nothing_that_lives_is_freed(fleet: Fleet) -> None:
    script = ["sh", "-c", "sleep 300 >/dev/null & echo; wait"]
    with subprocess.Popen(script, start_new_session=True, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == b"\n"
        try:
            with fleet.center() as center:
                (task_id,) = center.board.add([NewTask("it lives", "goal")])
                run_id = leave_run(center, task_id, keeper=process_of(living.pid), watcher=dead_process())
            report = in_a_process(partial(sweep_without_board, fleet, 0))()
            assert report["verdicts"] == {"adopt": 1, "orphan": RUNS}
            with fleet.center() as center:
                assert center.ledger.slots_held() == {"agent": 1}
                present = center.ledger.run(run_id)
            assert present is not None
            assert present.state is RunState.RUNNING
        finally:
            os.killpg(living.pid, signal.SIGKILL)
