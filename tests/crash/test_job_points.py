"""A provider run, killed at every step of its watcher's life: admit, claim, directory, submission, the request under
way, its answer, the id, polls, downloads, settle, finish, close; and of the next one's, which adopts or submits again.

The points are found by running (``tests.points``): those at which the loop changes something outside of itself, and
those at which a thread speaks with the provider or writes a file. At each of them the watcher is killed, or it stands
still while a person acts, and then goes on. Afterwards a person reconciles, or the next watcher just comes; watchers
run until nothing is left to them; a person resolves what is in doubt. Then must be true: no job submitted twice by a
machine's guess, no finished output lost, none without an id resubmitted, every run settled or held for a person.

What kind of provider it is and what is done rotates from point to point, and the suite takes a share of the points;
all kinds at every point with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from operations_center.errors import OperationsCenterError
from operations_center.model import Outcome, Proof
from operations_center.outcomes import Ending
from operations_center.stopping.resolving import Resolution
from operations_center.stopping.runs import cancel_task, stop_run
from operations_center.wiring import Center
from tests.crash.job_kinds import ENDS_AT_ONCE, KINDS, Kind
from tests.crash.job_stage import NOBODY_DECIDES, Stories, Story, goes_to_its_end, reconcile
from tests.crash.job_steps import after, also_in_threads, in_requests, in_the_loop
from tests.crash.stage import LaterClock
from tests.points import IsStep, Stepped
from tests.providers.remote import provider_process
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(3600 if EVERY_POINT else 300)

PARTS = 2 if EVERY_POINT else 1

LATE_MS = 60_000
"""So much later no submission is under way any more, and whoever settled a run has not told the board in time."""


@pytest.fixture
def stories(tmp_path: Path) -> Iterator[Stories]:
    with provider_process(tmp_path / "provider") as remote:
        yield Stories(tmp_path, remote)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission in doubt is sent again after 5 ms; a writer that is stopped inside a transaction ended after 40."""
    monkeypatch.setattr("operations_center.providers.health.FIRST_PAUSE_MS", 5)
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)


class Point(NamedTuple):
    where: str
    kind: str
    deed: str


# Lives


Scenario = Callable[[Story, int, IsStep], Stepped]


def first_watcher(story: Story, step: int, is_step: IsStep) -> Stepped:
    return story.stage.stepped(also_in_threads(story.stage.watch), step, is_step=is_step)


def next_watcher(left_after: str, story: Story, step: int, is_step: IsStep) -> Stepped:
    """It finds what a watcher has left that was killed when it returned from a function."""
    earlier = story.stage.stepped(also_in_threads(story.stage.watch), 1, is_step=after(left_after))
    assert earlier.where
    earlier.kill()
    return first_watcher(story, step, is_step)


LIVES: dict[str, Scenario] = {
    "the first watcher": first_watcher,
    "the next one, after the submission began": partial(next_watcher, "Poller._submit"),
    "the next one, after the first answer": partial(next_watcher, "Poller._record"),
}

PLACES = {"in the loop": (in_the_loop, 17), "in a request": (in_requests, 9)}
"""What the points are, and of how many the suite takes one."""


def points_of(
    stories: Stories,
    kinds: Collection[str],
    scenario: Scenario,
    place: str,
    part: int,
    story_at: Callable[[Story, Stepped, int], str],
) -> Iterator[Point]:
    """A story for each point of a part, of one kind after the other; a kind that ends before its step is done with."""
    is_step, share = PLACES[place]
    for rotation in [[kind] for kind in kinds] if EVERY_POINT else [[*kinds]]:
        steps = itertools.count(1 + part, PARTS * (1 if EVERY_POINT else share))
        for number in itertools.count():
            if not rotation:
                break
            kind = rotation[number % len(rotation)]
            with stories.begin(KINDS[kind]) as story:
                watcher = scenario(story, next(steps), is_step)
                if watcher.where is None:
                    assert watcher.wait() == 0
                    story.come_to_the_end([*Resolution][number % len(Resolution)])
                    story.assert_it_ended_well()
                    rotation.remove(kind)
                    continue
                deed = story_at(story, watcher, number)
                yield Point(watcher.where, kind, deed)


# Deaths


