"""A spawner that is stopped at any step between admission and launch, and wakes up after its run was given away."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from operations_center.boards.local import NewTask
from operations_center.clock import Now, SystemClock
from operations_center.config import load_config
from operations_center.dispatch import Dispatcher, Started
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.model import OPEN, TaskState
from operations_center.wiring import Center, open_center
from tests.fleet import Fleet, wait_until
from tests.points import Stepped, calls_of

CONFIG = """
[roles.goal]
backend = "agent"
retry_backoff = {{ initial = "0s" }}
[backends.agent]
kind = "command"
argv = ["{python}", "-I", "-S", "witness.py", "0"]
working_directory = "."
max_concurrent = 50
timeout = "1h"
"""

STEPS = calls_of("dispatch", "keeper.launch", "ledger.sqlite", "boards.local", "store.sqlite", "settlement")


class LaterClock(SystemClock):
    """Eleven seconds ahead on both clocks: a reservation that was made just now is not young any more."""

    def now(self) -> Now:
        now = super().now()
        return Now(now.wall + 11_000, now.monotonic + 11_000)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawner that is stopped inside a transaction is ended by whoever waits for it; here after 40 ms."""
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG.format(python=sys.executable))
    return fleet


PARTS = 6
"""The steps are dealt out among so many tests, which can run at once."""


@pytest.mark.parametrize("part", range(PARTS))
def test_a_spawner_stopped_at_any_step_starts_nothing_after_its_run_was_given_away(fleet: Fleet, part: int) -> None:
    stories: list[Story] = []
    while not stories or stories[-1].where is not None:
        stories.append(Story(fleet, step=1 + part + PARTS * len(stories)))

    assert len(stories) > 100 / PARTS
    assert not [story.summary for story in stories if not story.ended_well]
    assert not fleet.broken_promises()


class Story:
    """One spawner stopped at one step, its run revoked and its task given to a rival, then continued."""

    def __init__(self, fleet: Fleet, step: int) -> None:
        with fleet.center() as center:
            (self.task_id,) = center.board.add([NewTask(f"stopped at step {step}", "goal")])
        config_file = fleet.root / "operations_center.toml"
        spawner = Stepped(lambda: spawn(config_file, self.task_id), step, signal.SIGSTOP, STEPS)
        self.step, self.where = step, spawner.where
        with fleet.center() as center:
            self._give_away(center)
            spawner.go_on()
            spawner.wait()
            wait_until(lambda: everything_has_ended(center, self.task_id), f"the end of {self.task_id}")
            # Where the revocation found something alive, the slot was freed only after the spawner had gone on.
            self._start_if_ready(center)
            wait_until(lambda: everything_has_ended(center, self.task_id), f"the end of {self.task_id}")
            task = center.board.task(self.task_id)
            assert task is not None
            self.state = task.state
        self.begun = sum(each.task_id == self.task_id for each in fleet.witnessed("begin"))

    def _give_away(self, center: Center) -> None:
        if self.where is None:
            return
        later = replace(center, clock=LaterClock())
        clear_orphaned_in_flight(later.surroundings, trigger=Trigger.CLI)
        self._start_if_ready(center)

    def _start_if_ready(self, center: Center) -> None:
        task = center.board.task(self.task_id)
        assert task is not None
        if task.state is TaskState.READY:
            started = dispatcher(center).dispatch(task)
            for child in started.children if isinstance(started, Started) else ():
                child.wait()

    @property
    def ended_well(self) -> bool:
        return (self.begun, self.state) == (1, TaskState.DONE)

    @property
    def summary(self) -> str:
        return f"step {self.step} ({self.where}): begun {self.begun} times, task {self.state}"


def spawn(config_file: Path, task_id: str) -> None:
    center = open_center(load_config(config_file, {}))
    task = center.board.task(task_id)
    assert task is not None
    started = dispatcher(center).dispatch(task)
    for child in started.children if isinstance(started, Started) else ():
        child.wait()


def dispatcher(center: Center) -> Dispatcher:
    environment = os.environ | {"HOME": str(center.config.directory)}
    return Dispatcher(center.surroundings, center.config.roles["goal"], center.backends(environment))


def everything_has_ended(center: Center, task_id: str) -> bool:
    clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
    runs = center.ledger.recent_runs(task_id=task_id, backend=None, limit=10)
    return all(run.state not in OPEN for run in runs)
