"""The wall clock is set forward or back by a day, at every moment at which somebody reads it.

The moments are generated: the n-th reading of the clock, until nobody reads it so often. Forward and back in turn; both
at each moment with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from operations_center.clock import Now, SystemClock
from operations_center.model import Outcome, TaskState
from operations_center.stopping.runs import stop_run
from tests.crash.stage import CONFIG, EXECUTOR, Stage, Template
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

DAY_MS = 86_400_000
PARTS = 2


@dataclass
class ClockSetAt(SystemClock):
    """From its n-th reading on the wall clock is ahead by some milliseconds. Forked processes share the count."""

    reading: int
    by_ms: int
    _readings: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 4))

    @property
    def readings(self) -> int:
        return int.from_bytes(self._readings[:4], "little")

    def now(self) -> Now:
        now = super().now()
        self._readings[:4] = (self.readings + 1).to_bytes(4, "little")
        return Now(now.wall + (self.by_ms if self.readings >= self.reading else 0), now.monotonic)

    @property
    def was_set(self) -> bool:
        return self.readings >= self.reading


STUBBORN = EXECUTOR.replace("say begin", "trap '' TERM\nsay begin")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template.make(tmp_path_factory.mktemp("template"), config=f"{CONFIG}max_per_day = 1\n", executor=STUBBORN)


def at_every_reading(
    template: Template, root: Path, part: int, story: Callable[[Stage], object], check: Callable[[Stage], object]
) -> int:
    """How often the clock was set."""
    for number, reading in enumerate(itertools.count(1 + part, PARTS)):
        for by_ms in (DAY_MS, -DAY_MS) if EVERY_POINT else ([DAY_MS, -DAY_MS][number % 2],):
            clock = ClockSetAt(reading, by_ms)
            with template.staged(root / f"{reading} {by_ms}", clock) as stage:
                story(stage)
                if not clock.was_set:
                    return number
                check(stage)
    raise AssertionError("unreachable")


def is_done(stage: Stage) -> None:
    """By the one run that there was, with nothing left of it."""
    stage.assert_promises_are_kept()
    assert stage.living() == {}
    with stage.center() as center:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        task = center.board.task("t1")
    assert task is not None
    assert (run.outcome, task.state, task.attempts) == (Outcome.SUCCEEDED, TaskState.DONE, 1)
    assert len(stage.begun_runs()) == 1


def watched(stage: Stage) -> None:
    stage.let_go()
    stage.in_a_process(stage.watch)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_ends_well_wherever_the_clock_is_set(template: Template, tmp_path: Path, part: int) -> None:
    assert at_every_reading(template, tmp_path, part, watched, is_done) >= 30 // PARTS


def handed_over(stage: Stage) -> None:
    stage.leave_a_run()
    reaction = (stage.ready.fileno(), stage.let_go_when_ready)
    assert stage.stepped(stage.watch, 0, meanwhile=reaction).wait() == 0


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_is_adopted_and_ends_well_wherever_the_clock_is_set(
    template: Template, tmp_path: Path, part: int
) -> None:
    assert at_every_reading(template, tmp_path, part, handed_over, is_done) >= 24 // PARTS


def stopped(stage: Stage) -> None:
    run_id = stage.leave_a_run()
    with stage.center() as center:
        stop_run(center, run_id, "enough")


def is_blocked(stage: Stage) -> None:
    assert stage.living() == {}
    assert stage.broken() == []
    with stage.center() as center:
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        task = center.board.task("t1")
    assert task is not None
    assert (run.outcome, task.state) == (Outcome.STOPPED, TaskState.BLOCKED)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_is_stopped_wherever_the_clock_is_set(template: Template, tmp_path: Path, part: int) -> None:
    assert at_every_reading(template, tmp_path, part, stopped, is_blocked) >= 20 // PARTS
