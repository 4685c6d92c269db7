"""Jobs against deadlines and clocks: none is held or sent for ever, and none is given up too early."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from operations_center.clock import Clock, Now
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.in_flight_reconcile.job_records import ASKS_IN_VAIN
from operations_center.model import Outcome, Proof, RunState, TaskState
from operations_center.polling.followed import Changed, Followed
from operations_center.polling.recording import Recorder
from operations_center.polling.requests import THREADS
from operations_center.providers.health import pause_after_ms
from operations_center.providers.looking import Unsure
from operations_center.stopping.runs import stop_run
from tests.fleet import Fleet, wait_until
from tests.providers.jobs import add, configure, polled_by_nobody, the_run, the_task, watch, watched
from tests.providers.remote import Remote, provider_process
from tests.providers.script import Provider

HOUR_MS = 3_600_000
CLOCKS_DIFFER_MS = 500
"""By so much, within seconds, where one is adjusted."""


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_process(tmp_path / "provider") as remote:
        yield remote


@dataclass(frozen=True)
class SetForward:
    """A clock whose wall clock somebody has set forward."""

    clock: Clock
    by_ms: int

    def now(self) -> Now:
        now = self.clock.now()
        return msgspec.structs.replace(now, wall=now.wall + self.by_ms)


@dataclass(frozen=True)
class Later:
    """A clock of the same boot, after some time has passed."""

    clock: Clock
    by_ms: int

    def now(self) -> Now:
        now = self.clock.now()
        return msgspec.structs.replace(now, wall=now.wall + self.by_ms, monotonic=now.monotonic + self.by_ms)


def test_a_submission_is_not_sent_again_after_its_deadline(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, more='idempotency_header = "Idempotency-Key"', timeout="1s")
    remote.is_now(Provider(idempotent=True))
    remote.rule("submit", status=500)
    add(fleet)
    watch(fleet)
    run = the_run(fleet)
    assert (run.outcome, run.proof) == (Outcome.UNKNOWN, Proof.DEADLINE_PASSED)
    assert the_task(fleet).state is TaskState.BLOCKED
    assert len(remote.requests("submit")) == 1
    assert not fleet.broken_promises()


def test_a_submission_whose_role_is_gone_waits_for_a_person_though_it_has_a_key(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, more='idempotency_header = "Idempotency-Key"', submit_timeout="1h")
    remote.rule("submit", delay=3600.0)
    add(fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: remote.requests("submit"), "the request")
    watcher.kill()
    watcher.wait()
    text = (fleet.root / "operations_center.toml").read_text()
    fleet.configure(text.replace("[roles.goal]", '[roles.other]\ntask_kinds = ["goal"]'))
    fleet.run("reconcile")
    assert the_task(fleet).state is TaskState.BLOCKED
    assert "resolve" in the_task(fleet).reason
    assert the_run(fleet).doubt is not None


def test_what_the_ledger_knows_as_being_submitted_has_a_thread(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, cap=2 * THREADS, submit_timeout="1h")
    remote.rule("submit", delay=3600.0)
    add(fleet, THREADS + 1)
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: len(remote.requests("submit")) == THREADS, "the submissions")
    with fleet.center() as center:
        wait_until(lambda: len(center.ledger.open_runs()) > THREADS, "the admissions")
        assert sum(run.submitting_at is not None for run in center.ledger.open_runs()) == THREADS


def test_a_clock_that_is_set_forward_takes_no_time_from_a_job_that_is_adopted(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    left = the_run(fleet)
    with fleet.center() as center:
        surroundings = replace(center.surroundings, clock=SetForward(center.clock, 2 * HOUR_MS))
        clear_orphaned_in_flight(surroundings, trigger=Trigger.STARTUP, adopt_role="goal")
    adopted = the_run(fleet)
    assert adopted.watcher_pid != left.watcher_pid
    assert adopted.deadline_mono == left.deadline_mono


def test_a_clock_that_was_set_back_in_a_reboot_lengthens_no_deadline(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    with fleet.center() as center:
        host, clock = replace(center.host, boot_id="another"), SetForward(center.clock, -1000 * HOUR_MS)
        surroundings = replace(center.surroundings, host=host, clock=clock)
        clear_orphaned_in_flight(surroundings, trigger=Trigger.STARTUP, adopt_role="goal")
        assert the_run(fleet).boot_id == "another"
        assert the_run(fleet).deadline_mono <= center.clock.now().monotonic + HOUR_MS


def long_after_its_deadline(fleet: Fleet, remote: Remote) -> None:
    """A job that has succeeded while nobody asked."""
    configure(fleet, remote, timeout="1s", initial="1h")
    polled_by_nobody(fleet, remote, polls=1)
    run = the_run(fleet)
    with fleet.center() as center:
        wait_until(lambda: center.clock.now().wall > run.deadline_at + run.grace_ms, "the deadline")


@pytest.mark.parametrize(
    ("what", "answer"), [("poll", {"status": 503}), ("download", {"truncate": 10}), ("download", {"status": 503})]
)
def test_what_a_job_has_made_is_not_given_up_for_one_bad_answer_after_its_deadline(
    fleet: Fleet, remote: Remote, what: str, answer: dict[str, int]
) -> None:
    long_after_its_deadline(fleet, remote)
    remote.rule(what, times=1, **answer)
    assert fleet.json("reconcile")["verdicts"] == {"suspect": 1}
    assert the_run(fleet).outcome is None
    fleet.run("reconcile")
    run = the_run(fleet)
    assert run.outcome is Outcome.SUCCEEDED
    assert (fleet.state.run(run.run_id) / "artifacts" / "output-1.mp4").stat().st_size == 1000


def test_a_job_that_cannot_be_asked_about_is_given_up_in_the_end(fleet: Fleet, remote: Remote) -> None:
    long_after_its_deadline(fleet, remote)
    remote.rule("poll", status=503)
    asked = len(remote.requests("poll"))
    wait_until(lambda: fleet.run("reconcile", expect=None) and the_run(fleet).outcome, "the end of patience")
    assert len(remote.requests("poll")) - asked == ASKS_IN_VAIN
    assert (the_run(fleet).outcome, the_run(fleet).proof) == (Outcome.UNKNOWN, Proof.DEADLINE_PASSED)
    assert the_task(fleet).state is TaskState.BLOCKED


def test_an_id_that_comes_after_all_ends_the_doubt_about_its_run(fleet: Fleet, remote: Remote) -> None:
    """As of a container that was frozen for longer than its lease, while it submitted."""
    configure(fleet, remote, submit_timeout="1h")
    remote.rule("submit", delay=5.0)
    add(fleet)
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: remote.requests("submit"), "the submission")
    with fleet.center() as center:
        host, clock = replace(center.host, pid_namespace=1), Later(center.clock, HOUR_MS // 2)
        elsewhere = replace(center.surroundings, host=host, clock=clock)
        clear_orphaned_in_flight(elsewhere, trigger=Trigger.WATCHDOG)
        assert the_run(fleet).doubt is not None
        assert the_task(fleet).state is TaskState.BLOCKED
        wait_until(lambda: the_task(fleet).state is TaskState.DONE, "the end of its job")
        assert (the_run(fleet).outcome, the_run(fleet).doubt) == (Outcome.SUCCEEDED, None)
        assert center.ledger.verify() == []


@contextmanager
def no_threads() -> Iterator[None]:
    """What is started meanwhile can have none: there is no room for their stacks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY:
        pytest.skip("the stack's hard limit is not unlimited here")
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 58, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_a_machine_that_has_no_thread_leaves_no_doubt_behind(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    add(fleet)
    with no_threads():
        watcher = fleet.popen("watch", "--role", "goal")
    with fleet.center() as center:
        wait_until(center.ledger.open_runs, "the admission")
        for _ in range(2):
            beat = fleet.pulse("goal").heartbeat_mono
            wait_until(
                lambda beat=beat: watcher.poll() is not None or fleet.pulse("goal").heartbeat_mono > beat, "a turn"
            )
        assert watcher.poll() is None
        watcher.kill()
        watcher.wait()
    assert the_run(fleet).submitting_at is None
    wait_until(lambda: watched(fleet).state is TaskState.DONE, "the task")
    assert len(remote.requests("submit")) == 1


def test_a_stop_does_not_hasten_a_submission_in_doubt(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, more='idempotency_header = "Idempotency-Key"')
    remote.is_now(Provider(idempotent=True))
    remote.rule("submit", status=500, times=1)
    add(fleet)
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: remote.requests("submit"), "the submission")
    with fleet.center() as center:
        stop_run(center, the_run(fleet).run_id, "enough", wait=False)
        wait_until(lambda: the_run(fleet).state is RunState.CLOSED, "its end")
    first, second = remote.requests("submit")
    assert (second.at - first.at) * 1000 > pause_after_ms(1) - CLOCKS_DIFFER_MS