def killed_at(story: Story, watcher: Stepped, number: int) -> str:
    watcher.kill()
    assert os.WTERMSIG(watcher.wait()) == signal.SIGKILL
    reconciled = number % 2 == 0
    if reconciled:
        story.reconcile()
        story.assert_nothing_was_guessed()
    resolution = [*Resolution][number // 2 % len(Resolution)]
    story.come_to_the_end(resolution)
    story.assert_it_ended_well()
    story.assert_nothing_is_half_done()
    return f"{resolution} {reconciled}"


def kinds_of(life: str, place: str) -> Collection[str]:
    """Where nothing may be submitted again, no thread of the next watcher has anything to do."""
    speaks = (life, place) != ("the next one, after the submission began", "in a request")
    return [name for name, kind in KINDS.items() if speaks or kind.takes_again]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("life", LIVES)
def test_a_provider_run_survives_every_death_of_its_watcher(stories: Stories, life: str, place: str, part: int) -> None:
    points = list(points_of(stories, kinds_of(life, place), LIVES[life], place, part, killed_at))
    assert len({point.where for point in points}) >= 3
    assert len({point.kind for point in points}) >= 3


# Standing still

Deed = Callable[[Center, Story, Resolution], object]


def only_reconcile(_center: Center, _story: Story, _resolution: Resolution) -> None:
    pass


def resolve(center: Center, story: Story, resolution: Resolution) -> None:
    """What the reconciliation leaves to a person; it refuses whatever is looked after."""
    for run in center.ledger.open_runs():
        with suppress(OperationsCenterError):
            story.resolve_in(center, run, resolution)


def stop(center: Center, _story: Story, _resolution: Resolution) -> None:
    for run in center.ledger.open_runs():
        with suppress(OperationsCenterError):
            stop_run(center, run.run_id, "enough", wait=False)


def cancel(center: Center, _story: Story, _resolution: Resolution) -> None:
    with suppress(OperationsCenterError):
        cancel_task(center, "t1", wait=False)


DEEDS: dict[str, Deed] = {"reconcile": only_reconcile, "resolve": resolve, "stop": stop, "cancel": cancel}

SOMEBODY_DECIDES = NOBODY_DECIDES | {Outcome.STOPPED, Outcome.CANCELLED}


def overtaken_at(story: Story, watcher: Stepped, number: int) -> str:
    """A person acts, much later by the clock; then the watcher goes on, and changes nothing of what has ended."""
    name = [*DEEDS][number % len(DEEDS)]
    resolution = [*Resolution][number // len(DEEDS) % len(Resolution)]
    story.stage.clock = LaterClock(LATE_MS)
    with story.stage.center() as center:
        reconcile(center)
        DEEDS[name](center, story, resolution)
    with story.changes_nothing_that_has_ended():
        was_in_the_way = goes_to_its_end(watcher)
    story.come_to_the_end(resolution)
    story.assert_it_ended_well(SOMEBODY_DECIDES)
    if not was_in_the_way and not story.kind.vanishes:
        story.assert_late_ids_are_reported()
    return f"{name} {resolution}"


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("life", LIVES)
def test_a_watcher_that_stood_still_changes_nothing_that_was_decided_meanwhile(
    stories: Stories, life: str, place: str, part: int
) -> None:
    points = list(points_of(stories, kinds_of(life, place), LIVES[life], place, part, overtaken_at))
    assert len({point.where for point in points}) >= 3
    assert len({point.deed for point in points}) >= 3


# Between a look and a write


BETWEEN: dict[str, tuple[str, dict[str, object], Outcome, int]] = {
    "before it is submitted": ("Poller._order", {}, Outcome.STOPPED, 0),
    "before its end is recorded": ("ending_of_job", {}, Outcome.SUCCEEDED, 1),
    "before a doubt is recorded": ("record_health", {"vanish": True}, Outcome.FAILED, 1),
}
"""After which function the watcher stands still, the rule of the submission, how the run ends, and jobs in all."""


@pytest.mark.parametrize("when", BETWEEN)
def test_a_stop_that_comes_between_a_look_and_a_write_is_heeded(stories: Stories, when: str) -> None:
    function, rule, outcome, jobs = BETWEEN[when]
    with stories.begin(Kind(course=ENDS_AT_ONCE)) as story:
        if rule:
            story.remote.rule("submit", **rule)
        watcher = story.stage.stepped(story.stage.watch, 1, is_step=after(function))
        with story.stage.center() as center:
            stop(center, story, Resolution.FAILED)
        goes_to_its_end(watcher)
        story.come_to_the_end(Resolution.FAILED)
        assert [run.outcome for run in story.runs()] == [outcome]
        assert len(story.remote.jobs()) == jobs
        story.assert_it_ended_well(SOMEBODY_DECIDES)


def test_a_watcher_waits_for_the_answer_of_a_submission_that_a_person_has_given_up(stories: Stories) -> None:
    with stories.begin(KINDS["takes no key"]) as story:
        story.remote.rule("submit", delay=1.0)
        watcher = story.stage.stepped(story.stage.watch, 1, is_step=after("Poller._submit"))
        with story.stage.center() as center:
            (run,) = center.ledger.open_runs()
            assert center.settlement.end(run, Ending(Outcome.FAILED, Proof.RESOLVED, "looked it up"), center.me)
        story.decided[run.run_id] = Resolution.FAILED
        goes_to_its_end(watcher)
        story.assert_late_ids_are_reported()
        story.assert_it_ended_well()
