"""A story of provider runs: a stage, a provider that is a process of its own, and what must be true at the end.

What happened is asked of the ledger, of the board, of the files, and of the provider, which remembers what it was sent.
"""

import hashlib
import os
import select
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Imported before the watchers are forked: none of them pays for it.
import httpx  # noqa: F401

import operations_center.polling
import operations_center.providers.wire  # noqa: F401
from operations_center.in_flight_reconcile import Asking, Report, Trigger, clear_orphaned_in_flight
from operations_center.model import OPEN, Outcome, Proof, Run, RunState, TaskState
from operations_center.stopping.resolving import Resolution, resolve_run
from operations_center.wiring import Center
from tests.crash.job_kinds import NAMES, SIZE, Kind
from tests.crash.job_steps import IN_A_THREAD
from tests.crash.stage import Stage, Template
from tests.points import Stepped
from tests.providers.remote import Remote
from tests.providers.script import Submitted
from tests.providers.server import content_of

PATIENCE_S = 60

NOBODY_DECIDES = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.NEVER_STARTED})
AS = {
    Resolution.LOST: Outcome.LOST,
    Resolution.FAILED: Outcome.FAILED,
    Resolution.SUCCEEDED: Outcome.SUCCEEDED,
    Resolution.RESUBMIT: Outcome.RETRY,
}


@dataclass
class Story:
    """``decided`` is what a person has said of which run."""

    stage: Stage
    remote: Remote
    kind: Kind
    decided: dict[str, Resolution] = field(default_factory=dict)

    def reconcile(self) -> Report:
        """As a person does."""
        with self.stage.center() as center:
            return reconcile(center)

    def come_to_the_end(self, resolution: Resolution) -> None:
        """Watchers until nothing is left to them; then a person resolves what is in doubt; until nothing is left."""
        for _ in range(6):
            self.stage.in_a_process(self.stage.watch)
            self.assert_nothing_was_guessed()
            doubted = self.open_runs()
            for run in doubted:
                self.resolve(run, resolution)
            with self.stage.center() as center:
                if not doubted and not center.board.ready(["goal"], [None]):
                    return
        raise AssertionError("there is always something left to do")

    def resolve(self, run: Run, resolution: Resolution) -> None:
        """First what it waits for is certain: a person who was asked, and a slot that is held."""
        assert (run.state, run.provider_job_id) == (RunState.RUNNING, None)
        assert run.doubt
        with self.stage.center() as center:
            task = center.board.task(run.task_id)
            assert task is not None
            assert task.state in (TaskState.BLOCKED, TaskState.CANCELLED), task
            assert task.reason
            self.resolve_in(center, run, resolution)

    def resolve_in(self, center: Center, run: Run, resolution: Resolution) -> None:
        resolve_run(center, run.run_id, resolution, "looked it up")
        self.decided[run.run_id] = resolution

    @contextmanager
    def changes_nothing_that_has_ended(self, but: Collection[str] = ()) -> Iterator[None]:
        """Whoever comes back late: of a run that others have ended it may tell, but not change it.

        A claim that comes late is given back by the next reconciliation.
        """
        ended = {run.run_id for run in self.runs() if run.state is RunState.CLOSED}
        with self.stage.fleet.center() as center:
            last = center.ledger.last_event()
        yield
        with self.stage.fleet.center() as center:
            late = {event.kind for event in center.ledger.events(after=last) if event.run_id in ended}
        assert late <= {"run.lost_race", "job.unclaimed", "task.claimed", "task.requeued", *but}

    # What is true of it

    def runs(self) -> list[Run]:
        """Newest first."""
        with self.stage.fleet.center() as center:
            return center.ledger.recent_runs(task_id=None, backend=None, limit=100)

    def open_runs(self) -> list[Run]:
        return [run for run in self.runs() if run.state in OPEN]

    def jobs(self) -> dict[str, list[Submitted]]:
        """What the provider has accepted, by run."""
        ours = {run.run_id for run in self.runs()}
        found: dict[str, list[Submitted]] = {run_id: [] for run_id in ours}
        for job in self.remote.jobs():
            if job.headers["x-run"] in ours:
                found[job.headers["x-run"]].append(job)
        return found

    def assert_nothing_was_guessed(self) -> None:
        """No job twice for a run; without a key no second submission; no run of a task beside one that may have a job
        unless a person has said so, or its provider has."""
        runs, jobs = self.runs(), self.jobs()
        assert {run_id: len(found) for run_id, found in jobs.items() if len(found) > 1} == {}
        if not self.kind.takes_again:
            sent = Counter(request.headers["x-run"] for request in self.remote.requests("submit"))
            assert {run.run_id: sent[run.run_id] for run in runs if sent[run.run_id] > 1} == {}
        undecided = Counter(run.task_id for run in runs if run.run_id not in self.decided and self._may_have_job(run))
        assert not [task_id for task_id, count in undecided.items() if count > 1]

    def _may_have_job(self, run: Run) -> bool:
        """Of a run that a person has decided, or that has never begun, another may follow."""
        return run.submitting_at is not None and run.proof is not Proof.NEVER_SUBMITTED

    def assert_it_ended_well(self, possible: Collection[Outcome] = NOBODY_DECIDES) -> None:
        """Nothing open, each end explained, every job's output whole where its id is known, no promise broken."""
        self.assert_nothing_was_guessed()
        runs, jobs = self.runs(), self.jobs()
        assert {run.state for run in runs} <= {RunState.CLOSED}
        for run in runs:
            if run.run_id in self.decided:
                assert (run.outcome, run.proof) == (AS[self.decided[run.run_id]], Proof.RESOLVED)
                assert "looked it up" in str(run.reason)
            else:
                assert run.outcome in possible
                self._assert_its_job_is_known(run, jobs[run.run_id])
        self._assert_tasks_are_where_they_belong(runs)
        assert self.stage.broken() == []
        self.stage.assert_a_further_reconcile_does_nothing()

    def _assert_its_job_is_known(self, run: Run, jobs: list[Submitted]) -> None:
        """A machine has ended the run: either there is no job, or the job's end is the run's."""
        assert [job.job_id for job in jobs] == ([run.provider_job_id] if run.provider_job_id else [])
        if not jobs:
            assert run.proof is Proof.NEVER_SUBMITTED
            return
        (job,) = jobs
        assert run.proof is Proof.PROVIDER_ANSWERED
        if job.cancelled:
            assert run.outcome in (Outcome.STOPPED, Outcome.CANCELLED)
        elif job.course.end == "failed":
            assert run.outcome in (Outcome.FAILED, Outcome.STOPPED, Outcome.CANCELLED)
        else:
            assert run.outcome is Outcome.SUCCEEDED
            self._assert_files_are_whole(run)

    def _assert_files_are_whole(self, run: Run) -> None:
        """On the disk and in the log as the server has made them."""
        assert run.provider_job_id is not None
        made = {name: content_of(run.provider_job_id, origin, SIZE) for name, origin in NAMES.items()}
        directory = Path(self.stage.fleet.state.run(run.run_id), "artifacts")
        assert {path.name: path.read_bytes() for path in directory.iterdir() if not _is_half(path)} == made
        with self.stage.fleet.center() as center:
            (told,) = (
                event.data["artifacts"]
                for event in center.ledger.events(run_id=run.run_id)
                if event.kind == "run.settled"
            )
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
        assert {each["name"]: each["sha256"] for each in told} == hashes
        assert {each["size"] for each in told} == {SIZE}

    def assert_nothing_is_half_done(self) -> None:
        """What a killed download has left is removed by the next one."""
        assert [path for path in self.stage.fleet.state.runs.glob("*/artifacts/.*") if _is_half(path)] == []

    def _assert_tasks_are_where_they_belong(self, runs: list[Run]) -> None:
        """Cancelled, or as their last run says."""
        last = {run.task_id: run for run in reversed(runs)}
        belongs = {
            Outcome.SUCCEEDED: TaskState.DONE,
            Outcome.FAILED: TaskState.BLOCKED,
            Outcome.STOPPED: TaskState.BLOCKED,
        }
        with self.stage.fleet.center() as center:
            tasks = [task for task in center.board.tasks() if task.state is not TaskState.CANCELLED]
        for task in tasks:
            outcome = last[task.task_id].outcome
            assert outcome is not None
            assert task.state is belongs[outcome], (task, last[task.task_id])

    def assert_late_ids_are_reported(self) -> None:
        """A job whose run somebody else has ended meanwhile: it may cost money, and a person can find it."""
        known = {run.run_id: run.provider_job_id for run in self.runs()}
        late = {(run_id, job.job_id) for run_id, jobs in self.jobs().items() for job in jobs if not known[run_id]}
        with self.stage.fleet.center() as center:
            told = [
                (event.run_id, event.data["provider_job_id"])
                for event in center.ledger.events()
                if event.kind == "job.unclaimed"
            ]
        assert sorted(map(str, late)) == sorted(map(str, told))


