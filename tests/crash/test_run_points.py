"""A run, killed at every step of its watcher's life: admit, claim, prepare, launch, record start, settle, finish,
close; the watcher's start and end; and the hand-over to the next one, which adopts.

The points are those at which the watcher changes something outside of itself, found by running (``tests.points``).
At each of them it stands still while some of its run's processes, itself, or all are killed; it goes on if it was
spared. Who is killed rotates from point to point; everybody at every point with
``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from operations_center.model import Outcome, RunState, TaskState
from tests.crash.stage import Stage, Template, executors, keepers
from tests.points import Stepped
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

WATCHER, KEEPER, EXECUTOR = "watcher", "keeper", "executor"

PARTS = 6
"""The points are dealt out among so many tests, which can run at once."""

VICTIMS = (
    {WATCHER, KEEPER},
    {KEEPER},
    {WATCHER, EXECUTOR},
    {EXECUTOR},
    {WATCHER, KEEPER, EXECUTOR},
    {KEEPER, EXECUTOR},
)
"""Beside the watcher alone, which is killed at every point."""

POSSIBLE = {
    WATCHER: {Outcome.SUCCEEDED, Outcome.NEVER_STARTED},
    KEEPER: {Outcome.LOST},
    EXECUTOR: {Outcome.KILLED, Outcome.LOST},
}
"""What a run may end as when somebody is killed; without a victim it succeeds."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template.make(tmp_path_factory.mktemp("template"))


Scenario = Callable[[Stage, int], Stepped]


class Point(NamedTuple):
    where: str | None
    victims: frozenset[str]
    others_live: bool


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_survives_every_death_while_it_is_started(template: Template, tmp_path: Path, part: int) -> None:
    points = list(killed_everywhere(template, tmp_path, first_watcher, part))
    assert len({point.where for point in points}) >= 6
    assert sum(point.victims == {WATCHER} for point in points) >= 90 // PARTS
    assert sum(point.victims != {WATCHER} for point in points) >= 1


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_survives_every_death_while_it_is_handed_over_and_ended(
    template: Template, tmp_path: Path, part: int
) -> None:
    points = list(killed_everywhere(template, tmp_path, next_watcher, part))
    assert len({point.where for point in points}) >= 6
    assert sum(point.victims == {WATCHER} for point in points) >= 75 // PARTS
    assert sum(point.victims != {WATCHER} for point in points) >= 40 // PARTS


def first_watcher(stage: Stage, step: int) -> Stepped:
    """It starts a run, and is told to stop when the executor has begun."""
    return stage.stepped(stage.watch, step, meanwhile=(stage.begun, stage.terminate))


def next_watcher(stage: Stage, step: int) -> Stepped:
    """It finds a run whose watcher is dead, adopts it, and ends it when the executor is let go."""
    stage.leave_a_run()
    return stage.stepped(stage.watch, step, meanwhile=(stage.ready.fileno(), stage.let_go_when_ready))


def killed_everywhere(template: Template, tmp_path: Path, scenario: Scenario, part: int) -> Iterator[Point]:
    """The watcher alone at every point of a part; where others live, some of them too, there or a little earlier."""
    rotating = itertools.cycle(VICTIMS[part % len(VICTIMS) :] + VICTIMS[: part % len(VICTIMS)])
    for step in itertools.count(1 + part, PARTS):
        point = killed_at(template, tmp_path, scenario, step, {WATCHER})
        if point is None:
            return
        yield point
        if point.others_live:
            for victims in VICTIMS if EVERY_POINT else [next(rotating)]:
                # Near its end a watcher that is told to stop has a step more or less.
                earlier = (killed_at(template, tmp_path, scenario, at, victims) for at in range(step, 0, -1))
                yield next(point for point in earlier if point is not None)


def killed_at(
    template: Template, tmp_path: Path, scenario: Scenario, step: int, victims: Collection[str]
) -> Point | None:
    """One story; None if the watcher came to its end before the step."""
    with template.staged(tmp_path / f"{step} {' '.join(sorted(victims))}") as stage:
        watcher = scenario(stage, step)
        if watcher.where is None:
            assert watcher.wait() == 0
            assert_it_ends_well(stage, set())
            return None
        others_live = bool(stage.living())
        killed = kill(stage, watcher, victims)
        stage.assert_promises_are_kept()
        assert_it_ends_well(stage, killed)
        return Point(watcher.where, frozenset(killed), others_live)


def kill(stage: Stage, watcher: Stepped, victims: Collection[str]) -> set[str]:
    """Kill whoever is wanted and there; the others go on. The watcher, if it was spared, to its end."""
    killed = set()
    if WATCHER in victims:
        watcher.kill()
        assert os.WTERMSIG(watcher.wait()) == signal.SIGKILL
        killed.add(WATCHER)
    # An executor that was let go may have ended before it is killed.
    rest = not stage.was_let_go and EXECUTOR in victims
    pids = {pid for pids in (stage.come_to_rest() if rest else stage.living()).values() for pid in pids}
    for name, found in ((KEEPER, keepers(pids)), (EXECUTOR, executors(pids))):
        if name in victims and found:
            stage.kill(found)
            killed.add(name)
    watcher.go_on()
    if WATCHER not in victims:
        stage.let_go()
        assert watcher.wait() == 0
    return killed


def assert_it_ends_well(stage: Stage, killed: Collection[str]) -> None:
    """The task is done, its follow-up made once, and nothing ran that had been recorded as ended."""
    stage.go_on_to_the_end()
    assert stage.broken() == []
    assert not stage.living()
    with stage.fleet.center() as center:
        runs = center.ledger.recent_runs(task_id=None, backend=None, limit=100)
        tasks = center.board.tasks()
    assert [(task.kind, task.state) for task in tasks] == [("goal", TaskState.DONE), ("after", TaskState.READY)]
    assert {run.state for run in runs} == {RunState.CLOSED}
    assert runs[0].outcome is Outcome.SUCCEEDED
    possible = {Outcome.SUCCEEDED}.union(*(POSSIBLE[name] for name in {*killed, WATCHER}))
    assert {run.outcome for run in runs} <= possible
    begun = set(stage.begun_runs())
    assert {run.run_id for run in runs if run.outcome in (Outcome.SUCCEEDED, Outcome.KILLED)} <= begun
    assert not {run.run_id for run in runs if run.outcome is Outcome.NEVER_STARTED} & begun
    uncounted = (Outcome.NEVER_STARTED, Outcome.LOST)
    assert tasks[0].attempts == sum(run.outcome not in uncounted for run in runs)