def test_what_could_not_be_written_of_an_answer_is_not_counted_twice(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    overtaken = msgspec.structs.replace(the_run(fleet), holder=0, deadline_mono=0)
    with fleet.center() as center:
        before = center.ledger.jobs([overtaken.run_id])
        recorder = Recorder(center.surroundings)
        with pytest.raises(Changed):
            asked_now = Followed(overtaken.run_id, asked_at=center.clock.now().monotonic)
            recorder.unsure(asked_now, overtaken, Unsure("no such job", may_pass=False))
        assert center.ledger.jobs([overtaken.run_id]) == before


def test_an_answer_from_before_the_deadline_gives_no_job_up_after_it(fleet: Fleet, remote: Remote) -> None:
    """Its poller stood still in between."""
    long_after_its_deadline(fleet, remote)
    run = the_run(fleet)
    with fleet.center() as center:
        recorder, no_job = Recorder(center.surroundings), Unsure("no such job", may_pass=False)
        asked_early = Followed(run.run_id, asked_at=run.reserved_mono)
        assert not recorder.unsure(asked_early, run, no_job)
        assert the_run(fleet).outcome is None
        asked_late = Followed(run.run_id, asked_at=center.clock.now().monotonic)
        assert recorder.unsure(asked_late, run, no_job)
        assert the_run(fleet).outcome is Outcome.UNKNOWN