def _is_half(path: Path) -> bool:
    return path.suffix == ".part"


def goes_to_its_end(stopped: Stepped) -> bool:
    """Whether it was ended because it stood inside of a transaction that others were waiting for."""
    stopped.go_on()
    pidfd = os.pidfd_open(stopped.pid)
    try:
        assert select.select([pidfd], [], [], PATIENCE_S)[0], f"it waits for ever after {stopped.where}"
    finally:
        os.close(pidfd)
    status = stopped.wait()
    was_in_the_way = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    # Where a thread stands still, so does the loop, wherever that is just then.
    assert status == 0 or (was_in_the_way and ("store." in str(stopped.where) or IN_A_THREAD in str(stopped.where)))
    return was_in_the_way


def reconcile(center: Center) -> Report:
    return clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI, asking=Asking(by_person=True))


@dataclass
class Stories:
    """Each begins with some tasks, and a provider of the kind that is wanted, which takes as many runs and no more."""

    root: Path
    remote: Remote
    tasks: int = 1
    _templates: dict[Kind, Template] = field(default_factory=dict)
    _begun: int = 0

    @contextmanager
    def begin(self, kind: Kind) -> Iterator[Story]:
        if kind not in self._templates:
            self._templates[kind] = self._make(kind)
        self.remote.is_now(kind.provider)
        self.remote.forget_rules()
        if kind.vanishes:
            self.remote.rule("submit", vanish=True, times=1)
        self._begun += 1
        with self._templates[kind].staged(self.root / f"story {self._begun}") as stage:
            yield Story(stage, self.remote, kind)

    def _make(self, kind: Kind) -> Template:
        root = self.root / f"template {len(self._templates)}"
        root.mkdir()
        return Template.make(root, tasks=self.tasks, config=kind.config(self.remote, cap=self.tasks))
