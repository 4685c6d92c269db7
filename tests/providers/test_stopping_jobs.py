"""Commands that end runs, at a provider that does not do as it is told: they look often, and ask rarely."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from operations_center.errors import OperationsCenterError
from operations_center.fleet import survivors
from operations_center.locks import lock_within
from operations_center.model import Health, JobMemory, Outcome, Run, RunState, TaskState
from operations_center.stopping.fleet import Down, take_down
from operations_center.stopping.runs import end_open_runs, stop_run
from operations_center.wiring import Center
from tests.fleet import Fleet, wait_until
from tests.providers.jobs import add, configure, polled_by_nobody, the_run, the_task, watch
from tests.providers.remote import Remote, provider_process
from tests.providers.script import Course, Provider

Command = Callable[[Center], None]


def stop(center: Center) -> None:
    (run,) = center.ledger.open_runs()
    stop_run(center, run.run_id, "enough")


def down_now(center: Center) -> None:
    end_open_runs(center, within_s=3.0)


def drain(center: Center) -> None:
    take_down(center.config, Down.DRAIN, within_s=3.0)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stop that is given in this process."""
    monkeypatch.setattr("operations_center.stopping.runs.BEYOND_GRACE_S", 2.0)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_process(tmp_path / "provider") as remote:
        yield remote


def seconds_in_vain(fleet: Fleet, command: Command) -> float:
    """For how long a command has tried before it gave up."""
    begun = time.monotonic()
    with fleet.center() as center, pytest.raises(OperationsCenterError):
        command(center)
    return time.monotonic() - begun


def asks_in_the_log(fleet: Fleet) -> int:
    with fleet.center() as center:
        return sum(event.kind == "job.asked" for event in center.ledger.events())


def most_asks(seconds: float) -> int:
    """For one job that goes on: at once, twice with `down --now`, then with pauses of 1, 2, 4, 8, 10, 10 … seconds."""
    asks, at, pause = 2, 1.0, 2.0
    while at <= seconds:
        asks, at, pause = asks + 1, at + pause, min(2 * pause, 10.0)
    return asks


@pytest.mark.parametrize("command", [stop, down_now, drain])
def test_a_provider_that_fails_is_left_alone_between_its_failures(
    fleet: Fleet, remote: Remote, command: Command
) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", status=500)
    seconds = seconds_in_vain(fleet, command)
    # The pauses after a failure begin with five seconds and double.
    assert 1 <= len(remote.requests("poll")) <= most_asks(seconds / 5)
    assert asks_in_the_log(fleet) == len(remote.requests("poll"))


@pytest.mark.parametrize("command", [stop, down_now])
def test_a_job_that_goes_on_after_it_was_cancelled_is_asked_about_ever_more_rarely(
    fleet: Fleet, remote: Remote, command: Command
) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", word="running")
    seconds = seconds_in_vain(fleet, command)
    assert 1 <= len(remote.requests("cancel")) <= most_asks(seconds)
    assert asks_in_the_log(fleet) <= most_asks(seconds)


def test_a_drain_asks_ever_more_rarely_about_a_job_that_nobody_polls(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    seconds = seconds_in_vain(fleet, drain)
    assert 1 <= len(remote.requests("poll")) <= most_asks(seconds)


@pytest.mark.parametrize("words", [("stop",), ("down", "--now")])
def test_a_job_whose_cancellation_takes_a_while_is_asked_about_until_it_has_ended(
    fleet: Fleet, remote: Remote, words: tuple[str, ...]
) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", word="running", times=4)
    fleet.run(*words, *([the_run(fleet).run_id] if words == ("stop",) else []))
    assert the_run(fleet).outcome is Outcome.STOPPED


def test_no_single_command_gives_up_a_job_whose_provider_fails(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, timeout="1s", initial="1h")
    polled_by_nobody(fleet, remote, polls=1)
    run = the_run(fleet)
    with fleet.center() as center:
        wait_until(lambda: center.clock.now().wall > run.deadline_at + run.grace_ms, "the deadline")
    remote.rule("poll", status=503)
    seconds_in_vain(fleet, stop)
    remote.forget_rules()
    fleet.run("stop", run.run_id)
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.SUCCEEDED, TaskState.DONE)


