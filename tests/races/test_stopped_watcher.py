"""A watcher that is stopped at any step of its life and wakes up after others have done its work.

The points are those at which it changes something outside of itself, found by running (``tests.points``). The suite
takes every fourth of them; all with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from operations_center.model import Outcome, RunState, TaskState
from tests.crash.stage import LaterClock, Stage, Template
from tests.crash.test_run_points import first_watcher, next_watcher
from tests.points import Stepped
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

LATER_MS = 60_000
"""Past every span for which a reservation or a finish is left to a watcher that is alive."""

PARTS = 4
SHARE = 1 if EVERY_POINT else 4


@pytest.fixture(autouse=True)
def wait_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a writer that is stopped inside a transaction, and for the lock of the start."""
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)
    monkeypatch.setattr("operations_center.in_flight_reconcile.LOCK_WITHIN_S", 0.05)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template.make(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("scenario", "least"), [(first_watcher, 90), (next_watcher, 75)])
def test_a_watcher_that_wakes_up_late_starts_and_settles_nothing_a_second_time(
    template: Template, tmp_path: Path, scenario: Callable[[Stage, int], Stepped], least: int, part: int
) -> None:
    for step in itertools.count(1 + part * SHARE, PARTS * SHARE):
        with template.staged(tmp_path / str(step)) as stage:
            watcher = scenario(stage, step)
            if watcher.where is None:
                break
            others_do_its_work(stage)
            goes_on(watcher)
            assert_the_task_ran_once(stage)
    assert step >= least


def others_do_its_work(stage: Stage) -> None:
    """A reconciliation, and the next watcher of the role: somebody has removed the lock that kept it away."""
    # An executor that was let go already must not end between the reconciliation and the question how things are.
    stage.come_to_rest()
    stage.clock = LaterClock(LATER_MS)
    stage.reconcile_until_no_stop_is_in_progress()
    assert stage.broken() == []
    stage.let_go()
    stage.fleet.state.watcher_lock("goal").unlink(missing_ok=True)
    stage.in_a_process(stage.watch)
    stage.come_to_rest()
    stage.reconcile_until_no_stop_is_in_progress()
    assert stage.broken() == []


def goes_on(watcher: Stepped) -> None:
    """To its end; or somebody has ended it, because it was stopped inside a transaction."""
    watcher.go_on()
    status = watcher.wait()
    assert status == 0 or (os.WTERMSIG(status) == signal.SIGKILL and "store." in str(watcher.where)), watcher.where


def assert_the_task_ran_once(stage: Stage) -> None:
    stage.come_to_rest()
    stage.go_on_to_the_end()
    assert stage.broken() == []
    stage.assert_a_further_reconcile_does_nothing()
    with stage.center() as center:
        runs = center.ledger.recent_runs(task_id=None, backend=None, limit=100)
        tasks = center.board.tasks()
    assert [(task.kind, task.state) for task in tasks] == [("goal", TaskState.DONE), ("after", TaskState.READY)]
    assert {run.state for run in runs} == {RunState.CLOSED}
    assert {run.outcome for run in runs} <= {Outcome.SUCCEEDED, Outcome.NEVER_STARTED}
    assert stage.begun_runs() == [run.run_id for run in runs if run.outcome is Outcome.SUCCEEDED]
    assert len(stage.begun_runs()) == 1
