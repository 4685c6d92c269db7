"""A person's reconciliation of provider runs and a person's `resolve`, killed and stopped at every step.

What they find: jobs of a dead watcher that have succeeded, failed, still run, are to be cancelled or to be stopped; a
submission without an answer, and one that was not begun. The points are found by running: what the main thread changes
outside of itself, and what the threads do that ask the provider and download. Whoever acts is killed there, or a rival
does the whole work first. A share of the points unless ``OPERATIONS_CENTER_TEST_EVERY_POINT=1`` is set.
"""

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
import pytest

from operations_center.admission import Limits
from operations_center.errors import OperationsCenterError
from operations_center.identity import Process
from operations_center.in_flight_reconcile import StopOrder, request_stop
from operations_center.keeper.launch import prepare_for_job
from operations_center.ledger import Admission
from operations_center.model import Outcome, Run, RunState, TaskState
from operations_center.presentation import task_as_json
from operations_center.stopping.resolving import Resolution
from operations_center.wiring import Center
from tests.crash.job_kinds import ENDS_AT_ONCE, FAILS, KEY, KINDS, OWN_ID, SUCCEEDS, Kind
from tests.crash.job_stage import Stories, Story, goes_to_its_end, reconcile
from tests.crash.job_steps import also_in_threads, in_requests, in_the_loop
from tests.crash.stage import LaterClock
from tests.points import IsStep
from tests.providers.remote import provider_process
from tests.providers.script import Course
from tests.runs import dead_process
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(3600 if EVERY_POINT else 300)

SHARE = 1 if EVERY_POINT else 24

LATE_MS = 60_000


@pytest.fixture
def stories(tmp_path: Path) -> Iterator[Stories]:
    with provider_process(tmp_path / "provider") as remote:
        yield Stories(tmp_path, remote, tasks=7)


class Point(NamedTuple):
    where: str
    fate: str


# What a dead watcher has left

JOBS: dict[str, tuple[str, Course | None]] = {
    "t1": ("submitted", ENDS_AT_ONCE),
    "t2": ("submitted", SUCCEEDS),
    "t3": ("submitted", Course(polls=1, end=FAILS.end, error=FAILS.error)),
    "t4": ("submitting", SUCCEEDS),
    "t5": ("reserved", None),
    "t6": ("cancelled", SUCCEEDS),
    "t7": ("stopped", SUCCEEDS),
}
"""By task: how far its run has come, and how its job goes."""


def leave_jobs(story: Story) -> None:
    nobody = dead_process()
    with story.stage.center() as center:
        for task_id, (state, course) in JOBS.items():
            run = leave_submission(story, center, task_id, nobody, course)
            if state in ("reserved", "submitting"):
                continue
            job_id = next(job.job_id for job in story.remote.jobs() if job.headers["x-run"] == run.run_id)
            submitted = center.ledger.change_run(run, "run.submitted", provider_job_id=job_id)
            assert submitted is not None
            if state == "cancelled":
                center.board.cancel(task_id)
            if state == "stopped":
                order = StopOrder(Outcome.STOPPED, "enough", TaskState.BLOCKED)
                assert request_stop(center.ledger, center.clock, submitted, order)


def leave_submission(story: Story, center: Center, task_id: str, watcher: Process, course: Course | None) -> Run:
    """A run that is admitted and claimed and, with a job, submitted: its answer was not recorded."""
    run = center.ledger.admit(
        Admission(task_id, "goal", "video", Limits(9), center.host, watcher, 1_000, 3_600_000, kind="http_job")
    )
    assert isinstance(run, Run)
    task = center.board.claim(task_id, run.run_id)
    assert task is not None
    prepare_for_job(center.state.run(run.run_id), msgspec.json.encode(task_as_json(task)))
    if course is None:
        return run
    now = center.clock.now()
    begun = center.ledger.change_run(
        run,
        "run.submitting",
        state=RunState.RUNNING,
        submitting_at=now.wall,
        submitting_mono=now.monotonic,
        started_at=now.wall,
    )
    assert begun is not None
    submit(story, begun, course)
    return begun


def submit(story: Story, run: Run, course: Course) -> None:
    """As the backend of its kind does."""
    story.remote.is_now(msgspec.structs.replace(story.kind.provider, course=course))
    body = {"prompt": run.task_id} | ({"submission_id": f"run-{run.run_id}"} if story.kind == OWN_ID else {})
    headers = {"X-Run": run.run_id} | ({"Idempotency-Key": run.run_id} if story.kind == KEY else {})
    request = Request(f"{story.remote.url}/jobs", msgspec.json.encode(body), headers)
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        assert answer.status == 201
    story.remote.is_now(story.kind.provider)


# Reconciliation

KILLED, OVERTAKEN = "killed", "overtaken by a rival"

REST = ("takes no key", "takes a key", "takes an id of ours")