def test_the_first_question_of_a_person_goes_before_all_pauses(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    with fleet.center() as center:
        now = center.clock.now().wall
        trouble = JobMemory(urls={}, heard_at=now, failures=3, trouble="it fails", ask_at=now + 3_600_000)
        with center.ledger.transaction():
            center.ledger.remember_jobs({the_run(fleet).run_id: trouble})
            center.ledger.set_health("video", Health(9, now, None, now + 3_600_000))
    fleet.run("stop", the_run(fleet).run_id)
    assert the_run(fleet).outcome is Outcome.STOPPED
    assert len(remote.requests("cancel")) == 1


TO_CANCEL = """
[backends.video.cancel]
url = "{base_url}/jobs/{job_id}/cancel"
"""


def submitted_in_doubt(fleet: Fleet, remote: Remote) -> None:
    """With a key, accepted and answered with an error; whoever has sent it was killed."""
    configure(fleet, remote, more='idempotency_header = "Idempotency-Key"', initial="1h", grace="10m")
    remote.is_now(Provider(idempotent=True, course=Course(polls=1_000_000)))
    remote.rule("submit", status=500, accept=True)
    add(fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: remote.requests("submit") != [], "the submission")
    watcher.kill()
    watcher.wait()
    remote.forget_rules()


def polled_by_nobody_and_never_cancelled(fleet: Fleet, remote: Remote, polls: int = 1_000_000) -> None:
    """Its backend names no way to cancel a job."""
    configure(fleet, remote, initial="1h", grace="10m")
    text = (fleet.root / "operations_center.toml").read_text()
    assert TO_CANCEL in text
    fleet.configure(text.replace(TO_CANCEL, "\n"))
    polled_by_nobody(fleet, remote, polls=polls)


Hindering = Callable[[Fleet, Remote], None]
hindering = pytest.mark.parametrize("hinder", [submitted_in_doubt, polled_by_nobody_and_never_cancelled])


@hindering
def test_down_now_stores_a_stop_of_what_it_cannot_end_and_does_not_wait_for_it(
    fleet: Fleet, remote: Remote, hinder: Hindering
) -> None:
    hinder(fleet, remote)
    run = the_run(fleet)
    said = fleet.run("down", "--now").stdout
    assert run.run_id in said
    assert "the next `up`" in said
    run = the_run(fleet)
    assert (run.state, run.stop_outcome, run.stop_then) == (RunState.RUNNING, Outcome.STOPPED, TaskState.READY)
    assert remote.requests("cancel") == []


@hindering
def test_a_stop_of_what_cannot_be_ended_is_stored_and_refused(fleet: Fleet, remote: Remote, hinder: Hindering) -> None:
    hinder(fleet, remote)
    run_id = the_run(fleet).run_id
    assert fleet.run("stop", run_id, expect=1).stderr.startswith(f"cannot stop run {run_id}: ")
    run = the_run(fleet)
    assert (run.state, run.stop_outcome, run.stop_then) == (RunState.RUNNING, Outcome.STOPPED, TaskState.BLOCKED)


@hindering
def test_a_task_whose_run_cannot_be_ended_is_cancelled_all_the_same(
    fleet: Fleet, remote: Remote, hinder: Hindering
) -> None:
    hinder(fleet, remote)
    run_id = the_run(fleet).run_id
    said = fleet.run("task", "cancel", the_task(fleet).task_id, expect=1).stderr
    assert said.startswith(f"cannot stop run {run_id}: ")
    assert (the_run(fleet).stop_outcome, the_task(fleet).state) == (Outcome.CANCELLED, TaskState.CANCELLED)


def test_a_submission_in_doubt_that_was_stopped_is_sent_once_more_and_its_job_cancelled(
    fleet: Fleet, remote: Remote
) -> None:
    submitted_in_doubt(fleet, remote)
    fleet.run("stop", the_run(fleet).run_id, expect=1)
    sent = len(remote.requests("submit"))
    watch(fleet)
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.STOPPED, TaskState.BLOCKED)
    assert (len(remote.requests("submit")) - sent, len(remote.jobs()), len(remote.requests("cancel"))) == (1, 1, 1)


def test_a_stopped_job_that_cannot_be_cancelled_keeps_what_it_has_become(fleet: Fleet, remote: Remote) -> None:
    polled_by_nobody_and_never_cancelled(fleet, remote, polls=4)
    run_id = the_run(fleet).run_id
    fleet.run("stop", run_id, expect=1)
    wait_until(lambda: fleet.run("stop", run_id, expect=None).returncode == 0, "the end of its job")
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.SUCCEEDED, TaskState.DONE)


def test_a_stop_waits_for_a_living_watcher_that_is_to_take_the_submission_over(
    fleet: Fleet, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted_in_doubt(fleet, remote)
    monkeypatch.setattr("operations_center.stopping.runs.TAKEN_OVER_WITHIN_S", 0.0)
    run_id = the_run(fleet).run_id
    with fleet.center() as center, ThreadPoolExecutor(1) as pool:
        with lock_within(center.state.startup_lock, 1.0) as alone:
            assert alone
            # It has not looked at a run yet, and will not while it is stopped.
            watcher = fleet.popen("watch", "--role", "goal")
            wait_until(lambda: any(each.name == "goal" for each in survivors(center.state)), "the watcher")
            watcher.send_signal(signal.SIGSTOP)
        stopping = pool.submit(stop_in_its_own_center, fleet, run_id)
        wait_until(lambda: the_run(fleet).stop_outcome is not None or stopping.done(), "the stop")
        watcher.send_signal(signal.SIGCONT)
        assert stopping.result().outcome is Outcome.STOPPED
    assert (len(remote.jobs()), len(remote.requests("cancel"))) == (1, 1)


def stop_in_its_own_center(fleet: Fleet, run_id: str) -> Run:
    with fleet.center() as center:
        return stop_run(center, run_id, "enough")
