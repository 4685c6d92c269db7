"""Provider runs as their user has them: real watchers, and a provider that is a process of its own."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from operations_center.boards.local import NewTask
from operations_center.in_flight_reconcile import Trigger, Verdict, clear_orphaned_in_flight, explain_run
from operations_center.model import Health, Outcome, Proof, RunState, TaskState
from operations_center.polling.requests import THREADS
from tests.fleet import PATIENCE_S, Fleet, wait_until
from tests.providers.jobs import add, configure, polled_by_nobody, submitted, the_run, the_task, watch, watched
from tests.providers.remote import Remote, provider_process
from tests.providers.script import Course, Provider


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    with provider_process(tmp_path / "provider") as remote:
        yield remote


def test_a_job_is_submitted_polled_fetched_and_its_task_is_done(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.is_now(Provider(course=Course(polls=3, outputs=("a.mp4", "b.mp4"), thumbnail="t.jpg")))
    add(fleet)
    watch(fleet)
    run = the_run(fleet)
    assert (run.state, run.outcome, run.proof) == (RunState.CLOSED, Outcome.SUCCEEDED, Proof.PROVIDER_ANSWERED)
    assert the_task(fleet).state is TaskState.DONE
    assert len(list((fleet.state.run(run.run_id) / "artifacts").iterdir())) == 3
    (job,) = remote.jobs()
    assert job.job_id == run.provider_job_id
    assert not fleet.broken_promises()


def test_a_job_that_fails_blocks_its_task_with_the_reason_of_its_provider(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.goes(Course(end="failed", error="a face was seen"))
    add(fleet)
    watch(fleet)
    assert the_run(fleet).outcome is Outcome.FAILED
    task = the_task(fleet)
    assert task.state is TaskState.BLOCKED
    assert "a face was seen" in task.reason


def test_a_submission_without_an_answer_is_held_for_a_person_and_never_sent_again(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", vanish=True)
    add(fleet)
    for _ in range(2):
        watch(fleet)
        fleet.run("reconcile")
    run = the_run(fleet)
    assert (run.state, run.provider_job_id, run.doubt is not None) == (RunState.RUNNING, None, True)
    assert the_task(fleet).state is TaskState.BLOCKED
    assert len(remote.jobs()) == 1
    with fleet.center() as center:
        assert center.ledger.slots_held() == {"video": 1}
    assert "resolve" in the_task(fleet).reason
    (shown,) = fleet.json("runs", "--open", "--json")["runs"]
    assert shown["reason"] == run.doubt
    assert run.doubt[:60] in fleet.run("runs").stdout


@pytest.mark.parametrize(
    ("resolution", "outcome", "state"),
    [
        ("succeeded", Outcome.SUCCEEDED, TaskState.DONE),
        ("failed", Outcome.FAILED, TaskState.BLOCKED),
        ("lost", Outcome.LOST, TaskState.READY),
        ("resubmit", Outcome.RETRY, TaskState.READY),
    ],
)
def test_a_person_decides_what_became_of_a_doubt_and_is_recorded(
    fleet: Fleet, remote: Remote, resolution: str, outcome: Outcome, state: TaskState
) -> None:
    configure(fleet, remote)
    remote.rule("submit", vanish=True, times=1)
    add(fleet)
    watch(fleet)
    run_id = the_run(fleet).run_id
    assert fleet.run("resolve", run_id, "--as", resolution, "--reason", " ", expect=2).stderr.startswith("cannot run")
    fleet.run("resolve", run_id, "--as", resolution, "--reason", "looked it up")
    run = the_run(fleet)
    assert (run.outcome, run.proof, the_task(fleet).state) == (outcome, Proof.RESOLVED, state)
    assert "looked it up" in run.reason
    with fleet.center() as center:
        assert not center.ledger.slots_held()
        (settled,) = [event for event in center.ledger.events(run_id=run_id) if event.kind == "run.settled"]
    assert settled.data["why"] == "looked it up"
    assert "looked it up" in fleet.run("explain", run_id).stdout
    assert f"(user {os.getuid()})" in settled.data["resolved_by"]
    assert not fleet.broken_promises()


def test_a_provider_that_takes_a_key_is_asked_again_and_makes_one_job(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, more='idempotency_header = "Idempotency-Key"')
    remote.is_now(Provider(idempotent=True))
    remote.rule("submit", vanish=True, times=1)
    add(fleet)
    watch(fleet)
    assert the_run(fleet).outcome is Outcome.SUCCEEDED
    assert len(remote.requests("submit")) == 2
    assert len(remote.jobs()) == 1


def test_too_many_requests_cool_the_backend_down_and_the_task_runs_later(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", status=429, headers={"Retry-After": "1"}, times=1)
    add(fleet)
    watch(fleet)
    wait_until(lambda: watched(fleet).state is TaskState.DONE, "the task")
    with fleet.center() as center:
        runs = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
    assert [run.outcome for run in runs] == [Outcome.SUCCEEDED, Outcome.NEVER_STARTED]
    assert the_task(fleet).attempts == 1


def test_status_tells_a_person_that_a_provider_is_left_alone(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    assert "COOLDOWN" not in fleet.run("status", expect=3).stdout
    remote.rule("submit", status=429, headers={"Retry-After": "3000"})
    add(fleet)
    watch(fleet)
    (backend,) = fleet.json("status", "--json", expect=3)["backends"]
    assert backend["cooldown_until"] in fleet.run("status", expect=3).stdout


def test_a_request_that_is_refused_fails_and_costs_no_job(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", status=422, body={"error": "no such model"})
    add(fleet)
    watch(fleet)
    run = the_run(fleet)
    assert (run.outcome, run.proof) == (Outcome.FAILED, Proof.NEVER_SUBMITTED)
    assert not remote.jobs()


def test_the_next_watcher_polls_on_what_a_killed_one_has_left(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    left = the_run(fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: the_run(fleet).watcher_pid == watcher.pid, "the adoption")
    asked = len(remote.requests("poll"))
    wait_until(lambda: len(remote.requests("poll")) > asked, "the next poll")
    assert the_run(fleet).provider_job_id == left.provider_job_id
    assert len(remote.jobs()) == 1


def test_a_person_reconciles_what_nobody_polls(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, cap=9, initial="1h")
    polled_by_nobody(fleet, remote, count=5, polls=1)
    asked_before = len(remote.requests("poll"))
    told = fleet.json("reconcile", "--dry-run", "--json", "--limit", "2")
    assert told["verdicts"] == {"adopt": 3, "ask_provider": 2}
    assert len(told["jobs"]) == 5
    assert {job["eligible"] for job in told["jobs"]} == {False}
    assert len(remote.requests("poll")) == asked_before
    done = fleet.json("reconcile", "--json", "--limit", "2")
    assert [(action["action"], action["outcome"]) for action in done["actions"]] == [("applied", "succeeded")] * 2
    assert len(submitted(fleet)) == 3
    fleet.run("reconcile")
    assert not submitted(fleet)
    with fleet.center() as center:
        runs = center.ledger.recent_runs(task_id=None, backend=None, limit=10)
        asked = [event.data for event in center.ledger.events() if event.kind == "job.asked"]
    assert {run.outcome for run in runs} == {Outcome.SUCCEEDED}
    assert [each["trigger"] for each in asked] == ["cli"] * 5
    assert not fleet.broken_promises()


def test_a_person_who_reconciles_is_told_what_the_provider_says(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", word="rendering")
    (action,) = fleet.json("reconcile", "--json")["actions"]
    assert (action["action"], action["outcome"], action["said"]) == ("applied", None, "rendering")
    assert "rendering" in fleet.run("reconcile").stdout


def test_a_stop_cancels_the_job_and_blocks_its_task(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.goes(Course(polls=1_000_000))
    add(fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: submitted(fleet), "the submission")
    fleet.run("stop", the_run(fleet).run_id, "--reason", "too dear")
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.STOPPED, TaskState.BLOCKED)
    assert len(remote.requests("cancel")) == 1
    assert watcher.poll() is None


def test_a_fleet_that_ends_does_not_call_a_job_an_executor_that_runs_on(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    supervisor = fleet.up()
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0
    assert len(submitted(fleet)) == 1
    # It is what a person at the terminal is told.
    assert "executor" not in (fleet.root / "up.log").read_text()


def test_a_stop_without_a_watcher_asks_the_provider_itself(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    fleet.run("stop", the_run(fleet).run_id)
    assert the_run(fleet).outcome is Outcome.STOPPED
    assert len(remote.requests("cancel")) == 1


def test_a_job_that_has_finished_is_never_cancelled_and_its_output_is_kept(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h")
    polled_by_nobody(fleet, remote, polls=1)
    (run,) = submitted(fleet)
    fleet.run("stop", run.run_id)
    assert the_run(fleet).outcome is Outcome.SUCCEEDED
    assert not remote.requests("cancel")
    assert (fleet.state.run(run.run_id) / "artifacts" / "output-1.mp4").stat().st_size == 1000


def test_a_job_past_its_deadline_is_cancelled(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, timeout="1s")
    remote.goes(Course(polls=1_000_000))
    with fleet.center() as center:
        center.board.add([NewTask("film", "goal")])
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: the_task(fleet).attempts == 1, "the end of the first run")
    watcher.terminate()
    watcher.wait()
    with fleet.center() as center:
        first = center.ledger.recent_runs(task_id=None, backend=None, limit=10)[-1]
    assert first.outcome is Outcome.TIMED_OUT
    assert remote.requests("cancel")


def test_a_provider_that_answers_again_is_well_whatever_it_says(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.goes(Course(polls=1_000_000))
    add(fleet)
    fleet.up()
    wait_until(lambda: len(remote.requests("poll")) > 5, "the job is polled")
    remote.rule("poll", status=503, times=1)
    wait_until(lambda: told_of(fleet)[1] == 1, "the failure is recorded")
    asked = len(remote.requests("poll"))
    wait_until(lambda: len(remote.requests("poll")) > asked + 2, "the job is polled again")
    assert told_of(fleet) == (None, 0)


def told_of(fleet: Fleet) -> tuple[Health | None, int]:
    """What the ledger knows of the provider's health, and of failures of the run's job in a row."""
    run = the_run(fleet)
    with fleet.center() as center:
        return center.ledger.health().get("video"), center.ledger.jobs([run.run_id])[run.run_id].failures


def test_a_job_past_its_deadline_that_may_have_ended_keeps_its_outputs(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, timeout="1s")
    remote.is_now(Provider(course=Course(end="COMPLETE"), cancel_deletes=True))
    add(fleet)
    wait_until(lambda: watched(fleet).state is TaskState.BLOCKED, "the task is blocked")
    run = the_run(fleet)
    assert (run.outcome, run.proof) == (Outcome.UNKNOWN, Proof.DEADLINE_PASSED)
    assert "COMPLETE" in run.reason
    (job,) = remote.jobs()
    assert (job.cancels, job.forgotten) == (0, False)


def test_a_job_that_its_provider_has_forgotten_blocks_its_task_after_the_deadline(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, timeout="2s")
    polled_by_nobody(fleet, remote)
    remote.rule("poll", forget=True)
    wait_until(lambda: fleet.run("reconcile", expect=None) and not submitted(fleet), "the end of patience")
    run = the_run(fleet)
    assert (run.outcome, run.proof) == (Outcome.UNKNOWN, Proof.DEADLINE_PASSED)
    assert the_task(fleet).state is TaskState.BLOCKED


def test_a_word_that_nobody_knows_means_running(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("poll", word="pondering", times=3)
    add(fleet)
    watch(fleet)
    assert the_run(fleet).outcome is Outcome.SUCCEEDED
    assert len(remote.requests("poll")) >= 4


def test_an_output_whose_url_has_expired_is_fetched_from_a_fresh_one(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.goes(Course(expired=1))
    add(fleet)
    watch(fleet)
    assert the_run(fleet).outcome is Outcome.SUCCEEDED


def test_the_watchdog_asks_by_itself_only_where_that_is_allowed(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, initial="1h", more='min_age = "0s"')
    polled_by_nobody(fleet, remote, polls=1)
    fleet.run("watchdog", "--once")
    assert not remote.requests("poll")
    configure(fleet, remote, initial="1h", more='min_age = "0s"\nreconcile = "auto"')
    fleet.run("watchdog", "--once")
    assert the_run(fleet).outcome is Outcome.SUCCEEDED


def test_a_run_that_is_polled_cannot_be_resolved(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.goes(Course(polls=1_000_000))
    add(fleet)
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: submitted(fleet), "the submission")
    refused = fleet.run("resolve", the_run(fleet).run_id, "--as", "lost", "--reason", "x", expect=1)
    assert refused.stderr.startswith("cannot resolve run")
    assert submitted(fleet)


def test_a_watcher_that_is_told_to_stop_waits_for_the_answer_to_its_submission(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", delay=1.0)
    remote.goes(Course(polls=1_000_000))
    add(fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: remote.requests("submit"), "the request")
    watcher.terminate()
    assert watcher.wait() == 0
    assert len(submitted(fleet)) == 1


def test_a_submission_does_not_wait_for_downloads(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, cap=THREADS + 1)
    remote.rule("download", drip=3600.0)
    add(fleet, THREADS)
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: len(remote.requests("download")) == THREADS, "the downloads")
    fleet.run("task", "add", "film", "--kind", "goal")
    wait_until(lambda: len(submitted(fleet)) == THREADS + 1, "the submission")


def test_explain_says_what_is_known_of_a_job_and_what_would_change_that(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    document = fleet.json("explain", the_run(fleet).run_id, "--json")
    assert (document["verdict"], document["row"]) == ("ask_provider", 12)
    assert document["evidence"]["provider_job_id"] == remote.jobs()[0].job_id
    assert "ask its provider" in fleet.run("explain", the_run(fleet).run_id).stdout


def test_a_reason_of_several_lines_is_shown_on_one(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", vanish=True, times=1)
    add(fleet)
    watch(fleet)
    run = the_run(fleet)
    fleet.run("resolve", run.run_id, "--as", "failed", "--reason", "looked\n  outcome     succeeded")
    for words in (("explain", run.run_id), ("task", "show", run.task_id)):
        shown = fleet.run(*words).stdout
        assert "looked\\n" in shown
        assert "\n  outcome     succeeded" not in shown


def test_a_task_is_cancelled_at_once_whose_run_is_in_doubt_and_the_run_waits_for_a_person(
    fleet: Fleet, remote: Remote
) -> None:
    configure(fleet, remote)
    remote.rule("submit", vanish=True)
    add(fleet)
    watch(fleet)
    run_id = the_run(fleet).run_id
    refused = fleet.run("task", "cancel", the_task(fleet).task_id, expect=1)
    assert f"operations-center resolve {run_id}" in refused.stderr
    assert the_task(fleet).state is TaskState.CANCELLED
    assert (the_run(fleet).outcome, the_run(fleet).stop_outcome) == (None, None)
    fleet.run("resolve", run_id, "--as", "lost", "--reason", "there is no such job")
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.LOST, TaskState.CANCELLED)


def test_explain_says_that_a_doubt_waits_for_a_person(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("submit", vanish=True)
    add(fleet)
    watch(fleet)
    document = fleet.json("explain", the_run(fleet).run_id, "--json")
    assert (document["verdict"], document["row"], document["actions"]) == ("unknowable", 8, [])
    assert "resolve" in document["would_do"]
    assert document["would_do"].startswith("nothing: its task is blocked")


def test_a_job_whose_backend_is_gone_blocks_its_task_after_the_deadline(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote, timeout="2s")
    polled_by_nobody(fleet, remote)
    text = (fleet.root / "operations_center.toml").read_text()
    fleet.configure(text.replace("backends.video", "backends.other").replace('backend = "video"', 'backend = "other"'))
    watch(fleet)
    assert (the_run(fleet).outcome, the_task(fleet).state) == (Outcome.UNKNOWN, TaskState.BLOCKED)


def test_words_that_nobody_knows_are_counted_in_the_log(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    remote.rule("poll", word="pondering", times=3)
    add(fleet)
    watch(fleet)
    with fleet.center() as center:
        words = [event.data["word"] for event in center.ledger.events() if event.kind == "job.unknown_word"]
    assert words == ["pondering"]


def test_a_job_that_is_adopted_after_a_reboot_is_polled_here_from_then_on(fleet: Fleet, remote: Remote) -> None:
    configure(fleet, remote)
    polled_by_nobody(fleet, remote)
    with fleet.center() as center:
        rebooted = replace(center.surroundings, host=replace(center.host, boot_id="another"))
        clear_orphaned_in_flight(rebooted, trigger=Trigger.STARTUP, adopt_role="goal")
        explained = explain_run(rebooted, the_run(fleet).run_id)
        assert explained is not None
        assert (the_run(fleet).boot_id, explained[0].verdict) == ("another", Verdict.KEEP)
        assert center.ledger.verify() == []