@pytest.mark.parametrize("place", ["in the main thread", "in a request"])
@pytest.mark.parametrize("fate", [KILLED, OVERTAKEN])
def test_jobs_that_nobody_polls_come_to_their_end_whatever_becomes_of_who_reconciles(
    stories: Stories, fate: str, place: str
) -> None:
    is_step = in_the_loop if place == "in the main thread" else in_requests
    points = list(reconcilers_stopped_everywhere(stories, is_step, fate))
    assert len({point.where for point in points}) >= 3


def reconcilers_stopped_everywhere(stories: Stories, is_step: IsStep, fate: str) -> Iterator[Point]:
    rotations = [[name] for name in REST] if EVERY_POINT else [REST]
    for rotation in rotations:
        for number, step in enumerate(itertools.count(1, SHARE)):
            where = reconciler_stopped_at(stories, KINDS[rotation[number % len(rotation)]], is_step, fate, step)
            if where is None:
                break
            yield Point(where, fate)


def reconciler_stopped_at(stories: Stories, kind: Kind, is_step: IsStep, fate: str, step: int) -> str | None:
    resolution = [*Resolution][step % len(Resolution)]
    with stories.begin(kind) as story:
        leave_jobs(story)
        reconciler = story.stage.stepped(also_in_threads(story.reconcile), step, is_step=is_step)
        if reconciler.where is None:
            assert reconciler.wait() == 0
        elif fate == KILLED:
            reconciler.kill()
            assert os.WTERMSIG(reconciler.wait()) == signal.SIGKILL
        else:
            story.stage.clock = LaterClock(LATE_MS)
            story.reconcile()
            with story.changes_nothing_that_has_ended({"job.asked"}):
                goes_to_its_end(reconciler)
        story.reconcile()
        story.assert_nothing_was_guessed()
        story.come_to_the_end(resolution)
        story.assert_it_ended_well(frozenset(Outcome) - {Outcome.LOST, Outcome.UNKNOWN})
        assert_each_ended_as_it_should(story)
        if fate == KILLED:
            story.assert_nothing_is_half_done()
        return reconciler.where


def assert_each_ended_as_it_should(story: Story) -> None:
    first = {run.task_id: run.outcome for run in story.runs()}
    by_person = set(story.decided)
    outcomes = {run.task_id: run.outcome for run in story.runs() if run.run_id not in by_person}
    assert first.keys() == JOBS.keys()
    assert outcomes["t1"] is Outcome.SUCCEEDED
    assert outcomes["t2"] is Outcome.SUCCEEDED
    assert outcomes["t3"] is Outcome.FAILED
    assert outcomes["t6"] in (Outcome.CANCELLED, Outcome.SUCCEEDED)
    assert outcomes["t7"] in (Outcome.STOPPED, Outcome.SUCCEEDED)
    assert bool(by_person) == (not story.kind.takes_again)


# Resolving


@pytest.mark.parametrize("fate", [KILLED, OVERTAKEN])
def test_what_a_person_says_counts_once_whatever_becomes_of_who_said_it(stories: Stories, fate: str) -> None:
    points = list(resolvers_stopped_everywhere(stories, fate))
    assert len({point.where for point in points}) >= 3


def resolvers_stopped_everywhere(stories: Stories, fate: str) -> Iterator[Point]:
    rotations = [[each] for each in Resolution] if EVERY_POINT else [[*Resolution]]
    for rotation in rotations:
        for number, step in enumerate(itertools.count(1, max(SHARE // 4, 1))):
            where = resolver_stopped_at(stories, rotation[number % len(rotation)], fate, step)
            if where is None:
                break
            yield Point(where, fate)


def resolver_stopped_at(stories: Stories, resolution: Resolution, fate: str, step: int) -> str | None:
    another = Resolution.FAILED if resolution is Resolution.SUCCEEDED else Resolution.SUCCEEDED
    with stories.begin(KINDS["takes no key"]) as story:
        with story.stage.center() as center:
            for task_id in [*JOBS][1:]:
                center.board.cancel(task_id)
            run = leave_submission(story, center, "t1", dead_process(), SUCCEEDS)
            reconcile(center)
        resolver = story.stage.stepped(partial(say, story, run, resolution), step, is_step=in_the_loop)
        if resolver.where is None:
            assert resolver.wait() == 0
        elif fate == KILLED:
            resolver.kill()
        else:
            with suppress(OperationsCenterError):
                say_now(story, run, another)
            with story.changes_nothing_that_has_ended():
                goes_to_its_end(resolver)
        remember_what_counts(story, run)
        story.reconcile()
        story.come_to_the_end(another)
        story.assert_it_ended_well()
        return resolver.where


def say(story: Story, run: Run, resolution: Resolution) -> None:
    """Refused where a rival was quicker."""
    with suppress(OperationsCenterError):
        say_now(story, run, resolution)


def say_now(story: Story, run: Run, resolution: Resolution) -> None:
    with story.stage.center() as center:
        story.resolve_in(center, run, resolution)


def remember_what_counts(story: Story, run: Run) -> None:
    """What the log says that a person has said."""
    with story.stage.center() as center:
        said = [event.data["resolved_as"] for event in center.ledger.events() if event.kind == "run.settled"]
    assert len(said) <= 1
    story.decided = {run.run_id: Resolution(said[0])} if said else {}
